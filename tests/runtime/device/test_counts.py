"""What a frame costs on a device with its own memory, counted by the fake driver for every network."""

import ast
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import runtime
from helpers import numpy_sam3, toy_refersam
from helpers.fake_cuda import FakeCudaBackend, FakeDriver
from helpers.fake_gpu import write_image_kernels
from helpers.samwise_schedule import A, B, frames
from helpers.toy_samwise import WINDOW
from runtime import Points
from runtime.bundle.bundle import choose
from runtime.device.array import merged
from runtime.device.cuda import Cuda
from runtime.models.warm import warm

ROOT = Path(__file__).resolve().parents[3]
CLICKS = [Points([(8, 5)], [1]), Points([(9, 6)], [1])]
COPIES = ("upload", "download", "wait")
MEMORY = ("device", "pinned")
CLICKED = ("sam2", "sam3", "sam2 kernels", "sam3 kernels")


def measure(engine, steps, warm, count):
    """Calls of the driver per step, after the first `warm` steps."""
    calls = engine.backend.device.driver.calls
    for _ in range(warm):
        next(steps)
    before = Counter(calls)
    for _ in range(count):
        next(steps)
    spent = Counter(calls)
    spent.subtract(before)
    return {name: number / count for name, number in spent.items()}


def samwise(engine, objects):
    with engine.session([runtime.Text(tokens=t) for t in (A, B)[:objects]]) as session:
        for frame in frames(64, seed=3):
            yield session.push(frame)


def live(engine, objects):
    with engine.live() as session:
        for i, frame in enumerate(frames(64)):
            yield from session.push(frame, dict(enumerate(CLICKS[:objects])) if i == 0 else None)


def fed(engine, objects):
    """Frames of a live session in steps; what other sessions compute between them overwrites what it decoded ahead."""
    with engine.live() as session:
        for i, frame in enumerate(frames(64, seed=objects)):
            steps = session.feed(frame, dict(enumerate(CLICKS[:objects])) if i == 0 else None)
            yield from (step if isinstance(step, runtime.Result) else None for step in steps)


def video(engine, objects):
    with engine.video(frames(64)) as session:
        for obj, click in enumerate(CLICKS[:objects]):
            session.add_points(0, obj, click.points, click.labels)
        yield from session.propagate()


def image(engine, objects):
    predictor = engine.image(frames(1)[0])
    clicks = CLICKS[:objects]
    while True:
        yield predictor.predict([click.points for click in clicks], [click.labels for click in clicks])


@pytest.fixture(scope="module")
def loaded():
    """Engines by network, for tests that may have those of other tests."""
    return {}


@pytest.fixture
def shared(engines, loaded):
    def engine(network):
        if network not in loaded:
            loaded[network] = engines[network]()
        return loaded[network]

    return engine


@pytest.fixture
def engines(toy, toy_sam2_bundle, numpy_sam3_bundle, tmp_path):
    def with_kernels(bundle):
        folder = shutil.copytree(bundle, tmp_path / bundle.name)
        write_image_kernels(folder, FakeDriver.capability)
        return choose(folder)

    return {
        "samwise": lambda: runtime.Engine(choose(toy), FakeCudaBackend()),
        "sam2": lambda: runtime.Engine(choose(toy_sam2_bundle), FakeCudaBackend()),
        "sam3": lambda: runtime.Engine(choose(numpy_sam3_bundle), numpy_sam3.FakeCudaNumpyBackend()),
        "sam2 kernels": lambda: runtime.Engine(with_kernels(toy_sam2_bundle), FakeCudaBackend(), kernels="on"),
        "sam3 kernels": lambda: runtime.Engine(
            with_kernels(numpy_sam3_bundle), numpy_sam3.FakeCudaNumpyBackend(), kernels="on"
        ),
    }


@pytest.mark.parametrize("objects", [1, 2])
@pytest.mark.parametrize(
    "network, task", [("samwise", samwise), *((network, task) for network in CLICKED for task in (live, video, image))]
)
def test_one_upload_one_download_one_wait_per_frame_and_no_allocation(shared, network, task, objects):
    """Where frames are known, objects keep one low-res mask and one map per frame: chunks of maps are allocated."""
    engine = shared(network)
    steps = task(engine, objects)
    spent = measure(engine, steps, 6 * WINDOW, 4 * WINDOW)
    assert [spent[name] for name in COPIES] == [1, 1, 1]
    assert spent["pinned"] == 0 and (task is video or spent["device"] == 0)
    assert spent.get("stage", 0) == spent.get("capture", 0) == 0, "the host launches nothing but graphs"
    if task in (live, video):
        wanted = {"sam2": 4, "sam3": 5}[network.split()[0]]
        assert spent["launch"] == wanted, "encoder, memory attention, decoder, memory encoder"
    if "kernels" in network:
        assert (spent.get("preprocess", 0), spent["postprocess"]) == (task is not image, 1)


def concepts(engine, tokens, picture):
    session = engine.session([runtime.Concept(tokens=[t]) for t in tokens], temporal_disambiguation=False)
    with session:
        while True:
            yield session.push(picture)


@pytest.mark.parametrize(
    "tokens, quadrants, expected",
    [([1], [0], (3, 3, 2)), ([1], [0, 3], (3, 3, 2)), ([1, 2], [0, 3], (3, 3, 2)), ([1, 2, 3], [], (1, 2, 2))],
)
def test_a_frame_with_concepts_waits_for_detections_and_for_their_masks(shared, tokens, quadrants, expected):
    """Which queries have masks is decided on the host, and so is what the tracks remember: an upload each. Tracks are
    read with the detections. A batch holds two concepts; one wait where nothing is found."""
    engine = shared("sam3")
    spent = measure(engine, concepts(engine, tokens, numpy_sam3.picture(*quadrants)), 24, 16)
    assert tuple(spent[name] for name in COPIES) == expected
    assert spent["device"] == spent["pinned"] == 0


@pytest.mark.parametrize("tokens, quadrants", [([1], [0, 3]), ([1, 2], [0, 3])])
def test_kernels_make_the_masks_of_concepts(shared, loaded, numpy_sam3_bundle, tokens, quadrants):
    """Masks of objects are cleaned on the host: their logits go up and their bits come back, with a wait, for each
    concept that has objects."""
    engine = shared("sam3 kernels")
    if ("host", "sam3") not in loaded:
        loaded["host", "sam3"] = numpy_sam3.load(numpy_sam3_bundle)
    picture = numpy_sam3.picture(*quadrants)
    spent = measure(engine, concepts(engine, tokens, picture), 24, 16)
    assert tuple(spent[name] for name in COPIES) == (4, 4, 3)
    assert (spent["preprocess"], spent["postprocess"]) == (1, 1)
    assert spent["device"] == spent["pinned"] == 0
    prompts = [runtime.Concept(tokens=[t]) for t in tokens]
    found, expected = (
        [*next(concepts(e, tokens, picture)), *e.image(picture).detect(prompts, semantic=True)]
        for e in (engine, loaded["host", "sam3"])
    )
    assert any(result.masks.any() for result in expected)
    for result, wanted in zip(found, expected, strict=True):
        np.testing.assert_array_equal(result.masks, wanted.masks)
        np.testing.assert_array_equal(result.semantic_mask, wanted.semantic_mask)


@pytest.mark.parametrize("task, network", [(live, "sam2"), (live, "sam3"), (video, "sam2"), (video, "sam3")])
def test_graphs_of_memory_that_fills_up_are_shared_by_sessions(engines, task, network):
    """Attention has another shape on each of the first frames: run once, recorded in the second session, replayed from
    the first frame on in the third."""
    engine = engines[network]()
    calls = engine.backend.device.driver.calls
    stages, results = [], []
    for _ in range(3):
        before, steps = Counter(calls), task(engine, 1)
        results.append([next(steps).masks for _ in range(12)])
        stages.append(calls["stage"] - before["stage"])
        steps.close()
    assert stages[0] > stages[1] >= stages[2] == 0
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize("objects", [1, 2])
def test_graphs_of_frames_are_shared_by_sessions_while_memory_fills_up(engines, objects):
    """The mask decoder of one session alone is not run again in the third: every frame is a graph from the first on."""
    engine = engines["samwise"]()
    calls, results = [], []
    for _ in range(3):
        before, found = engine.stages["mask_decoder"].calls, samwise(engine, objects)
        results.append([r.masks for _ in range(WINDOW) for r in next(found)])
        calls.append(engine.stages["mask_decoder"].calls - before)
        found.close()
    assert calls[0] > 0 == calls[2] and calls[1] == calls[0], "run, recorded, replayed"
    np.testing.assert_array_equal(results[0], results[2])


def test_sessions_of_concepts_share_graphs(engines, numpy_sam3_bundle):
    """What the detector computes of a frame is read in its step only, so later sessions replay from the start."""
    engine, host = engines["sam3"](), numpy_sam3.load(numpy_sam3_bundle)
    pictures = [numpy_sam3.picture(i % 4, 3) for i in range(8)]

    def in_turns(engine, count):
        prompts = [runtime.Concept(tokens=[1])]
        sessions = [engine.session(prompts, temporal_disambiguation=False) for _ in range(count)]
        found = [[] for _ in sessions]
        for turn in range(len(pictures) + count):
            for i, session in enumerate(sessions):
                if 0 <= turn - i < len(pictures):
                    found[i] += session.push(pictures[turn - i])
        for session in sessions:
            session.close()
        return found

    in_turns(engine, 1)
    in_turns(engine, 1)
    detector = ("image_encoder", "fine_levels", "detr", "mask_head", "tracker_neck")
    before = [engine.stages[name].calls for name in detector]
    found, expected = in_turns(engine, 3), in_turns(host, 3)
    assert [engine.stages[name].calls for name in detector] == before
    for results, wanted in zip(found, expected, strict=True):
        assert any(result.masks.any() for result in wanted)
        for result, other in zip(results, wanted, strict=True):
            np.testing.assert_array_equal(result.masks, other.masks)
            assert result.object_ids == other.object_ids


def test_a_steady_clip_launches_nothing_but_graphs(shared):
    engine = shared("samwise")
    spent = measure(engine, samwise(engine, 2), 6 * WINDOW, 4 * WINDOW)
    assert spent["stage"] == 0 and spent["launch"] == 2.5, "first stage, frame; two sentences per clip"


@pytest.mark.parametrize("safe", [None, True])
@pytest.mark.parametrize("kernels", ["off", "on"])
def test_sentences_on_an_image_are_one_download(tmp_path, kernels, safe):
    """The image is uploaded when it is given, the lengths of the sentences when they are. Stages of earlier exports are
    not recorded; others find every image and sentence at one place."""
    folder = toy_refersam.build(tmp_path / "refersam", graph_safe=safe)
    write_image_kernels(folder, FakeDriver.capability)
    engine = runtime.Engine(choose(folder), FakeCudaBackend(), kernels=kernels)
    texts = [runtime.Text(tokens=[0, 5, 2]), runtime.Text(tokens=[0, 9, 7, 8, 2])]
    steps = (engine.image(frame).refer(texts) for frame in frames(6))
    spent = measure(engine, steps, 3, 3)
    assert [spent[name] for name in COPIES] == [2, 1, 1]
    assert [spent.get(name, 0) for name in ("preprocess", "postprocess")] == [kernels == "on"] * 2
    assert [spent.get(name, 0) for name in ("stage", "launch")] == ([0, 2] if safe else [2, 0])
    host = runtime.load(folder, backend="ort", verify=False)
    for frame in (*frames(2), frames(1)[0][:, :7], np.zeros((1, 3, 3), np.uint8)):
        found, expected = (e.image(frame).refer(texts) for e in (engine, host))
        np.testing.assert_array_equal(found.masks, expected.masks)
        np.testing.assert_array_equal(found.boxes, expected.boxes)
    images = [[e.image(frame) for frame in frames(3)] for e in (engine, host)]
    for turn in (0, 2, 1, 0, 0):  # the maps of an earlier image, and another number of sentences, and a new one
        given = [*texts[: 1 + turn % 2], runtime.Text(tokens=[0, 4 + turn, 2])]
        found, expected = (of[turn].refer(given) for of in images)
        np.testing.assert_array_equal(found.masks, expected.masks)


@pytest.mark.parametrize("task", [live, fed, video, image])
@pytest.mark.parametrize("network", CLICKED)
def test_clicks_give_the_masks_of_the_host(shared, loaded, toy_sam2_bundle, numpy_sam3_bundle, network, task):
    """Of two sessions in turn."""
    host = network.split()[0]
    if ("host", host) not in loaded:
        is_sam2 = host == "sam2"
        loaded["host", host] = (
            runtime.load(toy_sam2_bundle, backend="ort") if is_sam2 else numpy_sam3.load(numpy_sam3_bundle)
        )

    def results(engine):
        steps = [task(engine, 2), task(engine, 1)]
        found = [next(step) for _ in range(24) for step in steps]
        return [result for result in found if result is not None]

    for found, expected in zip(results(shared(network)), results(loaded["host", host]), strict=True):
        np.testing.assert_array_equal(found.masks, expected.masks)
        if isinstance(found, runtime.Result):
            np.testing.assert_array_equal(found.boxes, expected.boxes)
        np.testing.assert_allclose(found.scores, expected.scores, 1e-5)


@pytest.mark.parametrize(
    "graphs, objects, options",
    [
        ("auto", 1, {}),
        ("auto", 2, {}),
        ("off", 2, {}),
        ("auto", 2, {"conditional_memory": False}),
        ("off", 1, {"memory": False}),
    ],
)
def test_frames_that_are_launched_ahead_have_the_masks_of_frames_that_are_not(toy, graphs, objects, options):
    """Also where the conditional memory switches, which makes the frame behind it another one than was guessed."""
    prompts, video = [runtime.Text(tokens=t) for t in (A, B)[:objects]], frames(6 * WINDOW + 3, seed=5)
    engine = runtime.Engine(choose(toy), FakeCudaBackend(), graphs=graphs)
    results, calls = [], []
    for ahead in (False, True):
        before = Counter(engine.backend.device.driver.calls)
        with engine.session(prompts, logits=True, decode_ahead=ahead, **options) as session:
            results.append(list(session.stream(video)))
        calls.append(Counter(engine.backend.device.driver.calls))
        calls[-1].subtract(before)
    for found, expected in zip(*results, strict=True):
        for name in ("masks", "low_res_logits", "score_logits", "boxes"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    plain, ahead = calls
    assert plain["behind"] == 0
    assert ahead["behind"] == 6 * (WINDOW - 1) + 2, "all frames of a clip but the last have one behind them"
    assert ahead["wait"] == plain["wait"] and ahead["upload"] == plain["upload"]
    again = ahead["download"] - plain["download"]
    assert again == 0 if options else again > 0, "frames behind a switch are decoded again"


def test_there_are_no_device_logits_of_frames_that_are_launched_ahead(shared):
    with shared("samwise").session([runtime.Text(tokens=A)], decode_ahead=True) as session:
        list(session.stream(frames(3)))
        with pytest.raises(runtime.UserError, match="remove decode_ahead"):
            _ = session.device_logits


@pytest.mark.parametrize("quadrants, masks", [([0], 1), ([0, 3], 2), ([0, 1, 2, 3], 4)])
def test_new_objects_of_a_concept_cost_as_many_waits_as_one(shared, quadrants, masks):
    """The first frame is searched and its masks prompt the objects: detections, masks, prompts, pointers."""
    engine = shared("sam3")
    steps = concepts(engine, [1], numpy_sam3.picture(*quadrants))
    spent = measure(engine, steps, 0, 1)
    assert spent["wait"] == 4


def test_neighbouring_blocks_are_one_copy():
    device = Cuda(FakeDriver())
    chunk, other = device.empty((4, 2, 3), "float32"), device.empty((2, 2, 3), "float32")
    runs = list(merged([chunk[0], chunk[1], chunk[3], other[0], other[1]]))
    assert [(first, stop, run.shape) for first, stop, run in runs] == [
        (0, 2, (2, 2, 3)),
        (2, 3, (1, 2, 3)),
        (3, 5, (2, 2, 3)),
    ]
    assert [run.ptr for _, _, run in runs] == [chunk.ptr, chunk[3].ptr, other.ptr]
    host = np.zeros((2, 3))
    assert [(first, stop, run.shape) for first, stop, run in merged([host[0], host[1]])] == [
        (0, 1, (1, 3)),
        (1, 2, (1, 3)),
    ]


def test_the_delaying_driver_is_the_only_fake_driver():
    """One that ran copies at once would not see a race."""
    found = []
    for path in [*(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if "def synchronize" in text else ():
            if isinstance(node, ast.ClassDef):
                methods = {member.name for member in node.body if isinstance(member, ast.FunctionDef)}
                found += [(path.name, node.name)] if {"allocate", "synchronize", "copy"} <= methods else []
    assert found == [("fake_cuda.py", "FakeDriver")]


def concept(engine, objects):
    del objects
    return concepts(engine, [1], numpy_sam3.picture(0))


@pytest.mark.parametrize("task, network", [(samwise, "samwise"), (live, "sam2"), (live, "sam3"), (concept, "sam3")])
def test_a_warm_engine_has_run_what_the_first_frames_need(engines, task, network):
    """Its first video launches graphs only: of SAMWISE while memory fills up, of concepts until one is found, for which
    noise will not do. The masks are those of another engine."""
    masks, stages = [], []
    for is_warm in (True, False):
        engine = engines[network]()
        if is_warm:
            warm(engine.networks, engine.bundle.manifest)
            assert engine.networks.memory_rows[0] == 0
        counted = engine.stages["mask_decoder" if network == "samwise" else "memory_attention"]
        before, steps = counted.calls, task(engine, 1)
        found = [next(steps) for _ in range(1 if task is concept else WINDOW)]
        steps.close()
        stages.append(counted.calls - before)
        masks.append([r.masks for step in found for r in (step if isinstance(step, list) else [step])])
    assert stages[0] == 0 and (task is concept or stages[1] > 0)
    for found, expected in zip(*masks, strict=True):
        np.testing.assert_array_equal(found, expected)
