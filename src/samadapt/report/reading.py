"""A study's folder as the report sees it: experiment.json, and of each cell scores.csv, cost.json or failed.json."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from samadapt.files import write_csv
from samadapt.metrics import find_study, read_cell_scores, score_matrix
from samadapt.overlap import MARK, Overlap
from samadapt.records import ROLES, Role, SamAdaptError, Score

#: How names are written; others stand as they are.
_TITLES = {
    "unet": "U-Net", "unet_pretrained": "U-Net (ImageNet)", "nnunet": "nnU-Net", "simclr": "SimCLR + U-Net",
}  # fmt: skip
#: What stands behind the names of methods, by their role.
_NOTES = {"baseline": " (baseline)", "control": " (control)", "oracle": " (ground-truth prompt)"}


@dataclass(frozen=True)
class MethodInfo:
    """A method of the study: its name, its role, and whether it learns."""

    name: str
    title: str
    role: Role  # as the study declared it
    learns: bool  # False: one cell stands for all labels and seeds

    @staticmethod
    def of(name: str, note: Mapping[str, Any], seen: bool = False) -> MethodInfo:
        """The entry of experiment.json, read.

        Args:
            seen: whether its encoder may have seen the scored cases while it was trained.
        """
        title = _TITLES.get(name, name) + (MARK if seen else "")
        return MethodInfo(name, title, note["role"], bool(note["learns"]))

    @property
    def baseline(self) -> bool:
        """Whether it is one of those that must be beaten; controls are among them."""
        return self.role in ("baseline", "control")

    @property
    def label(self) -> str:
        """Its title, with what must be known beside it."""
        return self.title + _NOTES.get(self.role, "")

    @property
    def mark(self) -> str:
        """The style of its rows in the tables."""
        return "baseline" if self.baseline else "oracle" if self.role == "oracle" else ""


@dataclass(frozen=True)
class Level:
    """A number of labelled patients."""

    labels: int | float | None  # as asked for: a number, a share, None for all
    patients: int

    @property
    def text(self) -> str:
        """ "5"; "all (38)"; "25 % (9)"."""
        if self.labels is None:
            return f"all ({self.patients})"
        return (
            f"{self.labels:.0%} ({self.patients})" if isinstance(self.labels, float) else str(self.patients)
        )


@dataclass(frozen=True)
class CellResults:
    """One method, one number of labels, one seed."""

    digest: str
    learner: str
    labels: int | float | None
    seed: int
    patients: tuple[str, ...]  # whose labels it was given
    scores: tuple[Score, ...] = ()  # empty: not done
    cost: Mapping[str, Any] | None = None
    failure: str | None = None

    @property
    def done(self) -> bool:
        return bool(self.scores)


@dataclass(frozen=True)
class StudyResults:
    """All cells, and the same cases for all of them."""

    folder: Path
    note: Mapping[str, Any]
    learners: Mapping[str, MethodInfo]
    cells: tuple[CellResults, ...]
    levels: tuple[Level, ...]
    cases: tuple[str, ...]  # as the scores name them: a case, or a patient whose scans are stacked
    targets: tuple[str, ...]
    groups: tuple[str, ...]  # the patient of each case

    @property
    def classification(self) -> bool:
        return self.note["data"]["task"] == "classification"

    @property
    def leading_metric(self) -> str:
        """By which methods are compared."""
        return "auc" if self.classification else "dsc"

    @property
    def quick(self) -> str:
        """What to say of a study that was a first look; nothing of others."""
        if not self.note.get("quick"):
            return ""
        return (
            "quick: a first look with few labels, one draw and few steps. It shows whether the data are read well and "
            "anything is learned, and not which method is better"
        )

    @property
    def unit(self) -> str:
        """The unit of labelling and resampling: "patient", or "case" where nothing says which cases are of one patient."""
        known = self.note["protocol"].get("stacked") or self.cases != self.groups
        return "patient" if known else "case"

    @property
    def done(self) -> list[CellResults]:
        return [cell for cell in self.cells if cell.done]

    def _cells(self, learner: str, level: Level | None) -> list[CellResults]:
        """The cells of a method at a level; those of one that learns nothing stand for every level."""
        every = level is None or not self.learners[learner].learns
        return [c for c in self.cells if c.learner == learner and (every or c.labels == level.labels)]  # type: ignore[union-attr]

    def seeds(self, learner: str, level: Level | None) -> dict[int, CellResults]:
        """The finished cells of a method at a level, by their seeds."""
        return {cell.seed: cell for cell in self._cells(learner, level) if cell.done}

    def planned(self, learner: str, level: Level | None) -> set[int]:
        """The seeds of a method's cells at a level, finished or not."""
        return {cell.seed for cell in self._cells(learner, level)}

    def unfinished(self, learner: str, level: Level) -> tuple[list[int], list[int]]:
        """The seeds of a method's cells at a level that failed, and of those that have not run yet."""
        left = [cell for cell in self._cells(learner, level) if not cell.done]
        failed = sorted(c.seed for c in left if c.failure is not None)
        return failed, sorted(c.seed for c in left if c.failure is None)

    def values(self, cell: CellResults, metric: str) -> np.ndarray:
        """(cases, targets); nan where undefined or not scored."""
        return score_matrix(cell.scores, metric, self.cases, self.targets)

    @property
    def overlaps(self) -> list[Overlap]:
        """The overlaps of the encoders' training with the test cases; each encoder once."""
        every = [Overlap.from_json(x) for rows in self.note.get("overlaps", {}).values() for x in rows]
        return list(dict.fromkeys(every))

    def only(self, cases: Collection[str]) -> StudyResults:
        """The same study, scored on some of its cases."""
        kept = [i for i, case in enumerate(self.cases) if case in cases]
        cells = [
            dataclasses.replace(cell, scores=tuple(s for s in cell.scores if s.case in cases))
            for cell in self.cells
        ]
        return dataclasses.replace(
            self,
            cells=tuple(cells),
            cases=tuple(self.cases[i] for i in kept),
            groups=tuple(self.groups[i] for i in kept),
        )

    @property
    def metrics(self) -> list[str]:
        """In the order of the scores."""
        return list(dict.fromkeys(score.metric for cell in self.done for score in cell.scores))


def read_study(folder: str | Path) -> StudyResults:
    """The study, once it is certain that every scores file is what its cell wrote."""
    folder = Path(folder)
    note = find_study(folder)
    if note is None:
        raise SamAdaptError(
            f"{folder} is not an experiment: it has no experiment.json; give the --out of `experiment`"
        )
    cells = tuple(_read_cell(folder, digest, cell) for digest, cell in note["cells"].items())
    done = [cell for cell in cells if cell.done]
    if not done:
        failed = sum(cell.failure is not None for cell in cells)
        raise SamAdaptError(
            f"{folder} has no finished cell ({failed} of {len(cells)} failed); run the experiment again"
        )
    _demand_roles(folder, note)
    overlaps = note.get("overlaps", {})
    learners = {
        name: MethodInfo.of(name, of, bool(overlaps.get(name))) for name, of in note["learners"].items()
    }
    cases = tuple(sorted({score.case for score in done[0].scores}))
    targets = tuple(dict.fromkeys(score.target for score in done[0].scores))
    for cell in done:
        if {s.case for s in cell.scores} != set(cases) or {s.target for s in cell.scores} != set(targets):
            raise SamAdaptError(
                f"{folder / cell.digest / 'scores.csv'} scores other cases or classes than {done[0].digest}; "
                "cells of one study score the same: remove that folder and run the experiment again"
            )
    groups = tuple(_group(folder, note["scored"], case) for case in cases)
    return StudyResults(
        folder, note, learners, cells, tuple(_levels(cells, learners)), cases, targets, groups
    )


def _levels(cells: Sequence[CellResults], learners: Mapping[str, MethodInfo]) -> Iterator[Level]:
    sizes: dict[int | float | None, int] = {}
    for cell in cells:
        if learners[cell.learner].learns:
            sizes[cell.labels] = max(sizes.get(cell.labels, 0), len(cell.patients))
    for labels, patients in sorted(sizes.items(), key=lambda item: (item[1], item[0] is None)):
        yield Level(labels, patients)


def _group(folder: Path, scored: Mapping[str, str], case: str) -> str:
    if case in scored:
        return scored[case]
    if case in scored.values():  # all scans of a patient were scored as one
        return case
    raise SamAdaptError(f"case {case!r} is scored in {folder}, but experiment.json does not name it")


def _demand_roles(folder: Path, note: Mapping[str, Any]) -> None:
    """Raise where a method has no role, as in folders that earlier versions wrote: it is declared, never guessed."""
    without = [name for name, of in note["learners"].items() if of.get("role") not in ROLES]
    if without:
        raise SamAdaptError(
            f"{folder / 'experiment.json'}, written by samadapt {note.get('version', '?')}, does not say what "
            f"{', '.join(without)} {'is' if len(without) == 1 else 'are'} there for ({', '.join(ROLES)}); run the same "
            "`samadapt experiment` command again, which adds it and keeps the finished cells"
        )


def _read_cell(folder: Path, digest: str, note: Mapping[str, Any]) -> CellResults:
    identity = (digest, note["learner"], note["labels"], note["seed"], tuple(note["patients"]))
    place = folder / digest
    if (place / "scores.csv").is_file():
        scores, cost = read_cell_scores(place)
        return CellResults(*identity, tuple(scores), cost)
    if (place / "failed.json").is_file():
        return CellResults(*identity, failure=json.loads((place / "failed.json").read_text())["message"])
    return CellResults(*identity)


def write_table(study: StudyResults, path: Path) -> Path:
    """Every score of every cell, one a line; values as they stand in the scores files."""
    patient = dict(zip(study.cases, study.groups, strict=True))
    head = ("learner", "labels", "labelled_patients", "seed", "patient", "case", "target", "metric", "value")
    rows = (
        (*start, patient[s.case], s.case, s.target, s.metric, repr(s.value))
        for cell in study.done
        for start in [(cell.learner, labels_text(cell.labels), len(cell.patients), cell.seed)]
        for s in cell.scores
    )
    return write_csv(path, head, rows)


def labels_text(labels: int | float | None) -> str:
    """A number of labels as it is asked for."""
    return "all" if labels is None else str(labels)
