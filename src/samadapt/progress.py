"""What long work says on stderr while it runs: one line that is rewritten on a terminal, else one every half minute."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import ClassVar, final

_ON_A_TERMINAL, _ELSEWHERE = 0.2, 30.0  # seconds between two lines
_WORTH_SAYING = 10.0  # seconds that a work takes at least


@final
class Progress:
    """Of one piece of work. Called as often as one likes; it speaks when it is time to.

    Args:
        quiet: say nothing; so does the environment variable SAMADAPT_QUIET.
    """

    _shown: ClassVar[Progress | None] = None  # whose line was written last, on a terminal

    def __init__(self, quiet: bool = False) -> None:
        self._terminal = sys.stderr.isatty()
        self._every = _ON_A_TERMINAL if self._terminal else _ELSEWHERE
        self._quiet = quiet or "SAMADAPT_QUIET" in os.environ
        self._start = self._said = time.monotonic()
        self._open = False

    def __call__(self, text: Callable[[], str], done: float) -> None:
        """Where it is time: what `text` gives, and the time that is left.

        Args:
            done: the share of the work that is done since this was made, in 0..1.
        """
        now = time.monotonic()
        if self._quiet or now - self._said < self._every:
            return
        self._said = now
        left = f", {clock((now - self._start) * (1 - done) / done)} left" if done > 0 else ""
        line = f"{text()}{left}"
        self._open = self._terminal
        Progress._shown = self
        print(
            f"\r\033[K{line}" if self._terminal else line,
            end="" if self._terminal else "\n",
            file=sys.stderr,
            flush=True,
        )

    def measured(self, text: Callable[[str], str], done: float) -> None:
        """Once, when the first part of the work is done: what `text` makes of the time that all of it takes.

        Nothing is said of work of a few seconds.

        Args:
            done: as for a call.
        """
        whole = (time.monotonic() - self._start) / done
        if not self._quiet and whole >= _WORTH_SAYING:
            self.close()
            print(text(clock(whole)), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Remove the line that is being rewritten."""
        if self._open:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self._open = False


def end_line() -> None:
    """Remove the line that is being rewritten, whoever's it is: something else is about to be said."""
    if Progress._shown is not None:
        Progress._shown.close()


def clock(seconds: float) -> str:
    """12 s, 5 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
