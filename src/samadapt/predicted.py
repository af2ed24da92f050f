"""`predictions.json`: how a folder of predictions was made, so that it is evaluated accordingly."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samadapt.files import write_json
from samadapt.opening import Opening
from samadapt.types import SamAdaptError

NAME = "predictions.json"
_FORMAT = 2


@dataclass(frozen=True)
class Planned:
    """One case that is to be predicted."""

    patient: str
    part: str = ""  # of the data set's official split, else of the run's; "" where nothing says so
    trained: bool | None = (
        False  # whether the model learned from a case of this name; None: names are coded otherwise
    )


@dataclass(frozen=True)
class Predictions:
    """Which cases were predicted, by which model, and how their files were read."""

    run: str
    model: str  # sha256 of the head's weights
    inputs: str
    subset: str | None
    opening: Opening
    cases: Mapping[str, Planned]
    failed: Mapping[str, str] = field(default_factory=dict)  # case -> what was wrong with it
    finished: bool = False  # whether every case was tried
    encoder: str | None = None  # whose maps the model reads; None: none, random weights, or unknown
    checkpoint: str | None = None  # the user's own weights of that encoder
    names: tuple[str, ...] = ()  # of the data set or folder that was predicted
    label_format: str | None = None  # of the label maps, as asked for; None: by the scans
    codes: str | None = None  # sha256 of the user's table of codes; None: none was given
    keep_largest: tuple[str, ...] = ()  # classes of which the largest connected component alone was kept
    smooth_slices: float = 0.0  # standard deviation, in slices, of the smoothing over slices
    flips: bool = False  # whether answers are means over flipped slices
    abstain: float | None = None  # agreement of several heads below which a case is marked

    @property
    def patients(self) -> dict[str, str]:
        """Case -> patient."""
        return {case: planned.patient for case, planned in self.cases.items()}

    def same_task(self, other: Predictions) -> bool:
        """Whether both are of one command, so that one can go on where the other stopped."""
        names = (
            "model",
            "inputs",
            "subset",
            "cases",
            "label_format",
            "codes",
            "keep_largest",
            "smooth_slices",
            "flips",
            "abstain",
        )
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def write(self, folder: Path) -> None:
        """Write the note into the folder."""
        cases = {case: dataclasses.asdict(planned) for case, planned in self.cases.items()}
        content = {**vars(self), "cases": cases, "opening": self.opening.to_json(), "format": _FORMAT}
        write_json(folder / NAME, content, self.finished)


def read_predictions(folder: Path) -> Predictions | None:
    """The note of a folder of predictions; None where there is none, as for label maps of another program."""
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SamAdaptError(f"{path} cannot be read ({error}); predict again") from error
    if not isinstance(content, dict) or content.get("cases", 0) is None:
        raise SamAdaptError(
            f"the prediction in {folder} did not finish; run its command again, with --overwrite"
        )
    if content.get("format") != _FORMAT:
        raise SamAdaptError(
            f"{path} was written by another version of samadapt (format {content.get('format')!r}, this one reads "
            f"{_FORMAT}); predict again"
        )
    try:
        del content["format"]
        content["opening"] = Opening.from_json(content["opening"], path)
        content["cases"] = {case: Planned(**planned) for case, planned in content["cases"].items()}
        for name in ("names", "keep_largest"):
            content[name] = tuple(content.get(name, ()))
        return Predictions(**content)
    except (KeyError, TypeError, AttributeError) as error:
        raise SamAdaptError(f"{path} lacks something ({error}); it was edited: predict again") from error


def demand_finished(found: Predictions, folder: Path, present: int) -> None:
    """Scores of a part of the cases would look like scores of all."""
    if not found.finished:
        raise SamAdaptError(
            f"the prediction in {folder} did not finish: {present} of {len(found.cases)} cases are there; run the same "
            "`samadapt predict` again, and it goes on where it stopped"
        )
