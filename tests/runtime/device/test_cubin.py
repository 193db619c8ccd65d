"""Tests of `runtime.device.cubin` with kernels compiled ahead of time and a driver that records launches."""

import ctypes
import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from helpers.fake_attention import published_manifest
from runtime.bundle.manifest import Manifest
from runtime.device import cubin
from runtime.errors import BackendError, BundleError
from runtime.kernels import plan

ROOT = Path(__file__).parents[2].parent


class RecordingDriver:
    """Keeps what it is asked to load and launch; reads the packed arguments back as the driver would."""

    def __init__(self):
        self.loaded, self.launched = [], []

    def load(self, code, symbol, shared):
        self.loaded.append((code[:4], symbol, shared))
        return symbol

    def launch(self, function, grid, threads, shared, stream, params):
        self.launched.append((function, grid, threads, shared, stream, params))


def export(folder, target):
    """`python -m export.kernels` in a process of its own: the interpreter of the other tests compiles nothing."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "export.kernels", str(folder), "--target", target],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
    )


def write_manifest(folder):
    manifest = published_manifest()
    stages = {name: replace(spec, files={"default": "x.npz"}) for name, spec in manifest.stages.items()}
    replace(manifest, stages=stages, files={"kernels/old.cubin": "0", "x.npz": "0"}).dump(folder)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    pytest.importorskip("triton")
    folder = tmp_path_factory.mktemp("aot") / "toy"
    folder.mkdir()
    write_manifest(folder)
    done = export(folder, "90")
    assert done.returncode == 0, done.stderr
    return folder


def postprocess_launches(objects=2):
    pointers = iter(range(1, 100))
    taps = [(next(pointers), next(pointers)) for _ in range(2)]
    return plan.postprocess(next(pointers), *taps, next(pointers), next(pointers), objects, 256, (30, 50))


@pytest.mark.slow
def test_every_kernel_of_a_bundle_is_compiled(bundle):
    index = json.loads((bundle / "kernels" / "index.json").read_text())
    names = {entry["kernel"] for entry in index["kernels"]}
    assert names == {
        "memory_attention_prepare",
        "memory_attention_flash",
        "memory_attention_combine",
        "window_attention_project",
        "window_attention_attend",
        "window_attention_fused",
        "preprocess",
        "postprocess",
    }
    for entry in index["kernels"]:
        assert (bundle / "kernels" / entry["file"]).read_bytes()[:4] == b"\x7fELF" and entry["shared"] <= 227 << 10
    manifest = Manifest.load(bundle)
    assert "kernels/index.json" in manifest.files and "kernels/old.cubin" not in manifest.files


@pytest.mark.slow
def test_resources_of_compiled_kernels_are_those_of_the_table(bundle):
    """Of a Triton that is not in the table: none spills. The slots of this bundle are those of the table."""
    from benchmarks import kernel_resources
    from export import cubin_resources

    table = json.loads(kernel_resources.TABLE.read_text())["triton"].get(metadata.version("triton"), {}).get("sm_90")
    entries = cubin.read_index(bundle / "kernels")
    assert len(entries) > 8
    for entry in entries:
        found = cubin_resources.read((bundle / "kernels" / entry.file).read_bytes(), entry.symbol)
        cubin_resources.require_layout(entry, found)
        values = [cubin.pack(replace(entry, signature=(kind,), extra_pointers=0), [16])[1] for kind in entry.signature]
        assert [ctypes.sizeof(value) for (value,) in values] == [size for _, size in found.parameters[: len(values)]]
        assert found.spilled == 0 and found.threads == entry.threads
        name = " ".join([entry.kernel, *(f"{k}={v}" for k, v in sorted(entry.constants.items()))])
        assert table is None or table[name] == [found.registers, found.spilled, entry.shared], name


@pytest.mark.slow
@pytest.mark.parametrize(
    "launches",
    [
        lambda: plan.window_attention(
            dict.fromkeys(
                (
                    "x",
                    "time",
                    "position",
                    "norm_weight",
                    "norm_bias",
                    "qkv_weight",
                    "qkv_bias",
                    "out_weight",
                    "out_bias",
                ),
                64,
            ),
            {"qkv": 128},
            256,
            plan.WindowSizes(5, 64, 64, 4),
            plan.WINDOW[90],
        ),
        lambda: plan.window_attention(
            dict.fromkeys(
                (
                    "x",
                    "time",
                    "position",
                    "norm_weight",
                    "norm_bias",
                    "qkv_weight",
                    "qkv_bias",
                    "out_weight",
                    "out_bias",
                ),
                64,
            ),
            {"qkv": 128},
            256,
            plan.WindowSizes(8, 128, 128, 8),
            plan.WINDOW[90],
        ),
        postprocess_launches,
    ],
)
def test_a_plan_finds_its_compiled_kernels(bundle, launches):
    driver = RecordingDriver()
    bound = cubin.Kernels(bundle, 90, driver).bind(launches())
    bound.run(7)
    bound.run(7)
    assert len(driver.loaded) * 2 == len(driver.launched) > 0
    assert all(code == b"\x7fELF" for code, _, _ in driver.loaded) and all(call[4] == 7 for call in driver.launched)


def toy_index(folder, **changes):
    entry = {
        "kernel": "postprocess",
        "capability": 80,
        "constants": {"TAPS": 4, "BLOCK": 128},
        "file": "a.cubin",
        "symbol": "postprocess",
        "signature": ["*fp32"] * 7 + ["i32"] * 4,
        "extra_pointers": 2,
        "threads": 128,
        "shared": 16,
        **changes,
    }
    (folder / "kernels").mkdir(exist_ok=True)
    (folder / "kernels" / "index.json").write_text(json.dumps({"format": 1, "kernels": [entry]}))
    (folder / "kernels" / "a.cubin").write_bytes(b"\x7fELF")


def test_arguments_are_packed_in_order(tmp_path):
    toy_index(tmp_path)
    driver = RecordingDriver()
    launch = postprocess_launches()[0]
    bound = cubin.Kernels(tmp_path, 86, driver).bind([launch])
    bound.run()
    params = driver.launched[0][5]
    pointers = [ctypes.c_void_p.from_address(params[i]).value for i in (*range(7), 11, 12)]
    numbers = [ctypes.c_int32.from_address(params[i]).value for i in range(7, 11)]
    assert pointers == [*launch.arguments[:7], None, None] and numbers == [256, 30, 50, 188] and len(params) == 13


def test_scratch_is_that_of_all_programs_and_allocated_once(tmp_path):
    """A kernel that makes tensor descriptors: the first pointer behind its own is the scratch, the second one null."""
    toy_index(tmp_path, scratch=256)
    driver, allocated = RecordingDriver(), []
    kernels = cubin.Kernels(tmp_path, 86, driver, lambda nbytes: allocated.append(nbytes) or (len(allocated) << 20))
    bound = [kernels.bind(postprocess_launches(objects)) for objects in (2, 1, 2, 3)]
    for launches in bound:
        launches.run()
    assert allocated == [2 * 2 * 256, 2 * 3 * 256]  # 188 bytes of a mask are two programs of 128
    pointers = [[ctypes.c_void_p.from_address(params[i]).value for i in (11, 12)] for *_, params in driver.launched]
    assert pointers == [[1 << 20, None]] * 3 + [[2 << 20, None]]
    with pytest.raises(BackendError, match="postprocess needs 1024 bytes of scratch"):
        cubin.Kernels(tmp_path, 86, driver).bind(postprocess_launches())


COMPILE_TMA = """
import dataclasses, json
from export import cubin_resources, kernels as aot
from runtime.kernels import plan

launches = list(aot.memory_launches(plan.MemorySizes(1, 4096, 6, 60), 90, plan.FLASH_TMA[90]))
entry, cubin = aot.compile_launch(launches[1], 90)
name = next(name for name, launch in aot.distinct(launches).items() if launch is launches[1])
print(json.dumps([dataclasses.asdict(entry), name, dataclasses.asdict(cubin_resources.read(cubin, entry.symbol))]))
"""


@pytest.mark.slow
def test_memory_attention_with_tensor_descriptors_compiles_without_spills():
    """Its parameters are those that the runtime passes, or `compile_launch` refuses it."""
    pytest.importorskip("triton")
    from benchmarks import kernel_resources

    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILE_TMA]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    entry, name, found = json.loads(done.stdout)
    assert entry["scratch"] == 256 and entry["extra_pointers"] == 2 and found["spilled"] == 0
    table = json.loads(kernel_resources.TABLE.read_text())["triton"].get(metadata.version("triton"), {}).get("sm_90")
    assert table is None or table[name] == [found["registers"], found["spilled"], entry["shared"]]


def test_pointer_of_every_kind_of_array():
    class Interface:
        __cuda_array_interface__ = {"data": (48, False)}

    class Torch:
        @staticmethod
        def data_ptr():
            return 32

    class Ours:
        ptr = 16

    assert [cubin.pointer(x) for x in (Ours(), Torch(), Interface(), 64)] == [16, 32, 48, 64]


@pytest.mark.parametrize(
    "compiled, device, runs",
    [
        (80, 80, True),
        (80, 86, True),
        (86, 80, False),
        (80, 90, False),
        (90, 90, True),
        (90, 100, False),
        (120, 121, False),
    ],
)
def test_code_runs_on_matching_capabilities(compiled, device, runs):
    assert cubin.runs_on(compiled, device) is runs


def test_missing_kernels_are_reported(tmp_path):
    with pytest.raises(BundleError, match="no compiled kernels"):
        cubin.Kernels(tmp_path, 80, RecordingDriver())
    toy_index(tmp_path)
    with pytest.raises(BackendError, match="sm_90"):
        cubin.Kernels(tmp_path, 90, RecordingDriver())
    toy_index(tmp_path, constants={"TAPS": 8, "BLOCK": 128})
    with pytest.raises(BackendError, match="not compiled"):
        cubin.Kernels(tmp_path, 80, RecordingDriver()).bind(postprocess_launches())
    toy_index(tmp_path, signature=["*fp32"])
    with pytest.raises(BackendError, match="takes 1 arguments"):
        cubin.Kernels(tmp_path, 80, RecordingDriver()).bind(postprocess_launches())


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2, "kernels": []}', '{"format": 1, "kernels": [{}]}'])
def test_a_damaged_index_is_refused(tmp_path, text):
    toy_index(tmp_path)
    (tmp_path / "kernels" / "index.json").write_text(text)
    with pytest.raises(BundleError, match="index.json"):
        cubin.Kernels(tmp_path, 80, RecordingDriver())


def test_a_file_outside_the_folder_is_refused(tmp_path):
    toy_index(tmp_path, file="../a.cubin")
    with pytest.raises(BundleError, match="not a file name"):
        cubin.Kernels(tmp_path, 80, RecordingDriver())


def test_the_command_refuses_an_unknown_target(tmp_path):
    pytest.importorskip("triton")
    write_manifest(tmp_path)
    done = export(tmp_path, "75")
    assert done.returncode == 2 and "target 75 is not one of" in done.stderr and "Traceback" not in done.stderr
