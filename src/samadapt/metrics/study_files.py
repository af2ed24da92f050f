"""What a study leaves on disk for its report: `experiment.json`, and the scores of each cell with their hash.

experiment.json      data, version, protocol, methods with their roles, scored cases, cells
<cell>/cost.json     what the cell cost, and the hash of its scores
<cell>/scores.csv    written last: it exists = the cell is done
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samadapt.files import file_sha256, replacing, write_json
from samadapt.metrics.table import read_scores, write_scores
from samadapt.records import SamAdaptError, Score

_HASH = "scores_sha256"
#: Of `experiment.json`, and part of every cell's digest.
STUDY_FORMAT = 1
_KEYS = ("data", "protocol", "learners", "cells", "scored")


def find_study(folder: Path) -> dict[str, Any] | None:
    """What stands in `experiment.json`; None where there is none."""
    path = folder / "experiment.json"
    if not path.is_file():
        return None
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        missing = [key for key in _KEYS if key not in note]
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError) as error:
        raise SamAdaptError(f"{path} cannot be read ({error}); it was edited or cut short") from error
    if missing:
        raise SamAdaptError(f"{path} lacks {missing[0]!r}; it was edited, or is of another version")
    if note.get("format") != STUDY_FORMAT:
        raise SamAdaptError(
            f"{path} has the format {note.get('format')!r}; this version reads {STUDY_FORMAT}: use the samadapt that wrote it"
        )
    return note


def write_cell_scores(folder: Path, scores: Sequence[Score], cost: Mapping[str, Any]) -> None:
    """cost.json with the hash of the scores, then the scores."""
    with replacing(folder / "scores.csv", finished=True) as draft:
        write_scores(draft, scores)
        write_json(folder / "cost.json", {**cost, _HASH: file_sha256(draft)})


def check_cell_scores(folder: Path) -> dict[str, Any]:
    """The cell's cost, once it is certain that its scores are those that it wrote.

    Raises:
        SamAdaptError: scores.csv is not what the cell wrote.
    """
    path = folder / "scores.csv"
    found = file_sha256(path)
    try:
        cost = json.loads((folder / "cost.json").read_text(encoding="utf-8"))
        expected = cost[_HASH]
    except (OSError, KeyError, json.JSONDecodeError):
        cost, expected = {}, "nothing readable"
    if found != expected:
        raise SamAdaptError(
            f"{path} has the hash {found[:12]}, cost.json beside it says {expected[:12]}: it was cut short or "
            "edited; remove that folder and run the experiment again"
        )
    return dict(cost)


def read_cell_scores(folder: Path) -> tuple[list[Score], dict[str, Any]]:
    """The scores and the cost of a finished cell, checked."""
    cost = check_cell_scores(folder)
    return read_scores(folder / "scores.csv"), cost
