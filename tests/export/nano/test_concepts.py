"""Concepts of nano: clips and their concepts, recovered weights, a few steps of training, the exported network."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from export.checkpoints.common import config_from
from export.models.nano_concepts import NanoConceptsConfig
from export.models.sam import Sam
from export.nano import concept_objectives, tokenizer, train_concepts
from export.nano.concept_batches import MAX_EXEMPLARS, VISUAL, ConceptBatchSpec, draw_batch, instance_boxes
from export.nano.concepts import concept_clip, concepts, draw_concepts
from export.nano.config import SIZES
from export.nano.dataset import SyntheticDataset
from export.nano.grammar import held_out
from runtime.bundle.manifest import Manifest
from runtime.errors import UserError

NANO = Path(__file__).parents[3] / "engines" / "nano"


@pytest.fixture(scope="module")
def dataset():
    return SyntheticDataset()


def test_a_concept_names_all_objects_that_it_fits(dataset):
    kinds = set()
    for seed in range(6):
        clip = concept_clip(dataset, "train", seed, 4)
        actors = clip.scene.actors
        for query in concepts(clip):
            kinds.add(query.kind)
            attribute, _, noun = query.text.rpartition(" ")
            fitting = [i for i, a in enumerate(actors) if a.noun == noun and attribute in ("", a.colour)]
            if query.kind in ("noun", "colour", "other noun", "other colour"):
                assert list(query.actors) == fitting, query
            else:
                assert all(actors[i].noun == noun for i in query.actors)
        assert len({q.text for q in concepts(clip)}) == len(concepts(clip))
    assert kinds >= {"noun", "colour", "other noun", "other colour"}


def test_a_clip_is_a_function_of_its_number_and_holds_out_pairs(dataset):
    clip, again = (concept_clip(dataset, "train", 3, 8, [1, 6]) for _ in range(2))
    assert np.array_equal(clip.frames, again.frames) and clip.frames.shape[0] == 2
    for seed in range(8):
        drawn = concept_clip(dataset, "train", seed, 1)
        assert not any(held_out(a.noun, a.colour) for a in drawn.scene.actors)
        assert len(draw_concepts(np.random.default_rng(0), drawn, 5)) == 5


def test_boxes_surround_the_visible_pixels():
    instances = np.zeros((16, 16), np.uint8)
    instances[4:8, 2:10] = 1
    instances[0, 0] = 2
    np.testing.assert_allclose(instance_boxes(instances, 3), [[6 / 16, 6 / 16, 0.5, 0.25], [0] * 4, [0] * 4])


def test_a_batch_is_complete(dataset):
    spec = ConceptBatchSpec(clips=3, images=2, concepts=4)
    batch = draw_batch(dataset, tokenizer.load(), spec, 0)
    assert batch.frames.shape[0] == 6 and len(batch.tokens) == 24 == len(batch.map_index)
    assert batch.visible[:, -1].all() and batch.exemplars.shape == (24, MAX_EXEMPLARS + 1, 4)
    for row, objects in enumerate(batch.objects):
        found = instance_boxes(batch.instance_map[batch.map_index[row]], 9)
        for i, obj in enumerate(objects):
            np.testing.assert_array_equal(batch.boxes[row, i], found[obj - 1] if obj else np.zeros(4))
    assert tokenizer.load().encode(VISUAL).ids[0] == batch.tokens[0, 0]


def test_matching_gives_each_object_its_nearest_queries():
    boxes = torch.tensor([[[0.2, 0.2, 0.1, 0.1], [0.25, 0.2, 0.1, 0.1], [0.8, 0.8, 0.2, 0.2], [0.5, 0.5, 0.1, 0.1]]])
    targets = torch.tensor([[[0.8, 0.78, 0.2, 0.2], [0.2, 0.2, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1]]])
    valid = torch.tensor([[True, True, False]])
    scores = torch.zeros(1, 4)
    assert concept_objectives.match(scores, boxes, targets, valid, 1).tolist() == [[1, -1, 0, -1]]
    assert concept_objectives.match(scores, boxes, targets, valid, 2).tolist()[0][:3] == [1, 1, 0]
    assert (concept_objectives.match(scores, boxes, targets, torch.zeros_like(valid), 1) == -1).all()


def test_generalized_iou_against_hand_computed_boxes():
    a = torch.tensor([0.25, 0.5, 0.5, 1.0])
    others = torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.5, 0.5, 0.5, 1.0], [0.875, 0.5, 0.25, 1.0]])
    expected = torch.tensor([1.0, 1 / 3, -0.25])
    torch.testing.assert_close(concept_objectives.generalized_iou(a, others), expected)


@pytest.fixture
def random_nano(monkeypatch):
    """An untrained trunk, so that nothing is traced."""

    def sam(path):
        torch.manual_seed(0)
        return Sam(SIZES["small"].sam)

    monkeypatch.setattr(train_concepts, "load_nano", sam)


def config(folder, **changes):
    return train_concepts.ConceptTrainConfig(out=folder, clips=1, warmup=1, **changes)


def test_steps_reduce_the_loss_and_a_run_resumes(tmp_path, dataset, random_nano):
    trainer = train_concepts.ConceptTrainer(config(tmp_path))
    frozen = {name: value.clone() for name, value in trainer.model.tracker.state_dict().items()}
    batch = draw_batch(dataset, trainer.tokenizer, trainer.spec, 0)
    losses = [trainer.learn(batch) for _ in range(4)]
    assert np.isfinite(losses).all() and losses[-1] < 0.95 * losses[0], losses
    assert all(torch.equal(value, frozen[name]) for name, value in trainer.model.tracker.state_dict().items())
    trainer.save()
    resumed = train_concepts.ConceptTrainer(config(tmp_path))
    assert resumed.step == 4
    again = [t.learn(batch) for t in (trainer, resumed)]
    assert again[0] == pytest.approx(again[1], rel=1e-4)


def test_a_checkpoint_is_exported_as_sam3(tmp_path, random_nano):
    from export.networks import nano_concepts
    from runtime.models.sam3.network import TRACKER_STAGES, Sam3

    trainer = train_concepts.ConceptTrainer(config(tmp_path))
    trainer.save()
    written = asdict(trainer.model.config)
    assert config_from(NanoConceptsConfig, written) == trainer.model.config
    model = nano_concepts.load(tmp_path / train_concepts.FILE)
    stages = {stage.name: stage for stage in nano_concepts.stages(model)}
    assert set(stages) == {*Sam3.required_stages, *TRACKER_STAGES}
    shipped = Manifest.load(Path(__file__).parents[3] / "engines" / "nano-concepts").stages
    for name, stage in stages.items():
        assert [t.name for t in stage.spec.inputs] == [t.name for t in shipped[name].inputs], name
    inputs = stages["image_encoder"].sample()
    want = model.detector_levels(inputs["pixels"])
    found = stages["image_encoder"].run(inputs)
    torch.testing.assert_close(found["level"], want[0], rtol=1e-3, atol=1e-3)
    levels = stages["fine_levels"].run({"trunk": found["trunk"]})
    features = stages["tracker_neck"].run({"trunk": found["trunk"]})
    pairs = zip([*levels.values(), *(features[n] for n in ("embedding", "high_res_0", "high_res_1"))],
                [*want[1:], *model.tracker_features(inputs["pixels"])], strict=True)  # fmt: skip
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    torch.save({"model": {}}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="not a checkpoint of nano's concepts"):
        nano_concepts.load(tmp_path / "other.pth")


@pytest.mark.slow
def test_weights_are_recovered_from_the_shipped_graphs():
    """Against the graph in ONNX Runtime, whose weights are rounded to half."""
    import onnxruntime

    from export.models.samwise import Samwise
    from export.nano.recover import recover_sam
    from export.networks import sam2

    model = Samwise(SIZES["small"])
    model.sam = recover_sam(NANO)
    for stage in sam2.stages(model):
        inputs = stage.sample()
        path = NANO / "graphs" / f"{stage.name}.onnx"
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        half = {i.name for i in session.get_inputs() if i.type == "tensor(float16)"}
        given = {name: (x.half() if name in half else x).numpy() for name, x in inputs.items()}
        want = stage.run(inputs)
        for output, value in zip(session.get_outputs(), session.run(None, given), strict=True):
            a, b = value.astype(np.float64), want[output.name].numpy().astype(np.float64)
            assert np.linalg.norm(a - b) <= 3e-3 * np.linalg.norm(b), (stage.name, output.name)
