"""Sections for `benchmarks.gpu_check`, each of which ends in another way. A process that loads them starts at once."""

import os
import signal
import time
from types import SimpleNamespace

from benchmarks.gpu_run import Skipped

LONG = 600
"""Seconds that a section hangs: longer than a busy machine delays its end."""


class Machine:
    def bench(self):
        return SimpleNamespace(name="fake")


class NoMachine:
    def bench(self):
        raise RuntimeError("no CUDA device is visible")


def good(run):
    run.put("value", 1)


def sees(run):
    run.put("seen", run.so_far("good"))


def device(run):
    run.put("device", run.machine.bench().name)


def raises(run):
    run.put("before", 2)
    raise ArithmeticError("the result is wrong")


def hangs(run):
    run.put("before", 3)
    child = os.fork()  # a compiler, say, that the section has started
    if child == 0:
        time.sleep(LONG)
        os._exit(0)
    run.put("child", child)
    time.sleep(LONG)


def dies(run):
    run.put("before", 4)
    os.kill(os.getpid(), signal.SIGKILL)


def aborts(run):
    os.abort()


def exits(run):
    os._exit(7)


def shortened(run):
    for number in range(3):
        if run.has_time(1e9 if number else 0, f"part {number}"):
            run.put(f"part_{number}", number)


def does_not_apply(run):
    raise Skipped("nothing to do here")
