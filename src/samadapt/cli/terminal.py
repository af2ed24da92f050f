"""What is written to the terminal: results on stdout, progress and notes on stderr."""

from __future__ import annotations

import io
import itertools
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samadapt.progress import Progress

if TYPE_CHECKING:
    from samadapt.datasets import Dataset, Split
    from samadapt.learner import Learner


def one_voice() -> None:
    """Of several processes of one training (`--devices`), which all run the whole command, the first one speaks."""
    if not speaks():
        sys.stdout = io.StringIO()
        warnings.simplefilter("ignore")


def speaks() -> bool:
    """Whether this is the first process of a training, or the only one."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def say(text: str | None, quiet: bool) -> None:
    if text and not quiet:
        print(text, flush=True)


def case_line(verb: str, quiet: bool) -> Callable[[str], None]:
    """A progress callback that is told each case."""
    progress, cases = Progress(quiet), itertools.count(1)

    def show(case: str) -> None:
        number = next(cases)
        progress(lambda: f"{verb} {number} {'case' if number == 1 else 'cases'}, the last one {case}", 0)

    return show


def split_summary(data: Dataset, split: Split, learner: Learner) -> str:
    """What is about to be learned from what, by what, and what its encoder has seen of it before."""
    from samadapt.datasets import unit_of

    patients = sorted({data.groups[i] for i in split.train})
    chosen = ", ".join(patients[:6]) + (", ..." if len(patients) > 6 else "")
    of = f" of {len(patients)} patients" if unit_of(data) == "patient" else ""
    return (
        f"{data_summary(data)}\n{split.rule}\ntraining on {len(split.train)} cases{of}: {chosen}\n"
        + "\n".join([f"encoder {learner.encoder}, head {learner.head}", *seen_before(data, learner)])
    )


def unlabelled_note(run: Path) -> str | None:
    """Which unlabelled scans a training learned from too; None where there were none."""
    from samadapt.runs import read_config
    from samadapt.unlabelled import in_words

    told = read_config(run).get("unlabelled")
    return (
        f"learned from {in_words(told)} too, which config.json lists; do not score the model on them"
        if told
        else None
    )


def data_summary(data: Dataset) -> str:
    """The layout, the cases and patients, and how volumes are cut."""
    return (
        f"{data.name} ({data.layout}): {len(data)} cases, {len(data.labelled_ids)} of them labelled; {data.group_rule}\n"
        f"{data.opening.slices}"
    )


def seen_before(data: Dataset, learner: Learner) -> list[str]:
    """What the encoder's training has seen of the data, if anything."""
    return [f"note: {overlap.text}" for overlap in learner.overlaps(data) if overlap.warns]


def say_warnings_once() -> None:
    """What was assumed or left out, a line each on stderr; Python's own form would add a place in the code."""
    usual = warnings.showwarning
    said: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if category.__name__ != "SamAdaptWarning":  # imported by name it would load torch
            usual(message, category, *place, **more)
        elif str(message) not in said:
            said.add(str(message))
            print(f"samadapt: note: {message}", file=sys.stderr, flush=True)

    warnings.showwarning = show


def never_fail_to_print() -> None:
    """A file name that the terminal's encoding does not have is shown with escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
