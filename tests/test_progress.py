"""What long work says: a rewritten line on a terminal, else a line every half minute, and nothing where it is to be quiet."""

import pytest

from samadapt import progress
from samadapt.progress import Progress, clock


@pytest.fixture
def time(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.delenv("SAMADAPT_QUIET", raising=False)
    return now


def work(time, line: Progress, seconds: int = 100) -> None:
    for second in range(seconds + 1):
        time[0] = float(second)
        line(lambda s=second: f"step {s}", second / seconds)
    line.close()


def test_without_a_terminal_a_line_every_half_minute(time, capsys):
    work(time, Progress())
    assert capsys.readouterr().err.splitlines() == [
        "step 30, 70 s left",
        "step 60, 40 s left",
        "step 90, 10 s left",
    ]


def test_on_a_terminal_one_line_that_is_rewritten_and_removed(time, capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    work(time, Progress(), 3)
    assert capsys.readouterr().err == "".join(
        f"\r\033[K{text}" for text in ("step 1, 2 s left", "step 2, 1 s left", "step 3, 0 s left", "")
    )


def test_quiet(time, capsys, monkeypatch):
    work(time, Progress(quiet=True))
    monkeypatch.setenv("SAMADAPT_QUIET", "1")
    work(time, Progress())
    assert capsys.readouterr().err == ""


def test_times():
    assert [clock(s) for s in (4.4, 99, 100, 3600, 12000)] == ["4 s", "99 s", "2 min", "60 min", "3 h 20 min"]
