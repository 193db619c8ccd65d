"""Processes that train together on one machine: each draws its own clips and updates its own part of the weights.

On a few CPU cores this beats one process with several threads: the processes meet twice per step, threads at every layer.
Weights, gradients and averages lie in shared memory. After the backward passes all meet; each process averages the
gradients of the tensors that it owns and steps them; all meet again.
"""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
PATIENCE = 900
"""Seconds after which a process that waits for the others gives up."""


class ProcessGroup:
    """A group of `count` processes; `rank` is this one's number. `floats`: numbers in all parameters together."""

    def __init__(self, count: int = 1, floats: int = 0) -> None:
        self.count, self.rank = count, 0
        context = self.context = multiprocessing.get_context("fork")
        if count > 1:
            self.barrier = context.Barrier(count, timeout=PATIENCE)
            self.results = context.SimpleQueue()
            self.memory = mmap.mmap(-1, 4 * floats * (count + 2) + 8 * count)
            every = torch.frombuffer(self.memory, dtype=torch.float32)[: floats * (count + 2)].view(count + 2, floats)
            self.gradients, self.weights, self.averages = every[:count], every[count], every[count + 1]
            self.clocks = torch.frombuffer(self.memory, dtype=torch.float64, offset=4 * floats * (count + 2))

    def start(self, work: Callable[[ProcessGroup], None]) -> list:
        """Fork the others, each running `work`; this process goes on as rank 0."""

        def other(rank: int) -> None:
            self.rank = rank
            # threads do not survive a fork: a parallel loop in the child would wait for them for ever
            torch.set_num_threads(1)
            os.setsid()  # a share of the machine of its own where the scheduler groups processes by session
            work(self)

        processes = [self.context.Process(target=other, args=(rank,), daemon=True) for rank in range(1, self.count)]
        for process in processes:
            process.start()
        return processes

    def share(self, parameters: Sequence[nn.Parameter], costs: Sequence[float]) -> list[bool]:
        """Move the parameters into shared memory and divide them. Returns for each whether this process owns it.

        All processes call this with equal parameters. `costs` of their updates are spread evenly.
        """
        if self.count == 1:
            return [True] * len(parameters)
        at, self.places = 0, {}
        for p in parameters:
            self.places[id(p)] = slice(at, at + p.numel())
            at += p.numel()
            view = self._view(self.weights, p)
            view.copy_(p.data)
            p.data = view
        loads, owner = [0.0] * self.count, [0] * len(parameters)
        for i in sorted(range(len(parameters)), key=lambda i: -costs[i]):
            owner[i] = min(range(self.count), key=loads.__getitem__)
            loads[owner[i]] += costs[i]
        self.barrier.wait()
        return [o == self.rank for o in owner]

    def averages_of(self, p: nn.Parameter) -> Tensor:
        """Where the running mean of a parameter is kept: seen by all, written by its owner."""
        if self.count == 1:
            return p.detach().clone().float()
        view = self._view(self.averages, p)
        view.copy_(p.data)
        return view

    def reduce(self, parameters: Sequence[nn.Parameter], owned: Sequence[bool]) -> None:
        """Give each owned parameter the mean gradient of all processes, and the others none.

        Raises BrokenBarrierError if a process is gone.
        """
        if self.count == 1:
            return
        used = [p for p in parameters if p.grad is not None]
        torch._foreach_copy_([self._view(self.gradients[self.rank], p) for p in used], [p.grad for p in used])
        self.barrier.wait()
        for p, mine in zip(parameters, owned):
            if mine and p.grad is not None:
                p.grad = self.gradients[:, self.places[id(p)]].mean(0).view_as(p)
            else:
                p.grad = None

    def finish(self, seconds: float) -> float:
        """End of a step: wait until all weights are updated. Returns the mean of all processes' clocks."""
        if self.count == 1:
            return seconds
        self.clocks[self.rank] = seconds
        self.barrier.wait()
        return float(self.clocks.mean())

    def gather(self, items: list) -> list:
        """All processes' items, on rank 0; nothing elsewhere."""
        if self.rank:
            self.results.put(items)
            return []
        return items + [item for _ in range(self.count - 1) for item in self.results.get()]

    def _view(self, row: Tensor, p: nn.Parameter) -> Tensor:
        return row[self.places[id(p)]].view(p.shape)


def reuse_freed_memory() -> None:
    """Let glibc keep what it has been given: by default each large tensor is mapped anew and its pages are cleared again,
    which takes much of a training step's time on a CPU. Does nothing where there is no glibc."""
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return
    libc.mallopt(_MMAP_THRESHOLD, 1 << 30)
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_TOP_PAD, 64 << 20)
