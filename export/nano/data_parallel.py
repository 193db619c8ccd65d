"""Data-parallel training on one machine: each process draws its own clips and updates its own part of the weights.

On a few CPU cores this is faster than one process with several threads: processes synchronise twice per step, threads
at every layer. Weights, gradients and averages are in shared memory. After the backward passes all processes
synchronise; each averages the gradients of the tensors that it owns and updates them; all synchronise again.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess

import torch
from torch import Tensor, nn

BARRIER_TIMEOUT = 900
"""Seconds after which a process that waits for the others gives up."""
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


@contextlib.contextmanager
def kept_garbage() -> Iterator[None]:
    """Let processes that are forked here leave the garbage that they inherit alone.

    An object of a library may wait, when it is freed, for a thread that only the parent has.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class ProcessGroup:
    """A group of `size` processes, of which this is number `rank`. `floats`: number of elements of all parameters."""

    def __init__(self, size: int = 1, floats: int = 0) -> None:
        self.size, self.rank = size, 0
        self.context = multiprocessing.get_context("fork")
        if size > 1:
            self.barrier = self.context.Barrier(size, timeout=BARRIER_TIMEOUT)
            self.results = self.context.SimpleQueue()
            rows = torch.zeros(size + 2, floats).share_memory_()
            self.gradients, self.weights, self.averages = rows[:size], rows[size], rows[size + 1]
            self.clocks = torch.zeros(size, dtype=torch.float64).share_memory_()

    def fork(self, work: Callable[[ProcessGroup], None]) -> Sequence[BaseProcess]:
        """Start the other processes, each running `work`; this process continues as rank 0."""

        def run(rank: int) -> None:
            self.rank = rank
            # threads do not survive a fork: a parallel loop in the child would wait for them indefinitely
            torch.set_num_threads(1)
            os.setsid()  # an own share of the machine where the scheduler groups processes by session
            work(self)

        processes = [self.context.Process(target=run, args=(rank,), daemon=True) for rank in range(1, self.size)]
        with kept_garbage():
            for process in processes:
                process.start()
        return processes

    def shard(self, parameters: Sequence[nn.Parameter], costs: Sequence[float]) -> list[bool]:
        """Move the parameters into shared memory and divide them. Returns for each whether this process owns it.

        All processes call this with equal parameters. The `costs` of their updates are spread evenly.
        """
        if self.size == 1:
            return [True] * len(parameters)
        offset, self.slices = 0, {}
        for p in parameters:
            self.slices[id(p)] = slice(offset, offset + p.numel())
            offset += p.numel()
            view = self._view(self.weights, p)
            view.copy_(p.data)
            p.data = view
        loads, owner = [0.0] * self.size, [0] * len(parameters)
        for i in sorted(range(len(parameters)), key=lambda i: -costs[i]):
            owner[i] = min(range(self.size), key=loads.__getitem__)
            loads[owner[i]] += costs[i]
        self.barrier.wait()
        return [o == self.rank for o in owner]

    def shared_average(self, p: nn.Parameter) -> Tensor:
        """Copy a parameter for its moving average: visible to all processes, written by its owner."""
        if self.size == 1:
            return p.detach().clone().float()
        view = self._view(self.averages, p)
        view.copy_(p.data)
        return view

    def reduce_gradients(self, parameters: Sequence[nn.Parameter], owned: Sequence[bool]) -> None:
        """Set the gradient of each owned parameter to the mean of all processes, and that of the others to None.

        Raises BrokenBarrierError if a process has ended.
        """
        if self.size == 1:
            return
        for p in parameters:
            if p.grad is not None:
                self._view(self.gradients[self.rank], p).copy_(p.grad)
        self.barrier.wait()
        for p, is_owned in zip(parameters, owned, strict=True):
            is_used = is_owned and p.grad is not None
            p.grad = self.gradients[:, self.slices[id(p)]].mean(0).view_as(p) if is_used else None

    def end_step(self, seconds: float) -> float:
        """Wait until all weights are updated. Returns the mean of the clocks of all processes."""
        if self.size == 1:
            return seconds
        self.clocks[self.rank] = seconds
        self.barrier.wait()
        return float(self.clocks.mean())

    def gather(self, items: list) -> list:
        """Return the items of all processes on rank 0, and an empty list on the others."""
        if self.rank:
            self.results.put(items)
            return []
        return items + [item for _ in range(self.size - 1) for item in self.results.get()]

    def _view(self, row: Tensor, p: nn.Parameter) -> Tensor:
        return row[self.slices[id(p)]].view(p.shape)


def reuse_freed_memory() -> None:
    """Make glibc keep freed memory. By default each large tensor is mapped anew and its pages are cleared again, which
    takes much of a training step on a CPU. No effect without glibc."""
    with contextlib.suppress(OSError):
        libc = ctypes.CDLL("libc.so.6")
        for option, value in ((_MMAP_THRESHOLD, 1 << 30), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 << 20)):
            libc.mallopt(option, value)
