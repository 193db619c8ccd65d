"""Training of the SAMWISE modules: batches, padding, gradients, batch statistics."""

import dataclasses

import pytest

torch = pytest.importorskip("torch")

from export.models.samwise import Samwise
from export.networks.samwise import settings
from helpers.toy_networks import toy_samwise_config


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Samwise(toy_samwise_config(motion=True))


def run(network, pixels, tokens, mask=None, verb=None):
    """Two frames of each clip through everything."""
    clip = network.encode_clip(pixels, tokens, mask)
    sparse = network.prompt(clip.text, verb)
    at = [(clip.embedding[:, i], clip.high_res_0[:, i], clip.high_res_1[:, i]) for i in range(2)]
    first = network.decode(network.add_no_mem_embed(at[0][0]), sparse, *at[0][1:])
    memory = network.encode_memory(at[0][0], first.low_res_logits)
    age = torch.zeros(len(pixels), 1, dtype=torch.int64)
    x = network.attend_memory(at[1][0], memory[:, None], age, first.pointer[:, None])
    return network.decode(x, sparse, *at[1][1:]), first


def inputs(batch=2, frames=2, words=6):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, frames, 3, 64, 64, generator=generator),
        torch.randint(0, 100, (batch, words), generator=generator),
    )


def test_every_parameter_gets_a_gradient(network):
    network.train()
    pixels, tokens = inputs()
    last, first = run(network, pixels, tokens, verb=torch.tensor([1, 2]))
    prompts = network.sam.sam_prompt_encoder
    points = prompts.points(torch.rand(2, 5, 2) * 64, torch.tensor([[-1, 0, 1, 2, 3]] * 2))
    dense = prompts.masks(torch.randn(2, 16, 16))
    clip = network.encode_clip(pixels, tokens)
    fine = clip.high_res_0[:, 0], clip.high_res_1[:, 0]
    clicked = network.decode(clip.embedding[:, 0], points, *fine, dense_bnd=dense)
    shrunk = network.sam.mask_downsample(torch.rand(1, 1, 64, 64))
    parts = [f.decoded.logits.sum() + f.iou.sum() + f.score.sum() + f.pointer.sum() for f in (last, first, clicked)]
    (
        sum(parts)
        + network.cme_logits(last.pointer, last.early_token)[:, 0].sum()
        + shrunk.sum()
        + network.sam.no_pointer.sum()
    ).backward()
    assert [n for n, p in network.named_parameters() if p.grad is None] == []


def test_batch_statistics_move_in_training_only(network):
    norm = network.cmt_adapters[0].proj_vis_down[1]
    before = norm.running_mean.clone()
    run(network.eval(), *inputs())
    assert torch.equal(norm.running_mean, before)
    run(network.train(), *inputs())
    assert not torch.equal(norm.running_mean, before)


@torch.no_grad()
def test_a_batch_is_its_clips(network):
    network.eval()
    pixels, tokens = inputs()
    together, _ = run(network, pixels, tokens, verb=torch.tensor([3, 1]))
    for i, verb in enumerate((3, 1)):
        alone, _ = run(network, pixels[i : i + 1], tokens[i : i + 1], verb=torch.tensor([verb]))
        assert torch.allclose(together.low_res_logits[i], alone.low_res_logits[0], rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_padding_changes_nothing(network):
    network.eval()
    pixels, tokens = inputs(batch=1)
    padded = torch.cat((tokens, torch.ones(1, 3, dtype=torch.int64)), 1)
    mask = torch.tensor([[True] * 6 + [False] * 3])
    plain, _ = run(network, pixels, tokens)
    masked, _ = run(network, pixels, padded, mask)
    unmasked, _ = run(network, pixels, padded)
    assert torch.allclose(plain.low_res_logits, masked.low_res_logits, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(plain.low_res_logits, unmasked.low_res_logits, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_absent_objects_are_gated_in_eval(network):
    network.sam.sam_mask_decoder.pred_obj_score_head.layers[2].bias.fill_(-100)
    out, _ = run(network.eval(), *inputs())
    assert (out.low_res_logits == -1024).all()
    assert torch.equal(out.pointer, network.sam.no_obj_ptr.expand(2, -1))
    trained, _ = run(network.train(), *inputs())
    assert (trained.low_res_logits > -1024).all()


@torch.no_grad()
def test_points(network):
    """Labels: -1 replaces the position by one vector, others add theirs to it."""
    encoder = network.sam.sam_prompt_encoder
    xy = torch.tensor([[[10.0, 20.0], [10.0, 20.0], [50.0, 3.0]]])
    tokens = encoder.points(xy, torch.tensor([[1, 0, -1]]))[0]
    difference = encoder.point_embeddings[1].weight - encoder.point_embeddings[0].weight
    assert torch.allclose(tokens[0] - tokens[1], difference[0], atol=1e-6)
    assert torch.equal(tokens[2], encoder.not_a_point_embed.weight[0])


def test_without_object_score():
    config = toy_samwise_config()
    network = Samwise(dataclasses.replace(config, sam=dataclasses.replace(config.sam, object_score=False))).eval()
    out, _ = run(network, *inputs())
    assert (out.score == 10).all() and not (out.low_res_logits == -1024).any()


def test_settings(network):
    numbers = settings(network)["samwise"]
    # the reference counts the frame itself among the 6 slots and 7 pointers
    assert numbers["window"] == 4 and numbers["memory"] == {"num_maskmem": 7, "max_obj_ptrs": 8}
    assert numbers["text"] == {"max_tokens": 32, "vocabulary": 100, "motion": True}
    assert numbers["conditional_memory"] == {"first": 5, "every": 3}
