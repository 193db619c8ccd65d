"""Synthetic dataset: deterministic clips, unambiguous sentences, masks of visible pixels."""

import numpy as np
import pytest

from export.nano import grammar, scene_generator
from export.nano.dataset import SyntheticDataset
from export.nano.scene import motion_path
from export.nano.scene_generator import generate_scene
from export.nano.semantics import matches, visible_motions
from export.nano.sprites import tint
from helpers.placeholder_sprites import placeholder_sprites


@pytest.fixture(scope="module")
def dataset():
    return SyntheticDataset()


def scenes(count, frames, unseen=False, kinds=None):
    return [generate_scene(np.random.default_rng([9, i]), frames, unseen, kinds) for i in range(count)]


def test_same_seed_same_clip_and_splits_differ(dataset):
    a, b, c = dataset.clip("val", 3, 8), dataset.clip("val", 3, 8), dataset.clip("test", 3, 8)
    assert (a.frames == b.frames).all() and (a.instance_map == b.instance_map).all() and a.expressions == b.expressions
    assert a.frames.shape == (8, 128, 128, 3) and a.frames.dtype == np.uint8
    assert not (a.frames == c.frames).all()


@pytest.mark.parametrize("frames", [1, 8, 16])
def test_each_sentence_fits_one_object(frames):
    seen = set()
    for scene in scenes(60, frames):
        assert 3 <= len(scene.actors) <= 6
        for e in scene.expressions:
            seen.add(e.kind)
            assert [i for i, a in enumerate(scene.actors) if matches(scene, e, a)] == [e.target], e
    assert seen == (set(grammar.KINDS) if frames > 1 else {"noun", "colour", "size", "position", "relation"})


def test_few_intended_sentences_fail_verification(monkeypatch):
    """`unambiguous` confirms the construction; it must not replace it."""
    verdicts = []
    check = scene_generator.unambiguous
    monkeypatch.setattr(scene_generator, "unambiguous", lambda s, e: verdicts.append(check(s, e)) or verdicts[-1])
    scenes(150, 16)
    assert np.mean(verdicts) > 0.9


def test_held_out_pairs_are_not_in_training_clips():
    for scene in scenes(250, 8):
        for actor in scene.actors:
            assert not grammar.held_out(actor.noun, actor.colour) and not grammar.held_out(actor.noun, actor.motion)
    unseen = [e.unseen for scene in scenes(250, 8, unseen=True) for e in scene.expressions]
    assert 0.05 < np.mean(unseen) < 0.5
    pairs = [grammar.held_out(n, a) for n in grammar.NOUNS for a in grammar.ATTRIBUTES]
    assert 0.05 < np.mean(pairs) < 0.2


@pytest.mark.parametrize("motion", [*grammar.MOTIONS, "still"])
def test_motion_paths_show_their_motion(motion):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scene = generate_scene(rng, 16, True, ("noun",))
        actor, path = scene.actors[0], motion_path(rng, motion, 16)
        scene.camera[:] = 0
        actor.x, actor.y, actor.scale, actor.angle = path.x + 128, path.y + 128, path.scale, path.angle
        assert visible_motions(scene, actor) == (set() if motion == "still" else {motion})


def test_masks_hold_visible_pixels_only(dataset):
    clip = dataset.clip("val", 5, 8)
    e = clip.expressions[0]
    masks = clip.masks(e)
    assert masks.shape == (8, 128, 128) and masks.any()
    counts = [int((clip.instance_map == i).sum()) for i in range(len(clip.scene.actors) + 1)]
    assert sum(counts) == clip.instance_map.size
    for i in range(len(clip.scene.actors)):
        assert ((clip.instance_map == i + 1).sum(axis=(1, 2)) <= clip.areas[:, i]).all()


def test_an_object_in_front_hides_the_one_behind(dataset):
    for seed in range(200):
        clip = dataset.clip("train", seed, 1, ("relation",))
        found = [e for e in clip.expressions if e.attribute == "behind"]
        if found:
            hidden = clip.areas[0, found[0].target] - clip.masks(found[0]).sum()
            assert hidden > 0
            return
    pytest.fail("no 'behind' in 200 clips")


def test_sentences_about_absent_things(dataset):
    clip = dataset.clip("val", 1, 8)
    nouns = {a.noun for a in clip.scene.actors}
    rng = np.random.default_rng(0)
    for _ in range(50):
        text = grammar.absent_sentence(rng, nouns)
        assert not any(f"the {n} " in f"{text} " for n in nouns)


def test_tint_keeps_shape_and_changes_hue():
    sprite = placeholder_sprites()[0]
    red, blue = tint(sprite, "red"), tint(sprite, "blue")
    inside = sprite[..., 3] > 128
    assert (red[..., 3] == sprite[..., 3]).all()
    assert red[inside][:, 0].mean() > red[inside][:, 2].mean() + 50
    assert blue[inside][:, 2].mean() > blue[inside][:, 0].mean() + 50
