"""The data doctor: reads every case once and says what would spoil a study."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from samadapt import io
from samadapt.types import IGNORED, Case, SamAdaptError, Task

Level = Literal["error", "warning", "note"]
_ORDER: tuple[Level, ...] = ("error", "warning", "note")

_NEARLY_ALL = 0.995  # of the voxels have one value: hardly an image
_FEW_CASES = 5  # a class with fewer cannot be learned and scored


@dataclass(frozen=True)
class Finding:
    """One thing that was found. Errors make a training fail or its scores wrong; the rest is for the reader."""

    level: Level
    case: str  # "" where it is about the data set
    message: str

    def __str__(self) -> str:
        return f"{self.level:8}{self.case + ': ' if self.case else ''}{self.message}"


class Checkable(Protocol):
    """What the doctor needs of a data set."""

    @property
    def name(self) -> str: ...
    @property
    def task(self) -> Task: ...
    @property
    def classes(self) -> tuple[str, ...]: ...
    @property
    def ids(self) -> tuple[str, ...]: ...
    @property
    def labelled_ids(self) -> tuple[str, ...]: ...
    @property
    def groups(self) -> dict[str, str]: ...
    @property
    def parts(self) -> Mapping[str, str | None]: ...
    @property
    def folds(self) -> Sequence[Any]: ...
    def case(self, case_id: str) -> Case: ...
    def split(self, *, fold: int = 0) -> Any: ...


@dataclass
class _Seen:
    """What is compared between cases, gathered while they pass one at a time."""

    images: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # hash -> cases
    labels: dict[str, str] = field(default_factory=dict)  # case -> hash
    orientations: Counter[str] = field(default_factory=Counter)
    slicing: Counter[int] = field(default_factory=Counter)
    channels: Counter[int] = field(default_factory=Counter)
    no_spacing: list[str] = field(default_factory=list)
    classes: Counter[int] = field(default_factory=Counter)  # class -> cases that have it


def check(data: Checkable, progress: Callable[[int], None] | None = None) -> list[Finding]:
    """Everything that was found, the worst first. An empty list is a clean bill.

    Args:
        progress: called with the number of cases read so far.
    """
    findings: list[Finding] = []
    seen = _Seen()
    for number, case_id in enumerate(data.ids, start=1):
        try:
            case = data.case(case_id)
        except SamAdaptError as error:
            findings.append(Finding("error", case_id, str(error)))
        else:
            findings += _check_case(case, data)
            _note(case, data.task, seen)
        if progress:
            progress(number)
    findings += [*_labels(data, seen), *_duplicates(data, seen), *_kinds(seen), *_splits(data)]
    return sorted(findings, key=lambda f: _ORDER.index(f.level))


def summary(findings: Iterable[Finding], cases: int) -> str:
    """The findings one a line, and the counts."""
    findings = list(findings)
    counts = Counter(f.level for f in findings)
    total = ", ".join(f"{counts[level]} {level}{'s' * (counts[level] != 1)}" for level in _ORDER)
    return "\n".join([*map(str, findings), f"{cases} cases read: {total}"])


# ---------------------------------------------------------------- one case


def _check_case(case: Case, data: Checkable) -> list[Finding]:
    image = case.image.numpy()
    found = []
    for channel, values in enumerate(image):
        if values.min() == values.max() and len(image) > 1:
            found.append(Finding("warning", case.id, f"channel {channel} is constant ({values.flat[0]:g})"))
    flat = [d for d in range(image.shape[1]) if np.ptp(image[:, d], axis=(1, 2)).max() == 0]
    if flat:
        listed = ", ".join(map(str, flat[:5])) + (", ..." if len(flat) > 5 else "")
        found.append(
            Finding("warning", case.id, f"{len(flat)} of {image.shape[1]} slices are constant: {listed}")
        )
    share = _commonest_share(image)
    if share > _NEARLY_ALL:
        found.append(
            Finding("warning", case.id, f"{share:.1%} of the voxels have the same value: hardly an image")
        )
    if data.task == "segmentation" and case.label is not None:
        values = case.label.numpy()
        if not np.any((values > 0) & (values != IGNORED)):
            found.append(
                Finding("warning", case.id, "the label is empty: no voxel of any class but background")
            )
    return found


def _commonest_share(image: np.ndarray) -> float:
    """How many voxels have the commonest value: looked for among a sample, counted in all."""
    sample = image.ravel()[:: max(1, image.size // 10_000)]
    values, counts = np.unique(sample, return_counts=True)
    return float(np.mean(image == values[counts.argmax()]))


def _note(case: Case, task: Task, seen: _Seen) -> None:
    array = np.ascontiguousarray(case.image.numpy())
    digest = hashlib.sha256(repr(array.shape).encode() + array.tobytes()).hexdigest()
    seen.images[digest].append(case.id)
    seen.channels[len(array)] += 1
    if case.affine is not None:
        seen.orientations[io.orientation(case.affine)] += 1
        seen.slicing[case.axes[0]] += 1
        if case.spacing_mm is None:
            seen.no_spacing.append(case.id)
    if case.label is not None:
        label = case.label.numpy()
        seen.labels[case.id] = hashlib.sha256(label.tobytes()).hexdigest()
        several = task == "classification" and label.ndim == 1  # 0/1 for each class
        present = np.flatnonzero(label) if several else np.unique(label)
        seen.classes.update(int(k) for k in present if k != IGNORED)


# ---------------------------------------------------------------- the data set


def _labels(data: Checkable, seen: _Seen) -> list[Finding]:
    if not data.labelled_ids:
        return [Finding("error", "", "no case has a label: nothing can be trained or scored")]
    found = []
    for number, name in enumerate(data.classes):
        count = seen.classes[number]
        if count == 0 and not (number == 0 and data.task == "segmentation"):
            found.append(Finding("warning", "", f"class {name!r} is declared, but no case has it"))
        elif data.task == "classification" and count < _FEW_CASES:
            found.append(Finding("warning", "", f"class {name!r} has only {count} cases"))
    bare = len(data.ids) - len(data.labelled_ids)
    if bare:
        found.append(Finding("note", "", f"{bare} of {len(data.ids)} cases have no label"))
    return found


def _duplicates(data: Checkable, seen: _Seen) -> list[Finding]:
    found = []
    for cases in seen.images.values():
        first, *others = cases
        for other in others:
            same = f"the same image as {first!r}"
            if data.parts[first] != data.parts[other]:
                sides = f"{data.parts[other] or 'no part'}, that one in {data.parts[first] or 'no part'}"
                found.append(
                    Finding("error", other, f"{same}, but this one is in {sides}: scores would be too good")
                )
            elif seen.labels.get(first) != seen.labels.get(other):
                found.append(Finding("error", other, f"{same} with another label"))
            elif data.groups[first] != data.groups[other]:
                found.append(
                    Finding("warning", other, f"{same} under another patient: a split may cut between them")
                )
            else:
                found.append(Finding("warning", other, same))
    return found


def _kinds(seen: _Seen) -> list[Finding]:
    """Files of different kinds in one data set."""
    found = []
    if len(seen.orientations) > 1:
        mix = ", ".join(f"{count} {name}" for name, count in seen.orientations.most_common())
        found.append(
            Finding(
                "note", "", f"the files are stored in different orientations ({mix}); slices are not turned"
            )
        )
    if len(seen.slicing) > 1:
        mix = ", ".join(f"{count} along axis {axis}" for axis, count in seen.slicing.most_common())
        found.append(
            Finding(
                "warning",
                "",
                f"the cases are sliced along different axes ({mix}); tell one with --slice-axis",
            )
        )
    if len(seen.channels) > 1:
        mix = ", ".join(f"{count} with {channels}" for channels, count in seen.channels.most_common())
        found.append(Finding("warning", "", f"the cases have different numbers of channels ({mix})"))
    if seen.no_spacing:
        found.append(
            Finding(
                "note",
                "",
                f"{len(seen.no_spacing)} files do not say their spacing (the first is {seen.no_spacing[0]!r}): no "
                "distance in mm can be given for them",
            )
        )
    return found


def _splits(data: Checkable) -> list[Finding]:
    """Each given split as a training would take it: a patient on both sides, a part of one class."""
    found: list[Finding] = []
    if not data.labelled_ids:
        return found
    for fold in range(max(1, len(data.folds))):
        try:
            data.split(fold=fold)
        except SamAdaptError as error:
            found.append(Finding("error", "", str(error)))
    return found
