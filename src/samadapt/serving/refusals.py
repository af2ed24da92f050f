"""What a request is refused with: a status, and a sentence that tells what to do."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path


class RefusedError(Exception):
    """An answer that is none.

    Args:
        status: of HTTP, 4xx or 5xx.
        sentence: for whoever sent the request: what was wrong with its value, what is expected, what to do.
        headers: of the answer.
    """

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.sentence, self.headers = status, sentence, dict(headers or {})


def own_mistake(error: BaseException) -> RefusedError:
    """Of what nobody thought of: its kind and place, for its message may name files and folders."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return RefusedError(500, f"internal error: {type(error).__name__}{place}; please report it")
