"""Tests of `runtime.backends.rtx_cache`."""

import gc
import json
import logging
import os
import sys

import pytest

import runtime
from export.tensorrt import build
from export.tensorrt.warm import warm
from helpers import fake_tensorrt
from helpers import toy_samwise as toy
from helpers.fake_cuda import FakeDriver
from helpers.fake_tensorrt import FakeLibrary
from helpers.samwise_schedule import A, frames
from runtime.backends import rtx_cache
from runtime.backends.trt_rtx import TrtRtxBackend
from runtime.bundle.bundle import choose
from runtime.device.cuda import Cuda
from runtime.engine import Engine
from runtime.prompts.synthetic import synthetic_tokens

VERSION = fake_tensorrt.__version__


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_tensorrt)
    monkeypatch.setattr(fake_tensorrt, "Engine", fake_tensorrt.RtxEngine)
    monkeypatch.setattr(fake_tensorrt.RtxEngine, "compiled", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    bundle = choose(toy.build(tmp_path / "toy"))
    build.build_bundle(bundle, FakeLibrary("tensorrt_rtx", VERSION), [89], report=lambda line: None)
    return choose(bundle.folder)


def run(bundle, monkeypatch, capability=89):
    """A short video on a fresh backend that goes away. Returns how many kernels were compiled for it."""
    driver = FakeDriver()
    driver.capability = capability
    monkeypatch.setattr(fake_tensorrt.Runtime, "driver", driver)
    before = fake_tensorrt.RtxEngine.compiled
    with Engine(bundle, TrtRtxBackend(device=Cuda(driver)), kernels="off") as engine:
        list(engine.session([runtime.Text(tokens=A)]).stream(frames(6)))
    del engine
    gc.collect()
    return fake_tensorrt.RtxEngine.compiled - before


@pytest.mark.parametrize("warmed, compiled", [(True, 0), (False, 1)])
def test_warm_engines_compile_nothing_in_a_first_video(bundle, monkeypatch, warmed, compiled):
    """Of the schedule's shapes, from the first frame until the memory is full and after it."""
    monkeypatch.setattr(fake_tensorrt.Runtime, "driver", driver := FakeDriver())
    backend = TrtRtxBackend(device=Cuda(driver))
    if warmed:
        assert warm(bundle, backend) > toy.POINTERS
    before = fake_tensorrt.RtxEngine.compiled
    with Engine(bundle, TrtRtxBackend(device=Cuda(driver)), graphs="off") as engine:
        tokens = synthetic_tokens(bundle.manifest.text["vocabulary"], bundle.manifest.text["max_tokens"])
        list(engine.session([runtime.Text(tokens=tokens)]).stream(frames(12)))
    assert (fake_tensorrt.RtxEngine.compiled > before) == compiled


def test_only_engines_that_are_compiled_where_they_run_are_warmed(bundle, capsys):
    assert build.main([str(bundle.folder), "--backend", "tensorrt", "--warm"]) == 2
    assert "--warm is for tensorrt_rtx" in capsys.readouterr().err


def files(folder):
    return sorted(folder.rglob("*" + rtx_cache.SUFFIX))


def test_second_start_compiles_nothing(bundle, monkeypatch):
    assert run(bundle, monkeypatch) > 10
    (path,) = files(bundle.folder)
    assert path.parent == bundle.folder / "engines" / f"tensorrt_rtx-{VERSION}" and path.name.startswith("sm_89-")
    stamp = path.stat().st_mtime_ns, path.stat().st_ino
    assert run(bundle, monkeypatch) == 0
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == stamp, "nothing new, nothing written"
    assert [p.name for p in path.parent.iterdir() if p.name.startswith(".")] == [], "no partial file stays"
    choose(bundle.folder).verify()


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda content: b"", "it is damaged"),
        (lambda content: content[:-3], "it is damaged"),
        (lambda content: b"\x00" * 50, "it is damaged"),
        (lambda content: b"[]\n", "it is damaged"),
        (lambda content: content.replace(b'"key": "', b'"key": "0'), "it belongs to other engines"),
    ],
)
def test_a_damaged_file_is_ignored_and_replaced(bundle, monkeypatch, caplog, damage, reason):
    caplog.set_level(logging.INFO, "runtime")
    compiled = run(bundle, monkeypatch)
    (path,) = files(bundle.folder)
    good = path.read_bytes()
    path.write_bytes(damage(good))
    caplog.clear()
    assert run(bundle, monkeypatch) == compiled
    lines = [r.getMessage() for r in caplog.records if rtx_cache.SUFFIX in r.getMessage()]
    assert len(lines) == 1 and reason in lines[0]
    assert path.read_bytes() == good


def test_cache_is_specific_to_machine_gpu_and_engines(bundle, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "runtime")
    compiled = run(bundle, monkeypatch)
    with monkeypatch.context() as other:
        other.setattr(fake_tensorrt.RuntimeCache, "MACHINE", "two")
        assert run(bundle, monkeypatch) == compiled
    assert "the library refuses it" in caplog.text
    library = FakeLibrary("tensorrt_rtx", VERSION)
    build.build_bundle(choose(bundle.folder), library, [89, 120], report=lambda line: None)
    assert run(bundle, monkeypatch, 120) == compiled
    assert len(files(bundle.folder)) == 2
    keys = {rtx_cache.key(bundle.folder, "tensorrt_rtx", version, c) for version in (VERSION, "2") for c in (89, 120)}
    assert len(keys) == 4


def test_read_only_bundle_uses_the_cache_folder(bundle, monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.INFO, "runtime")
    original = rtx_cache.replace_file

    def replace(path, content):
        if bundle.folder in path.parents or blocked:
            raise OSError(30, "Read-only file system")
        original(path, content)

    blocked = True
    monkeypatch.setattr(rtx_cache, "replace_file", replace)
    assert run(bundle, monkeypatch) > 0
    assert "runtime cache not saved" in caplog.text and "Read-only" in caplog.text
    blocked = False
    assert run(bundle, monkeypatch) > 0
    (path,) = files(tmp_path)
    assert path.parent == tmp_path / "home" / "samwise-runtime"
    assert run(bundle, monkeypatch) == 0


def test_cache_is_saved_at_exit_and_on_demand(bundle, monkeypatch):
    """The same finalizer runs when a backend is freed and when the process ends."""
    driver = FakeDriver()
    monkeypatch.setattr(fake_tensorrt.Runtime, "driver", driver)
    backend = TrtRtxBackend(device=Cuda(driver))
    assert backend.finalizer.atexit
    with Engine(bundle, backend) as engine:
        list(engine.session([runtime.Text(tokens=A)]).stream(frames(2)))
    assert not files(bundle.folder)
    backend.save_cache()
    (path,) = files(bundle.folder)
    head = json.loads(path.read_bytes().partition(b"\n")[0])
    assert head["key"] == rtx_cache.key(bundle.folder, "tensorrt_rtx", VERSION, 89)


def test_file_is_replaced_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / "a" / "cache"
    rtx_cache.replace_file(path, b"old")

    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError):
        rtx_cache.replace_file(path, b"new")
    assert path.read_bytes() == b"old" and [p.name for p in path.parent.iterdir()] == ["cache"]


def test_tensorrt_rtx_has_every_name_that_is_used():
    """Without a GPU no engine is loaded, but the names are there."""
    trt = pytest.importorskip("tensorrt_rtx")
    assert all(hasattr(trt.IRuntimeConfig, name) for name in ("create_runtime_cache", "set_runtime_cache"))
    assert all(hasattr(trt.IRuntimeCache, name) for name in ("serialize", "deserialize"))
    assert all(hasattr(trt.EngineInspector, name) for name in ("get_engine_information", "execution_context"))
    assert trt.LayerInformationFormat.JSON is not None and trt.ProfilingVerbosity.DETAILED is not None
