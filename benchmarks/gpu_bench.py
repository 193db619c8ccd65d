"""A device to measure on: time, memory, graphs. `gpu_check` and the kernel benchmarks see nothing else of CUDA, so that
their logic runs in tests on a fake one."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

TOLERANCE = 2e-3
"""Largest relative error of a kernel that counts as right."""


class Bench(Protocol):
    """Device operations of the benchmarks."""

    device: str
    capability: int
    multiprocessors: int

    def seconds(self, work: Callable[[], Any]) -> float:
        """Time of one call of `work` on the device, compiled and warm, without launch gaps where that can be had."""

    def eager_seconds(self, work: Callable[[], Any]) -> float:
        """Time the same with plain launches from Python."""

    def allocated(self) -> int:
        """Return bytes of device memory that arrays hold now."""

    def used(self) -> int:
        """Return bytes of device memory in use by all processes."""


class Cuda:
    """The first CUDA device, through PyTorch. Time is the median of several rounds, each long enough for events."""

    device = "cuda"

    def __init__(self, round_seconds: float = 0.02, rounds: int = 5) -> None:
        properties = torch.cuda.get_device_properties(0)
        self.capability = properties.major * 10 + properties.minor
        self.multiprocessors = properties.multi_processor_count
        self.name = properties.name
        self._round_seconds, self._rounds = round_seconds, rounds

    def seconds(self, work: Callable[[], Any]) -> float:
        self._warm(work)
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                work()
        except RuntimeError:  # work that synchronises cannot be captured
            torch.cuda.synchronize()
            return self._timed(work)
        return self._timed(graph.replay)

    def eager_seconds(self, work: Callable[[], Any]) -> float:
        self._warm(work)
        return self._timed(work)

    def allocated(self) -> int:
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    def used(self) -> int:
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        return total - free

    def _warm(self, work: Callable[[], Any]) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()

    def _timed(self, work: Callable[[], Any]) -> float:
        once = self._round(work, 3)
        count = max(3, int(self._round_seconds / max(once, 1e-6)))
        return statistics.median(self._round(work, count) for _ in range(self._rounds))

    @staticmethod
    def _round(work: Callable[[], Any], count: int) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(count):
            work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / count


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Return ||result - expected|| / ||expected|| in float64; infinite when anything is not finite."""
    result, expected = result.double(), expected.double()
    error = float((result - expected).norm() / expected.norm())
    return error if error == error else float("inf")


def require_close(entry: dict[str, Any], result: torch.Tensor, expected: torch.Tensor) -> None:
    """Store the relative error in `entry`. Raises ArithmeticError where it is above TOLERANCE."""
    entry["relative_error"] = error = relative_error(result, expected)
    if not error <= TOLERANCE:
        raise ArithmeticError(f"relative error {error:.2e} is above {TOLERANCE:.0e}")


@contextmanager
def recorded(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Store an exception of the block in `entry`, so that one configuration does not end the others."""
    try:
        yield entry
    except Exception as error:
        entry["error"] = f"{type(error).__name__}: {str(error)[:300]}"


def normal(bench: Bench, shape: tuple[int, ...], dtype: torch.dtype, seed: int, scale: float = 1.0) -> torch.Tensor:
    """Seeded normal numbers, made on the device."""
    generator = torch.Generator(device=bench.device).manual_seed(seed)
    return (torch.randn(shape, generator=generator, device=bench.device, dtype=torch.float32) * scale).to(dtype)


def scratch(bench: Bench, shapes: dict[str, tuple[tuple[int, ...], str]]) -> dict[str, torch.Tensor]:
    """Scratch arrays of a plan in half precision, poisoned: an element that is not written shows as not finite."""
    types = {name: torch.float16 if of == "same" else getattr(torch, of) for name, (_, of) in shapes.items()}
    return {
        name: torch.full(shape, float("nan"), device=bench.device, dtype=types[name])
        for name, (shape, _) in shapes.items()
    }


def best(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the fastest entry of a sweep that is right. Raises RuntimeError with the first reason when none is."""
    good = [r for r in results if r.get("seconds") and not r.get("error")]
    if not good:
        raise RuntimeError(f"no configuration ran: {results[0].get('error') if results else 'none was given'}")
    return min(good, key=lambda r: r["seconds"])
