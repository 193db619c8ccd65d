"""Fake machine for `benchmarks.gpu_check`."""

import json

from runtime.backends.ort import OrtBackend
from runtime.errors import BackendError

from .fake_cuda import IMAGE_SIGNATURES, FakeCudaBackend


class FakeBench:
    """Runs on the CPU; every measurement takes a millisecond. Counts what was measured."""

    device, capability, multiprocessors, name = "cpu", 90, 4, "fake"

    def __init__(self):
        self.measured = 0

    def seconds(self, work):
        work()
        self.measured += 1
        return 1e-3

    eager_seconds = seconds

    def allocated(self):
        return 4096

    used = allocated


_loaded = {}


class SharedStages(OrtBackend):
    """Loads a graph once per process: sections load the same bundles again and again."""

    def load(self, file, spec):
        key = file.name, file.stat().st_size
        if key not in _loaded:
            _loaded[key] = super().load(file, spec)
        return _loaded[key]


class SharedCudaStages(FakeCudaBackend, SharedStages):
    pass


class FakeMachine:
    """Device memory of the host; compiled kernels for frames and masks run their formulas."""

    def bench(self):
        return FakeBench()

    def device(self):
        return FakeCudaBackend(1).device

    def backend(self, name):
        if name.startswith("tensorrt"):
            raise BackendError(f"backend '{name}' needs {name}")
        return SharedStages(1) if name == "ort" else SharedCudaStages(1)

    def network(self, variant):
        from export.networks import samwise

        from . import toy_exports

        return samwise, toy_exports.samwise()

    def compiled(self, function):
        return function

    def used_bytes(self):
        return 4096

    def compile_kernels(self, bundle, capability):
        write_image_kernels(bundle, capability)
        return len(IMAGE_SIGNATURES)


class WithoutPyTorch(FakeMachine):
    def bench(self):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")


class WithoutLibraries(WithoutPyTorch):
    def device(self):
        raise BackendError("CUDA needs cuda-core")


def write_image_kernels(bundle, capability):
    """Write the index of two kernels, whose code is never run: `fake_cuda.HostKernels` is."""
    folder = bundle / "kernels"
    folder.mkdir(exist_ok=True)
    common = {"capability": capability, "extra_pointers": 0, "threads": 128, "shared": 0}
    entries = [
        {"kernel": name, "constants": constants, "file": f"{name}.cubin", "symbol": name, "signature": signature}
        | common
        for name, (signature, constants) in IMAGE_SIGNATURES.items()
    ]
    for name in IMAGE_SIGNATURES:
        (folder / f"{name}.cubin").write_bytes(b"\x7fELF")
    (folder / "index.json").write_text(json.dumps({"format": 1, "kernels": entries}))
