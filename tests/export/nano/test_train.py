"""Training the nano network: gradients, labels, losses, batches, data parallelism, resumed runs."""

import gc
import json
import multiprocessing
import os
import signal
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from export.checkpoints.common import config_from
from export.checkpoints.samwise import load_samwise
from export.layers.attention import PackedAttention
from export.models.samwise import Samwise, SamwiseConfig
from export.nano import checkpointing, finetune_cme, objectives, prompts, sprites, tokenizer, train
from export.nano.auxiliary_heads import FeatureHook, MotionHead, TextMatchHead, object_attention_loss
from export.nano.clip_forward import Tracker, TrackOptions, decode_without_memory, encode
from export.nano.config import SIZES, SamplingSchedule
from export.nano.data_parallel import ProcessGroup
from export.nano.dataset import SyntheticDataset
from export.nano.evaluate import evaluate
from export.nano.loader import (
    APPEARANCE_CLASSES,
    NO_TARGET,
    TYPICAL_MOTION,
    BatchSpec,
    Loader,
    appearance_labels,
    motion_labels,
    sample,
)
from export.nano.optimizer import MuonAdamW, update_cost
from helpers.placeholder_sprites import placeholder_sprites
from helpers.toy_networks import toy_samwise_config
from runtime.errors import UserError


@pytest.fixture(scope="module")
def toy_network():
    torch.manual_seed(0)
    return Samwise(toy_samwise_config())


def pictures(count, frames, side=64):
    return torch.randn(count, frames, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", SIZES)
def test_config_survives_a_checkpoint(size):
    config = SIZES[size]
    assert config_from(SamwiseConfig, json.loads(json.dumps(asdict(config)))) == config
    parameters = sum(p.numel() for p in Samwise(config).parameters())
    assert parameters < 8e6  # half of the 25 MB that weights and graphs may take, in half precision


def test_sentences_that_share_a_clip_equal_sentences_alone(toy_network):
    """The fused pass for several sentences, in windows, against the plain one."""
    toy_network.eval()
    pixels, tokens = pictures(2, 6), torch.randint(4, 90, (4, 5))
    mask = torch.ones_like(tokens, dtype=torch.bool)
    with torch.no_grad():
        together = encode(toy_network, pixels, tokens, mask, 2)
        for o in range(4):
            for first in (0, 4):  # the toy's window is 4 frames
                alone = toy_network.encode_clip(pixels[o // 2 : o // 2 + 1, first : first + 4], tokens[o : o + 1])
                part = slice(first, first + 4)
                assert torch.allclose(together.embedding[o, part], alone.embedding[0], atol=1e-5)
                assert torch.allclose(together.high_res_1[o, part], alone.high_res_1[0], atol=1e-5)
                assert torch.allclose(together.sparse[o, first], toy_network.prompt(alone.text)[0], atol=1e-5)


def test_first_frame_has_no_memory_and_later_ones_do(toy_network):
    toy_network.eval()
    tokens = torch.randint(4, 90, (2, 5))
    with torch.no_grad():
        clip = encode(toy_network, pictures(1, 4), tokens, None, 2)
        alone = decode_without_memory(toy_network, clip).low_res_logits.unflatten(0, (2, 4))
        with_memory = Tracker(toy_network, clip, TrackOptions()).run().logits
        without = Tracker(toy_network, clip, TrackOptions(memory=False)).run().logits
    assert torch.allclose(without, alone, atol=1e-5)
    assert torch.allclose(with_memory[:, 0], alone[:, 0], atol=1e-5)
    assert not torch.allclose(with_memory[:, 3], alone[:, 3], atol=1e-3)


@pytest.mark.slow
def test_every_parameter_learns(toy_network):
    """Sentences with memory and decisions, and visual prompts, together reach every weight."""
    toy_network.train().zero_grad()
    with torch.no_grad():
        toy_network.sam.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(3.0)  # objects count as present
    truth = torch.zeros(2, 8, 64, 64, dtype=torch.bool)
    truth[:, :, 10:40, 20:50] = True
    tokens = torch.randint(4, 90, (2, 5))
    clip = encode(toy_network, pictures(1, 8), tokens, torch.ones_like(tokens, dtype=torch.bool), 2)
    tracked = Tracker(toy_network, clip, TrackOptions(conditional_memory=True, cme_first=2, decide_only=True)).run()
    loss = objectives.total(objectives.frame_losses(tracked.logits, tracked.iou, tracked.score, truth))
    loss = loss + sum(decision.sum() for _, decision, _ in tracked.decisions)
    begin = prompts.encode_prompts(toy_network, truth[:, 0].repeat(2, 1, 1), torch.arange(4), permanent=True)
    shown = encode(toy_network, pictures(1, 8), None, None, 4)
    seen = Tracker(toy_network, shown, TrackOptions(mask_tokens=(0, 1, 2, 3, 0, 1, 2, 3)), begin).run()
    loss = loss + sum(
        objectives.total(
            objectives.frame_losses(
                seen.all_logits[:, :, i], seen.all_ious[:, :, i], seen.score, truth.repeat(2, 1, 1, 1)
            )
        )
        for i in range(4)
    )
    loss.backward()
    idle = [name for name, p in toy_network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # the pointer of an absent object is not used while all are present
    assert set(idle) <= {"sam.no_obj_ptr", "sam.sam_prompt_encoder.point_embeddings.0.weight"}, idle


def test_decision_labels():
    side = 8
    left, right, none = (torch.zeros(side, side, dtype=torch.bool) for _ in range(3))
    left[:, :3], right[:, 5:] = True, True
    cases = [
        ((left, right, right), 1),
        ((right, left, right), 0),
        ((right, right, right), 0),
        ((left, none, right), -1),
        ((left, right, none), -1),
        ((none, right, right), 1),
    ]
    for (memory, alone, truth), label in cases:
        assert objectives.decision_labels(memory[None], alone[None], truth[None]).item() == label


def test_losses_fall_with_better_masks():
    truth = torch.zeros(1, 2, 32, 32, dtype=torch.bool)
    truth[:, 0, 8:24, 8:24] = True
    small = truth[:, :, ::4, ::4].float()
    worse = objectives.mask_losses(small * 2 - 1, truth)
    better = objectives.mask_losses(small * 16 - 8, truth)
    wrong = objectives.mask_losses(8 - small * 16, truth)
    assert better["bce"] < worse["bce"] < wrong["bce"] and better["dice"] < worse["dice"] < wrong["dice"]
    empty = objectives.mask_losses(torch.full((1, 2, 8, 8), -9.0), torch.zeros_like(truth))
    assert empty["dice"] == 0 and empty["bce"] < 1e-3


def test_prompts_lie_in_the_mask():
    masks = torch.zeros(3, 64, 64, dtype=torch.bool)
    masks[0, 5:20, 30:60] = masks[1, 40:60, 3:9] = masks[2, 20:50, 20:50] = True
    assert prompts.boxes(masks).tolist() == [[30, 5, 60, 20], [3, 40, 9, 60], [20, 20, 50, 50]]
    for points, mask in zip(
        prompts.inner_points(masks, 5, torch.Generator().manual_seed(0)).long(), masks, strict=True
    ):
        assert all(mask[y, x] for x, y in points.tolist())


def test_batches_are_the_same_for_any_number_of_workers():
    stream = BatchSpec("clip", 2, 3, 2, negatives=0.5)
    got = []
    for workers in (0, 1, 2):
        loader = Loader(workers, ahead=2, size=64)
        try:
            loader.request(stream, 5)
            loader.request(stream, 6)
            batch = loader.next()
            arrays = (batch.frames, batch.instance_map, batch.targets, batch.tokens)
            got.append((*arrays, batch.kinds, batch.appearance, batch.motion))
        finally:
            loader.close()
    for some in zip(*got, strict=True):
        assert all(np.array_equal(some[0], other) for other in some[1:])
    targets, kinds = got[0][2].ravel(), got[0][4]
    assert [t == NO_TARGET for t in targets] == [k == "absent" for k in kinds]


def test_a_worker_that_is_killed_is_an_error_at_once_and_nothing_waits_for_it():
    loader = Loader(2, ahead=2, size=64)
    try:
        assert loader.pool is not None
        os.kill(next(iter(loader.pool._processes)), signal.SIGKILL)
        with pytest.raises(BrokenProcessPool):
            for index in range(10_000):  # until the pool learns of it
                loader.request(BatchSpec("clip", 2, 3, 2), index)
                loader.next()
    finally:
        loader.close()


def test_appearance_labels():
    dataset = SyntheticDataset(64)
    clip, _ = sample(dataset, BatchSpec("image", 1, 1, 2, visual=True), 3)
    table = appearance_labels(clip)
    assert table[0].tolist() == [0, 0, 0]
    assert (table[1 : len(clip.scene.actors) + 1] > 0).all() and not table[len(clip.scene.actors) + 1 :].any()
    assert (table < list(APPEARANCE_CLASSES.values())).all()


def test_motion_classes_depend_on_time():
    seen = set()
    for seed in range(60):
        clip = SyntheticDataset(64).clip("train", seed, 8)
        table = appearance_labels(clip)[1 : len(clip.scene.actors) + 1, 2]
        for actor, label in zip(clip.scene.actors, table, strict=True):
            if actor.border is None:
                assert (label == 1) == (actor.motion == "still")
            seen.add(int(label))
    assert len(seen) > 20 and max(seen) < APPEARANCE_CLASSES["motion"]


def test_motion_labels_agree_with_the_paths():
    seen = set()
    for seed in range(40):
        clip = SyntheticDataset(64).clip("train", seed, 8)
        table = motion_labels(clip)
        assert table.shape[0] == 8 and not table[:, 0].any() and not table[:, len(clip.scene.actors) + 1 :].any()
        for actor, (right, down, turn, growth) in zip(
            clip.scene.actors, table.mean(0)[1:] * TYPICAL_MOTION, strict=False
        ):
            if actor.border is not None or actor.active is None or not actor.active.all():
                continue
            seen.add(actor.motion)
            found = {
                "left": right < -3,
                "right": right > 3,
                "up": down < -3,
                "down": down > 3,
                "spin": abs(turn) > 15,
                "grow": growth > 0.03,
                "shrink": growth < -0.03,
                "still": abs(right) < 2 and abs(turn) < 1,
            }
            assert found.get(actor.motion, True), (seed, actor.motion)
    assert {"left", "spin", "grow", "still"} <= seen


def test_feature_hook_restores_positions(toy_network):
    """Recorded output of the attention over frames, compared with the branch of the adapter per frame and cell."""
    hook = FeatureHook(toy_network.train())
    kept = []
    adapter = toy_network.cmt_adapters[1]
    plain = adapter.selective
    instance_map = torch.zeros(1, 6, 64, 64, dtype=torch.uint8)
    instance_map[:, :, 10:40, 20:60] = 1
    try:
        adapter.selective = lambda x: kept.append(plain(x)) or kept[-1]
        tokens = torch.randint(4, 90, (2, 5))
        with torch.no_grad():
            encode(toy_network, pictures(1, 6), tokens, None, 2)
    finally:
        del adapter.selective
    inputs, output = hook.pop()
    assert torch.equal(output, torch.cat(kept, 1).flatten(2, 3)) and hook.attention_loss(inputs, instance_map, 2) > 0
    assert not hook.calls


def test_object_attention_loss():
    """Two objects that swap cells: low loss for attention to the same object, high loss for attention to the other."""
    attention = PackedAttention(12, 3)
    torch.nn.init.zeros_(attention.in_proj_weight)
    with torch.no_grad():
        for head, later in ((0, 1.0), (1, -1.0)):
            for i, (query, key) in enumerate(((0, 0), (1, 1), (3, 2))):  # identity, identity, time
                attention.in_proj_weight[4 * head + i, query] = 20.0
                attention.in_proj_weight[12 + 4 * head + i, key] = 20.0 if i < 2 else later
    instance_map = torch.tensor([[1, 2, 2, 1]])
    x = torch.zeros(1, 4, 12)
    x[0, :, 0], x[0, :, 1] = (instance_map[0] == 1).float(), (instance_map[0] == 2).float()
    x[0, :, 2], x[0, :, 3] = torch.tensor([-1.0, -1.0, 1.0, 1.0]), 1.0
    assert object_attention_loss(attention, x, instance_map, 2) < 1e-3
    assert object_attention_loss(attention, x, torch.tensor([[1, 2, 1, 2]]), 2) > 3


def test_heads_have_low_loss_on_the_truth():
    """Maps that contain the targets, read with identity weights."""
    instance_map = torch.zeros(1, 32, 32, dtype=torch.uint8)
    instance_map[:, 8:24, 8:24] = 1
    rates = torch.zeros(1, 3, 4)
    rates[0, 1] = torch.tensor([1.0, -1.0, 0.0, 0.5])
    speed = MotionHead(4)
    torch.nn.init.eye_(speed.velocity.weight), torch.nn.init.zeros_(speed.velocity.bias)
    cells = (instance_map[:, 2::4, 2::4] > 0).float().flatten(1)[..., None]
    right, still = (speed(x, instance_map, rates) for x in (cells * rates[:, 1], torch.zeros(1, 64, 4)))
    assert right["velocity"] == 0 and right["_velocity_accuracy"] == 1
    assert still["velocity"] > 0.5 and still["_velocity_accuracy"] == 0
    text_match = TextMatchHead(2)
    with torch.no_grad():
        text_match.coverage.weight.copy_(torch.tensor([[4.0, -4.0]]))
    inside = torch.cat((cells, 1 - cells), 2)
    assert (
        text_match(inside, instance_map > 0)["text_match"]
        < 0.1
        < 1
        < text_match(1 - inside, instance_map > 0)["text_match"]
    )


def test_tokenizer_layout():
    words = tokenizer.train(tokenizer.sentences(3000))
    ids, mask = tokenizer.encode(words, ["the red dog", "the cat that starts to spin"])
    assert words.get_vocab_size() <= tokenizer.VOCABULARY
    assert ids[:, 0].tolist() == [0, 0] and ids[0, mask[0].sum() - 1] == 2 and ids[0, -1] == tokenizer.PAD
    assert words.decode(ids[0][mask[0]].tolist()).strip() == "the red dog"
    assert [words.token_to_id(t) for t in tokenizer.SPECIAL] == [0, 1, 2, 3]


class Square(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.table = torch.nn.Linear(40, 40), torch.nn.Parameter(torch.ones(3))


def test_processes_leave_the_garbage_of_the_parent_alone():
    """What a library's object does as it goes, in a child: it may wait for threads of the parent, and hang."""
    parent, gone = os.getpid(), multiprocessing.get_context("fork").Value("i", 0)

    class Threaded:
        def __init__(self):
            self.itself = self

        def __del__(self):
            gone.value += os.getpid() != parent

    group = ProcessGroup(2, 1)

    def work(group):
        gc.collect()
        return group.gather([group.rank])

    gc.disable()
    try:
        Threaded()
        group.fork(work)
        assert work(group) == [0, 1] and gone.value == 0
    finally:
        gc.enable()


def test_process_group_steps_like_one_process_with_the_mean_gradient():
    """Two processes that own half of the weights each, compared with plain averaging."""

    def gradients(rank, model):
        torch.manual_seed(rank)
        return [torch.randn_like(p) for p in model.parameters()]

    torch.ones(1 << 22).exp_()  # start the threads of the parent, which a fork does not have
    torch.manual_seed(5)
    alone = Square()
    torch.manual_seed(5)
    group = ProcessGroup(2, sum(p.numel() for p in Square().parameters()))

    def work(group):
        torch.manual_seed(5)
        model = Square()
        parameters = list(model.parameters())
        owned = group.shard(parameters, [update_cost(n, p) for n, p in model.named_parameters()])
        optimizer = MuonAdamW(
            [pair for pair, mine in zip(model.named_parameters(), owned, strict=True) if mine], 0.1, 0.0
        )
        for p, g in zip(parameters, gradients(group.rank, model), strict=True):
            p.grad = g
        group.reduce_gradients(parameters, owned)
        optimizer.step()
        clock = group.end_step(2.0 * group.rank)
        return group.gather([(group.rank, owned, clock, [p.detach().numpy().copy() for p in parameters])])

    group.fork(work)
    found = work(group)
    for p, a, b in zip(alone.parameters(), gradients(0, alone), gradients(1, alone), strict=True):
        p.grad = (a + b) / 2
    MuonAdamW(list(alone.named_parameters()), 0.1, 0.0).step()
    assert [rank for rank, *_ in found] == [0, 1]
    instance_map = torch.tensor([owned for _, owned, *_ in found])
    assert (instance_map.sum(0) == 1).all() and instance_map.any(1).all()
    for _, _, clock, weights in found:
        assert clock == 1.0
        for mine, other in zip(weights, alone.parameters(), strict=True):
            assert np.allclose(mine, other.detach().numpy(), atol=1e-6)


def test_training_state_of_another_version_is_refused(tmp_path):
    """Format 1 had no version, and other names."""
    torch.save({"step": 7, "spent": 60.0, "processes": 1}, checkpointing.state_path(tmp_path))
    with pytest.raises(SystemExit, match=r"last\.pth: training state of another version; .*--out"):
        checkpointing.read_state(tmp_path, 0, 1, torch.device("cpu"))


def train_briefly(config):
    """Train on single samples of each kind, whatever the schedule of the network's size, in a process of its own."""
    sprites.load = placeholder_sprites
    batches = (
        BatchSpec("image", 1, 2, 2),
        BatchSpec("clip", 3, 1, 1),
        BatchSpec("visual", 2, 1, 1, visual=True),
        BatchSpec("recognition", 1, 2, 0, visual=True),
    )
    train.SCHEDULES["small"] = SamplingSchedule(batches, ((0.0, (0.25,) * 4), (1.0, (0.25,) * 4)))
    train.launch(config)


def launch_as_a_program(config):
    """Training forks, and keeps freed memory: neither is for a process that has run other tests with threads."""
    process = multiprocessing.get_context("spawn").Process(target=train_briefly, args=(config,))
    process.start()
    process.join(300)
    if process.exitcode is None:
        process.kill()
    assert process.exitcode == 0


@pytest.mark.slow
def test_a_run_trains_resumes_and_exports(tmp_path):
    config = train.TrainConfig(
        out=tmp_path, total_minutes=60, processes=2, device="cpu", report_steps=2, validation_clips=1, warmup=2
    )
    launch_as_a_program(replace(config, steps=4))
    launch_as_a_program(replace(config, steps=8))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "norm" in line][-1] == 8
    assert any(line.get("resumed") and line["step"] == 4 for line in lines)
    with pytest.raises(SystemExit, match="--processes"):
        train.Trainer(replace(config, processes=1))
    model = load_samwise(tmp_path / "nano.pth")
    dataset = SyntheticDataset()
    records = evaluate(model, [dataset.clip("test", 0, 8)])
    assert records and all(0 <= r.j <= 1 for r in records)


def test_only_the_conditional_memory_encoder_is_finetuned():
    """Decisions of an untrained network, and a rule that the encoder can learn."""
    torch.manual_seed(0)
    model = Samwise(SIZES["small"]).eval()
    decisions = finetune_cme.collect_decisions(model, 1, SyntheticDataset())
    assert decisions.pointers.shape == decisions.early_tokens.shape and set(decisions.labels.tolist()) <= {0, 1}
    width = model.config.sam.width
    pointers, early = torch.randn(2, 4000, width)
    early[:, 0] *= 4
    rule = finetune_cme.Decisions(pointers, early, (early[:, 0] > 4.0).long())
    before = {name: p.clone() for name, p in model.named_parameters()}
    scores = finetune_cme.finetune(model, rule, steps=300)
    assert 0.1 < scores["switches"] < 0.25 and scores["precision"] > 0.7 and scores["recall"] > 0.7
    changed = {name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"conditional_memory_encoder"}


def test_finetuning_without_a_switch_to_learn_from_is_refused():
    """Decisions of a network that finds nothing, or that never loses its object."""
    model = Samwise(toy_samwise_config())
    for count in (0, 40):
        tokens = torch.zeros(count, model.config.sam.width)
        decisions = finetune_cme.Decisions(tokens, tokens, torch.zeros(count, dtype=torch.int64))
        with pytest.raises(UserError, match="train the network first"):
            finetune_cme.finetune(model, decisions)


def test_finetuning_a_missing_checkpoint_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["finetune_cme", "--checkpoint", str(tmp_path / "none.pth")])
    with pytest.raises(SystemExit, match=r"error: .*none\.pth: no such file"):
        finetune_cme.main()
