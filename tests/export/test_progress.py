"""Progress of an export on a terminal and elsewhere."""

import io
import time

import pytest

pytest.importorskip("tqdm")

from export import progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_tasks_are_shown_and_timed(monkeypatch, terminal):
    stream, lines = Terminal() if terminal else io.StringIO(), []
    monkeypatch.setattr(progress.sys, "stderr", stream)
    shown = progress.Progress(lines.append)
    for _ in range(2):
        with shown.task("tracing", "neck [ort]"):
            time.sleep(0.01)
    assert shown.seconds["tracing"] >= 0.02
    assert ("neck [ort]: tracing 00:00" in stream.getvalue()) == terminal
    assert [line.rsplit(",", 1)[0] for line in lines] == ([] if terminal else ["neck [ort]: tracing"] * 2)


def test_a_failed_task_says_nothing(monkeypatch):
    lines = []
    with pytest.raises(ValueError), progress.Progress(lines.append).task("tracing", "neck"):
        raise ValueError
    assert not lines
