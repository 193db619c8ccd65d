"""SAM 2's video predictor on a toy bundle, against its rules written down as plainly as possible: one object at a time,
dicts by frame, nothing shared, nothing batched."""

import random

import numpy as np
import pytest

import runtime
from helpers import toy_sam2
from runtime.imaging.morphology import fill_holes
from runtime.imaging.upsample import MaskUpsampler
from runtime.tracking.prompt_inputs import square_mask

HEIGHT, WIDTH = 20, 30


def clip(count, seed=0):
    return np.random.default_rng(seed).integers(40, 255, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


class Plain:
    """The predictor. An output is a dict; stores are as in the description of the official one."""

    def __init__(
        self,
        frames,
        fill_hole_area=8,
        non_overlap_masks=False,
        max_cond_frames_in_attn=None,
        memory_temporal_stride=1,
        add_all_frames_to_correct_as_cond=False,
    ):
        self.pictures = [toy_sam2.Arithmetic(f) for f in frames]
        self.fill, self.alone, self.most = fill_hole_area, non_overlap_masks, max_cond_frames_in_attn
        self.stride, self.all_cond = memory_temporal_stride, add_all_frames_to_correct_as_cond
        self.objects = {}

    def new(self):
        return {"clicks": {}, "cond": {}, "other": {}, "new_cond": {}, "new_other": {}, "tracked": {}}

    def prompt(self, frame, obj, xy, labels, clear_old):
        o = self.objects.setdefault(obj, self.new())
        xy = [(x / WIDTH * toy_sam2.SIZE, y / HEIGHT * toy_sam2.SIZE) for x, y in xy]
        old = ([], []) if clear_old else o["clicks"].get(frame, ([], []))
        points, labels = old[0] + xy, old[1] + list(labels)
        o["clicks"][frame] = points, labels
        first = frame not in o["tracked"]
        key = "cond" if first or self.all_cond else "other"
        before = o["new_" + key].get(frame) or o["cond"].get(frame) or o["other"].get(frame)
        picture = self.pictures[frame]
        map_, seen = (picture.embedding + 0.1, (0, 0)) if first else self.look(o, frame, o["tracked"][frame])
        logits = None if before is None else np.clip(before["low"], -32, 32)
        out = self.outcome(picture.decode(map_, points, labels, len(labels) <= 1, logits), seen)
        o["new_" + key][frame] = out
        return self.shown(frame, key)

    def mask(self, frame, obj, mask):
        o = self.objects.setdefault(obj, self.new())
        o["clicks"].pop(frame, None)
        picture, key = self.pictures[frame], "cond" if frame not in o["tracked"] or self.all_cond else "other"
        small = mask.reshape(8, 4, 8, 4).mean((1, 3))
        _, _, _, pointer = picture.decode(picture.embedding, [], [], False, small)
        o["new_" + key][frame] = self.outcome((20.0 * small - 10, -1, 10.0, pointer), (0, 0))
        return self.shown(frame, key)

    def outcome(self, decoded, seen):
        raw, selected, score, pointer = decoded
        return {
            "raw": raw,
            "low": fill_holes(raw, self.fill),
            "selected": selected,
            "score": score,
            "obj_ptr": pointer,
            "seen": seen,
        }

    def look(self, o, frame, reverse):
        """The conditioned map, and how many tokens of memory and of pointers were seen."""
        sign, cond = -1 if reverse else 1, o["cond"]
        near = dict(cond)
        if self.most is not None and len(cond) > self.most:
            before, after = [t for t in cond if t < frame], [t for t in cond if t >= frame]
            keep = ([max(before)] if before else []) + ([min(after)] if after else [])
            keep += sorted((t for t in cond if t not in keep), key=lambda t: abs(t - frame))[: self.most - len(keep)]
            near = {t: cond[t] for t in keep}
        far = {t: x for t, x in cond.items() if t not in near}
        memory = [(x["memory"], toy_sam2.SLOTS - 1) for x in near.values()]
        r = self.stride
        for back in range(toy_sam2.SLOTS - 1, 0, -1):
            if back == 1:
                t = frame - sign
            elif reverse:
                t = -(-(frame + 2) // r) * r + (back - 2) * r
            else:
                t = (frame - 2) // r * r - (back - 2) * r
            x = o["other"].get(t) or far.get(t)
            if x:
                memory.append((x["memory"], back - 1))
        longest = min(toy_sam2.POINTERS, len(self.pictures)) - 1
        pointers = [
            (x["obj_ptr"], (frame - t) * sign / max(longest, 1)) for t, x in near.items() if (frame - t) * sign >= 0
        ]
        for distance in range(1, longest + 1):
            t = frame - sign * distance
            x = o["other"].get(t) or far.get(t)
            if 0 <= t < len(self.pictures) and x:
                pointers.append((x["obj_ptr"], distance / max(longest, 1)))
        return self.pictures[frame].attend(memory, pointers), (4 * len(memory), 3 * len(pointers))

    @property
    def ready(self):
        return bool(self.objects) and all(o["cond"] or o["new_cond"] for o in self.objects.values())

    def commit(self):
        for o in self.objects.values():
            for key in ("other", "cond"):
                for frame, out in o["new_" + key].items():
                    out["memory"] = self.pictures[frame].remember(out["low"], True, out["score"])
                    o[key][frame] = out
                o["new_" + key].clear()
            for frame in o["cond"]:
                o["other"].pop(frame, None)

    def propagate(self, start_frame=None, max_frames=None, reverse=False):
        self.commit()
        last = len(self.pictures) - 1
        start = min(t for o in self.objects.values() for t in o["cond"]) if start_frame is None else start_frame
        most = len(self.pictures) if max_frames is None else max_frames
        order = range(start, max(start - most, 0) - 1, -1) if reverse else range(start, min(start + most, last) + 1)
        for frame in order if start or not reverse else ():
            for o in self.objects.values():
                if frame not in o["cond"]:
                    map_, seen = self.look(o, frame, reverse)
                    out = self.outcome(self.pictures[frame].decode(map_, [], [], True), seen)
                    out["memory"] = self.pictures[frame].remember(out["raw"], False, out["score"])
                    o["other"][frame] = out
                o["tracked"][frame] = reverse
            yield frame, {obj: o["cond"].get(frame) or o["other"][frame] for obj, o in self.objects.items()}

    def clear(self, frame, obj):
        o = self.objects[obj]
        for key in ("clicks", "new_cond", "new_other"):
            o[key].pop(frame, None)
        out = o["cond"].pop(frame, None)
        if out:
            o["other"][frame] = out
            o["tracked"].pop(frame, None)
        return self.shown(frame, "cond" if any(frame in x["new_cond"] for x in self.objects.values()) else "other")

    def shown(self, frame, key):
        return {
            obj: o["new_" + key].get(frame) or o["cond"].get(frame) or o["other"].get(frame)
            for obj, o in self.objects.items()
        }


def compare(result, shown, alone=False):
    assert result.object_ids == tuple(shown)
    low = np.stack([np.full((8, 8), -1024.0) if x is None else x["low"] for x in shown.values()])
    np.testing.assert_allclose(result.low_res_logits, low, rtol=1e-4, atol=1e-4)
    full = MaskUpsampler(8, 8, (8, 8), (HEIGHT, WIDTH)).logits(result.low_res_logits)
    masks = full > 0
    if alone:
        masks &= full.argmax(0) == np.arange(len(full))[:, None, None]
    assert (result.masks == masks).all()
    for score, x in zip(result.score_logits, shown.values(), strict=True):
        assert x is None or score == pytest.approx(x["score"], abs=1e-4)


def play(engine, frames, script, **options):
    """A script of calls through both; every result and everything stored must agree."""
    plain, alone = Plain(frames, **options), options.get("non_overlap_masks", False)
    with engine.video(frames, logits=True, **options) as video:
        for call, *args in script:
            if call == "points":
                frame, obj, xy, labels, clear = args
                compare(
                    video.add_points(frame, obj, xy, labels, clear), plain.prompt(frame, obj, xy, labels, clear), alone
                )
            elif call == "box":
                frame, obj, box = args
                corners = [tuple(box[:2]), tuple(box[2:])]
                compare(video.add_box(frame, obj, box), plain.prompt(frame, obj, corners, [2, 3], True), alone)
            elif call == "mask":
                frame, obj, row = args
                mask = np.arange(HEIGHT)[:, None].repeat(WIDTH, 1) >= row
                compare(
                    video.add_mask(frame, obj, mask), plain.mask(frame, obj, square_mask(mask, toy_sam2.SIZE)), alone
                )
            elif call == "propagate" and not plain.ready:
                with pytest.raises(runtime.PromptError):
                    next(video.propagate(*args))
            elif call == "propagate":
                for result, (frame, shown) in zip(video.propagate(*args), plain.propagate(*args), strict=True):
                    assert result.frame_index == frame
                    compare(result, shown, alone)
            elif call == "clear":
                compare(video.clear_prompts(*args), plain.clear(*args), alone)
            elif call == "remove":
                del plain.objects[args[0]]
                video.remove_object(args[0])
            elif call == "reset":
                plain.objects.clear()
                video.reset()
            check_stores(video, plain)


def check_stores(video, plain):
    assert video.object_ids == tuple(plain.objects)
    for obj, o in plain.objects.items():
        track = video.state(obj)
        stores = (
            ("cond_outputs", "cond"),
            ("non_cond_outputs", "other"),
            ("pending_cond_outputs", "new_cond"),
            ("pending_non_cond_outputs", "new_other"),
        )
        blocks = []
        for ours, theirs in stores:
            store = getattr(track, ours)
            assert set(store) == set(o[theirs])
            for frame, out in o[theirs].items():
                output = store[frame]
                assert (output.selected, output.memory_tokens) == (out["selected"], out["seen"])
                np.testing.assert_allclose(output.obj_ptr, out["obj_ptr"], rtol=1e-4, atol=1e-4)
                if output.block is not None:
                    blocks.append(output.block.number)
                    np.testing.assert_allclose(output.block.array, out["memory"], rtol=1e-4, atol=1e-4)
        assert list(track.cond_outputs) == list(o["cond"]), "order of commitment"
        assert track.frames_tracked == o["tracked"]
        assert len(set(blocks)) == len(blocks), "two outputs share a block"


@pytest.fixture
def engine(toy_sam2_bundle):
    with runtime.load(toy_sam2_bundle) as engine:
        yield engine


CLICK = ("points", 0, 1, [(10, 8)], [1], True)


@pytest.mark.parametrize(
    "script",
    [
        [CLICK, ("propagate",)],
        [CLICK, ("points", 0, 1, [(20, 5), (3, 3)], [0, 1], False), ("propagate",)],
        [("box", 2, 1, (4, 4, 20, 15)), ("points", 2, 1, [(9, 9)], [1], False), ("propagate",)],
        [("mask", 3, 1, 10), ("propagate",), ("propagate", 3, None, True)],
        [CLICK, ("propagate",), ("points", 5, 1, [(12, 12)], [1], True), ("propagate",)],
        [
            CLICK,
            ("propagate",),
            ("points", 5, 1, [(12, 12)], [1], True),
            ("points", 5, 1, [(2, 2)], [0], False),
            ("propagate", 6, None, False),
        ],
        [CLICK, ("propagate",), ("points", 0, 1, [(25, 15)], [1], False), ("propagate",)],
        [("points", 6, 1, [(10, 8)], [1], True), ("propagate", 6, None, True), ("propagate", 6, 2, False)],
        [("points", 5, 1, [(10, 8)], [1], True), ("propagate", 0, None, False)],
        [CLICK, ("propagate",), ("points", 3, 2, [(15, 8)], [1], True), ("propagate",), ("propagate", 7, None, True)],
        [
            CLICK,
            ("points", 4, 1, [(9, 9)], [1], True),
            ("box", 7, 1, (1, 1, 9, 9)),
            ("propagate",),
            ("clear", 4, 1),
            ("propagate", 2, 3, False),
        ],
        [
            CLICK,
            ("points", 0, 2, [(5, 5)], [1], True),
            ("propagate", None, 3, False),
            ("remove", 1),
            ("propagate", 3, None, False),
        ],
        [CLICK, ("propagate", 0, None, True)],
        [CLICK, ("propagate",), ("reset",), ("points", 2, 1, [(5, 5)], [1], True), ("propagate",)],
        [CLICK, ("propagate", 0, 0, False), ("mask", 0, 1, 5), ("propagate",)],
    ],
    ids=range(15),
)
def test_scripts(engine, script):
    play(engine, clip(9), script)


def test_absent_objects(engine):
    frames = clip(9)
    frames[3:6] //= 6
    play(engine, frames, [CLICK, ("propagate",)])
    assert toy_sam2.Arithmetic(frames[4]).embedding.mean() < -0.4, "the frame is not dark enough to lose the object"


@pytest.mark.parametrize("seed", range(40))
def test_random_scripts(engine, seed):
    draw = random.Random(seed)
    count = draw.choice([1, 3, 6, 12])
    frames = clip(count, seed)
    if draw.random() < 0.3:
        frames[count // 2] //= 6
    options = {
        "fill_hole_area": draw.choice([0, 2, 8]),
        "non_overlap_masks": draw.random() < 0.3,
        "max_cond_frames_in_attn": draw.choice([None, 2, 3]),
        "memory_temporal_stride": draw.choice([1, 2, 3]),
        "add_all_frames_to_correct_as_cond": draw.random() < 0.3,
    }
    play(engine, frames, random_script(draw, count), **options)


def random_script(draw, count):
    script, known = [], set()
    for _ in range(draw.randint(4, 14)):
        frame, obj = draw.randrange(count), draw.choice([1, 2, 5])
        call = draw.choice(["points"] * 4 + ["box", "mask", "clear", "remove"] + ["propagate"] * 4)
        xy = [(round(draw.uniform(0, WIDTH), 2), round(draw.uniform(0, HEIGHT), 2)) for _ in range(draw.randint(1, 2))]
        if call == "points":
            script.append((call, frame, obj, xy, [draw.randint(0, 1) for _ in xy], draw.random() < 0.6))
        elif call == "box":
            script.append((call, frame, obj, (xy[0][0] / 2, xy[0][1] / 2, xy[0][0] / 2 + 9, xy[0][1] / 2 + 9)))
        elif call == "mask":
            script.append((call, frame, obj, draw.randrange(2, HEIGHT - 2)))
        elif call == "remove" and obj in known:
            script.append((call, obj))
            known.remove(obj)
        elif call == "clear" and obj in known:
            script.append(
                (call, draw.choice([frame, *(s[1] for s in script if s[0] == "points" and s[2] == obj)]), obj)
            )
        elif call == "propagate":
            start = draw.choice([None, draw.randrange(count)])
            script.append((call, start, draw.choice([None, 0, 3]), draw.random() < 0.4))
        if call in ("points", "box", "mask"):
            known.add(obj)
    return script


def test_objects_added_removed_and_refined_during_propagation(engine):
    frames = clip(6)
    with engine.video(frames) as video:
        video.add_points(0, 1, [(5, 5)], [1])
        video.add_points(0, 2, [(9, 9)], [1])
        steps = video.propagate()
        assert next(steps).object_ids == (1, 2)
        video.add_points(0, 3, [(9, 3)], [1])
        assert next(steps).object_ids == (1, 2), "an object counts from the next propagation on"
        video.remove_object(1)
        assert next(steps).object_ids == (2,), "a removed object is left out at once"
        video.add_points(1, 2, [(4, 4)], [0])
        assert [r.object_ids for r in steps] == [(2,)] * 3
        assert next(video.propagate()).object_ids == (2, 3)


def test_objects_are_one_batch(engine):
    with engine.video(clip(6)) as video:
        for obj in (1, 2, 3):
            video.add_points(0, obj, [(5 * obj, 5)], [1])
        before = {name: calls for name, (calls, _) in engine.timings.items()}
        list(video.propagate())
        calls = {name: calls - before[name] for name, (calls, _) in engine.timings.items()}
    # batches of two, as the toy's bounds say: three objects are two batches; prompts of tracked frames are encoded once
    assert calls == {
        "image_encoder": 5,
        "memory_attention": 10,
        "prompt_decoder": 10,
        "prompt_memory_encoder": 12,
        "prompt_encoder": 1,
        "mask_prompt": 0,
    }


def test_unequal_memories_in_one_batch_equal_one_at_a_time(engine):
    frames = clip(9)
    prompts = [(0, 1, [(5, 5)], [1]), (4, 2, [(9, 9), (2, 2)], [1, 0]), (2, 3, [(20, 9)], [1]), (6, 3, [(1, 1)], [1])]

    def run(objects):
        with engine.video(frames, logits=True) as video:
            for prompt in prompts:
                if prompt[1] in objects:
                    video.add_points(*prompt)
            return {
                (r.frame_index, obj): r.low_res_logits[i]
                for r in video.propagate(0)
                for i, obj in enumerate(r.object_ids)
            }

    together = run({1, 2, 3})
    for obj in (1, 2, 3):
        for (frame, _), logits in run({obj}).items():
            np.testing.assert_allclose(together[frame, obj], logits, rtol=1e-5, atol=1e-5)


def test_blocks_are_reused(engine):
    pool = engine.networks["sam2"].memory_pool()
    for _ in range(3):
        with engine.video(clip(40)) as video:
            video.add_points(0, 1, [(5, 5)], [1])
            for _ in range(3):
                list(video.propagate())
        assert pool.in_use == 0
        assert pool.num_chunks == 2, "40 frames are two chunks of 32, the first time and ever after"


@pytest.mark.parametrize(
    "call, error",
    [
        (lambda v: v.add_points(9, 1, [(1, 1)], [1]), "frame 9 is outside"),
        (lambda v: v.add_points(-1, 1, [(1, 1)], [1]), "frame -1 is outside"),
        (lambda v: v.add_points(0.5, 1, [(1, 1)], [1]), "frame 0.5"),
        (lambda v: v.add_points(0, "cat", [(1, 1)], [1]), "whole number, not 'cat'"),
        (lambda v: v.add_points(0, 1, [(31, 1)], [1]), "outside the image, 30x20"),
        (lambda v: v.add_points(0, 1, [(1, 1)], [2]), "labels"),
        (lambda v: v.add_points(0, 1, [(1, 1)] * 9, [1] * 9), "9 points"),
        (lambda v: v.add_box(0, 1, (9, 9, 4, 4)), "left must be less"),
        (lambda v: v.add_mask(0, 1, np.zeros((HEIGHT, WIDTH), bool)), "empty"),
        (lambda v: v.add_mask(0, 1, np.ones((HEIGHT, 9), bool)), "the video 30x20"),
        (lambda v: v.clear_prompts(0, 7), "no object 7; objects: none"),
        (lambda v: v.remove_object(7), "no object 7"),
        (lambda v: list(v.propagate()), "no object to track"),
        (lambda v: v.propagate(start_frame=9), "start_frame 9"),
        (lambda v: v.propagate(max_frames=-1), "max_frames"),
    ],
)
def test_refused_prompts_change_nothing(engine, call, error):
    with engine.video(clip(4)) as video:
        with pytest.raises(runtime.PromptError, match=error) as caught:
            call(video)
        assert "\n" not in str(caught.value)
        assert video.object_ids == () and engine.networks["sam2"].memory_pool().in_use == 0


def test_an_object_without_prompts_is_named(engine):
    with engine.video(clip(4)) as video:
        video.add_points(0, 4, [(1, 1)], [1])
        video.clear_prompts(0, 4)
        with pytest.raises(runtime.PromptError, match="object 4 has no prompt left"):
            list(video.propagate())


def test_too_many_objects(toy_sam2_bundle):
    with runtime.load(toy_sam2_bundle, max_objects=2) as engine, engine.video(clip(3)) as video:
        for obj in (1, 2):
            video.add_points(0, obj, [(1, 1)], [1])
        with pytest.raises(runtime.UserError, match="max_objects"):
            video.add_points(0, 3, [(1, 1)], [1])
        assert video.object_ids == (1, 2)
        video.remove_object(1)
        video.add_points(0, 3, [(1, 1)], [1])
        assert [r.object_ids for r in video.propagate()] == [(2, 3)] * 3


def test_too_many_conditioning_frames(engine):
    with engine.video(clip(20)) as video:
        for frame in range(15):
            video.add_points(frame, 1, [(1, 1)], [1])
        with pytest.raises(runtime.UserError, match="max_cond_frames_in_attn"):
            list(video.propagate(15))
    with engine.video(clip(20), max_cond_frames_in_attn=5) as video:
        for frame in range(15):
            video.add_points(frame, 1, [(1, 1)], [1])
        assert len(list(video.propagate(15))) == 5


def test_sources_of_frames(engine, tmp_path):
    from PIL import Image

    frames = clip(3)
    paths = [tmp_path / f"{i:03}.png" for i in range(3)]
    for path, frame in zip(paths, frames, strict=True):
        Image.fromarray(frame).save(path)
    masks = []
    for source in (frames, list(frames), paths, str(tmp_path)):
        with engine.video(source) as video:
            assert video.num_frames == 3
            video.add_points(0, 1, [(5, 5)], [1])
            masks.append(np.stack([r.masks for r in video.propagate()]))
    assert all((m == masks[0]).all() for m in masks)
    for bad in (3, None, [], np.zeros((0, 4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8), [np.zeros((4, 4))]):
        with pytest.raises(runtime.VideoError):
            engine.video(bad)


@pytest.mark.parametrize(
    "options", [{"fill_hole_area": -1}, {"memory_temporal_stride": 0}, {"max_cond_frames_in_attn": 1}]
)
def test_bad_options(engine, options):
    with pytest.raises(runtime.UserError, match=next(iter(options))):
        engine.video(clip(2), **options)


def test_closed(engine):
    video = engine.video(clip(2))
    video.close()
    video.close()
    with pytest.raises(runtime.UserError, match="closed"):
        video.add_points(0, 1, [(1, 1)], [1])
