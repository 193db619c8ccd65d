"""Networks on the fake device, whose work runs when the host waits: the masks are those of the host."""

import numpy as np
import pytest

import runtime
from helpers import toy_refersam
from helpers.fake_cuda import FakeCudaBackend, FakeDriver
from runtime import Box, Points
from runtime.bundle.bundle import choose
from runtime.bundle.manifest import StageSpec, TensorSpec
from runtime.device.cuda import Cuda
from runtime.device.inputs import UploadingStage

CLICK = Points([(10, 8)], [1])


def clip(count=6, seed=0):
    return np.random.default_rng(seed).integers(40, 255, (count, 20, 30, 3), dtype=np.uint8)


def live(engine):
    with engine.live() as session:
        found = [session.push(f, {1: CLICK} if n == 0 else None)[0] for n, f in enumerate(clip(3))]
        found.append(session.correct({1: Points([(4, 4)], [0]), 2: Box((3, 3, 12, 12))}))
        return [*found, *(session.push(f)[0] for f in clip(3, 1))]


def video(engine):
    mask = np.zeros((20, 30), bool)
    mask[4:12, 5:20] = True
    with engine.video(clip()) as session:
        first = [session.add_points(2, 1, CLICK.points, CLICK.labels), session.add_mask(0, 2, mask)]
        return [*first, *session.propagate(), *session.propagate(reverse=True)]


def image(engine):
    predictor = engine.image(clip(1)[0])
    return [predictor.predict([(10, 8)], [1]), predictor.predict(box=(3, 3, 12, 12), multimask=False)]


@pytest.mark.parametrize("task", [live, video, image])
def test_sam2_gives_the_masks_of_the_host(toy_sam2_bundle, task):
    on_host = task(runtime.load(toy_sam2_bundle, backend="ort"))
    on_device = task(runtime.Engine(choose(toy_sam2_bundle), FakeCudaBackend(), 16))
    assert any(r.masks.any() and not r.masks.all() for r in on_host)
    for found, expected in zip(on_device, on_host, strict=True):
        np.testing.assert_array_equal(found.masks, expected.masks)
        np.testing.assert_allclose(found.scores, expected.scores, 1e-5)


def test_refersam_gives_the_masks_of_the_host(tmp_path):
    bundle = toy_refersam.build(tmp_path / "refersam")
    sentences = [runtime.Text(tokens=[0, 5, 2]), runtime.Text(tokens=[0, 9, 7, 8, 2])]

    def refer(engine):
        return [engine.image(frame).refer(sentences) for frame in clip(2)]

    on_host = refer(runtime.load(bundle, backend="ort"))
    on_device = refer(runtime.Engine(choose(bundle), FakeCudaBackend(), 16))
    for found, expected in zip(on_device, on_host, strict=True):
        np.testing.assert_array_equal(found.masks, expected.masks)
        np.testing.assert_allclose(found.scores, expected.scores, 1e-5)


def test_arrays_of_the_host_are_uploaded_in_one_copy_per_call():
    """Also where calls follow each other without a wait, before which no upload may be overwritten."""
    driver, seen = FakeDriver(), []
    device = Cuda(driver)

    class Echo:
        spec = StageSpec("echo", (TensorSpec("a", "int64", ("n",)), TensorSpec("b", "bool", ("n",))), ())

        def run(self, **arrays):
            kept = {name: device.empty(array.shape, array.dtype.name) for name, array in arrays.items()}
            for name, array in arrays.items():
                device.copy(array, kept[name])
            seen.append(kept)

    stage = UploadingStage(Echo(), device)
    own = device.constant(np.arange(3, dtype=np.int64))
    before = driver.calls["upload"]
    for n in range(4):
        stage.run(a=np.arange(n, 3 + n), b=np.array([n % 2 == 0] * 3)[::-1], c=own)
    assert driver.calls["upload"] == before + 4
    for n, kept in enumerate(seen):
        assert device.download(kept["a"]).tolist() == [n, n + 1, n + 2]
        assert device.download(kept["b"]).tolist() == [n % 2 == 0] * 3
        assert device.download(kept["c"]).tolist() == [0, 1, 2]
    assert driver.allocated("pinned") <= 4 + 13, "one for each upload on its way, and those of downloads"
    pinned = driver.allocated("pinned")
    for _ in range(20):
        stage.run(a=np.arange(3), b=np.ones(3, bool), c=own)
        device.download(own)
    assert driver.allocated("pinned") <= pinned + 1


def test_uploads_of_one_array_do_not_overwrite_each_other():
    device = Cuda(FakeDriver())
    array, kept = device.empty((4,), "int64"), [device.empty((4,), "int64") for _ in range(3)]
    for n, to in enumerate(kept):
        host = device.staging(array)
        host[:] = n
        device.upload(host, array)
        device.copy(array, to)
    assert [device.download(to).tolist() for to in kept] == [[n] * 4 for n in range(3)]
