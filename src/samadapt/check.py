"""`check`: reads every case once and checks pairing, labels, geometry, duplicates and leakage between patients."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from samadapt import io
from samadapt.datasets import Dataset, Split
from samadapt.datasets.patient_names import alike
from samadapt.overlap import overlaps_of, training_of
from samadapt.transforms import image_hash
from samadapt.types import IGNORED, Case, SamAdaptError

Level = Literal["error", "warning", "note"]
_ORDER: tuple[Level, ...] = ("error", "warning", "note")

_NEARLY_ALL = 0.995  # of the voxels have one value: hardly an image
_CROWDED = 10  # more cases of one patient than this are looked at
_FEWEST_BEGINNINGS = 3  # beginnings of names that differ so little are no patients
_FEW_CASES = 5  # a class with fewer cannot be learned and scored


@dataclass(frozen=True)
class Finding:
    """One finding. Errors make a training fail or its scores wrong; warnings and notes are for the reader to judge."""

    level: Level
    case: str  # "" where it is about the data set
    message: str

    def __str__(self) -> str:
        return f"{self.level:8}{self.case + ': ' if self.case else ''}{self.message}"


def _warning(message: str, case: str = "") -> Finding:
    return Finding("warning", case, message)


def _remark(message: str) -> Finding:
    return Finding("note", "", message)


@dataclass
class _Seen:
    """What is compared between cases, collected while each is read once."""

    images: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # hash -> cases
    labels: dict[str, str] = field(default_factory=dict)  # case -> hash
    orientations: Counter[str] = field(default_factory=Counter)
    across: list[str] = field(default_factory=list)  # cases whose thickest slices lie in another plane
    silent: list[str] = field(default_factory=list)  # cases that do not store their orientation in the body
    channels: Counter[int] = field(default_factory=Counter)
    no_spacing: list[str] = field(default_factory=list)
    classes: Counter[int] = field(default_factory=Counter)  # class -> cases that have it


def check(
    data: Dataset, progress: Callable[[int], None] | None = None, encoder: str | None = None
) -> list[Finding]:
    """All findings, the most severe first. A data set without errors and warnings is sound.

    Args:
        progress: called with the number of cases read so far.
        encoder: its name; whether its training data include this data set is checked too.
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
            _note(case, data, seen)
        if progress:
            progress(number)
    findings += [*_labels(data, seen), *_duplicates(data, seen), *_kinds(data, seen)]
    findings += [*_patients(data), *_left_out(data), *_splits(data)]
    findings += [] if encoder is None else _overlap(data, encoder)
    return sorted(findings, key=lambda f: _ORDER.index(f.level))


def summary(findings: Iterable[Finding], cases: int) -> str:
    """The findings one a line, and the counts."""
    findings = list(findings)
    counts = Counter(f.level for f in findings)
    total = ", ".join(f"{counts[level]} {level}{'s' * (counts[level] != 1)}" for level in _ORDER)
    return "\n".join([*map(str, findings), f"{cases} cases read: {total}"])


# ---------------------------------------------------------------- one case


def _check_case(case: Case, data: Dataset) -> Iterator[Finding]:
    image = case.image.numpy()
    for channel, values in enumerate(image):
        if values.min() == values.max() and len(image) > 1:
            yield _warning(f"channel {channel} is constant ({values.flat[0]:g})", case.id)
    flat = [d for d in range(image.shape[1]) if np.ptp(image[:, d], axis=(1, 2)).max() == 0]
    if flat:
        listed = ", ".join(map(str, flat[:5])) + (", ..." if len(flat) > 5 else "")
        yield _warning(f"{len(flat)} of {image.shape[1]} slices are constant: {listed}", case.id)
    share = _commonest_share(image)
    if share > _NEARLY_ALL:
        yield _warning(f"{share:.1%} of the voxels have the same value: hardly an image", case.id)
    if data.task == "segmentation" and case.label is not None:
        values = case.label.numpy()
        if not np.any((values > 0) & (values != IGNORED)):
            yield _warning("the label is empty: all voxels are background", case.id)


def _commonest_share(image: np.ndarray) -> float:
    """The share of voxels with the most frequent value, which is estimated from a sample and counted in all voxels."""
    sample = image.ravel()[:: max(1, image.size // 10_000)]
    values, counts = np.unique(sample, return_counts=True)
    return float(np.mean(image == values[counts.argmax()]))


def _note(case: Case, data: Dataset, seen: _Seen) -> None:
    seen.images[image_hash(case)].append(case.id)
    seen.channels[len(case.image)] += 1
    if case.affine is not None:
        if case.source is not None:
            _note_place(case, io.read_geometry(case.source), data.opening.plane, seen)
        if case.spacing_mm is None:
            seen.no_spacing.append(case.id)
    if case.label is not None:
        label = case.label.numpy()
        seen.labels[case.id] = hashlib.sha256(label.tobytes()).hexdigest()
        several = data.task == "classification" and label.ndim == 1  # 0/1 for each class
        present = np.flatnonzero(label) if several else np.unique(label)
        seen.classes.update(int(k) for k in present if k != IGNORED)


def _note_place(case: Case, geometry: io.Geometry, plane: io.Plane, seen: _Seen) -> None:
    if geometry.orientation is None:
        seen.silent.append(case.id)
    else:
        seen.orientations[geometry.orientation] += 1
    if plane.is_across(geometry):
        seen.across.append(case.id)


# ---------------------------------------------------------------- the data set


def _labels(data: Dataset, seen: _Seen) -> Iterator[Finding]:
    if not data.labelled_ids:
        yield Finding("error", "", "no case has a label: nothing can be trained or evaluated")
        return
    for number, name in enumerate(data.classes):
        count = seen.classes[number]
        if count == 0 and not (number == 0 and data.task == "segmentation"):
            yield _warning(f"class {name!r} is declared, but occurs in no case")
        elif data.task == "classification" and count < _FEW_CASES:
            yield _warning(f"class {name!r} has only {count} cases")
    bare = len(data.ids) - len(data.labelled_ids)
    if bare:
        labelled = set(data.labelled_ids)
        first = next(i for i in data.ids if i not in labelled)
        yield _remark(
            f"{bare} of {len(data.ids)} cases have no label (the first is {first!r}); they are not learned from"
        )


def _duplicates(data: Dataset, seen: _Seen) -> Iterator[Finding]:
    for cases in seen.images.values():
        first, *others = cases
        for other in others:
            same = f"the same image as {first!r}"
            if data.parts[first] != data.parts[other]:
                sides = f"{data.parts[other] or 'no part'}, that one in {data.parts[first] or 'no part'}"
                yield Finding(
                    "error", other, f"{same}, but this one is in {sides}: scores would be too optimistic"
                )
            elif seen.labels.get(first) != seen.labels.get(other):
                yield Finding("error", other, f"{same} with another label")
            elif data.groups[first] != data.groups[other]:
                yield _warning(f"{same} under another patient: a split may cut between them", other)
            else:
                yield _warning(same, other)


def _kinds(data: Dataset, seen: _Seen) -> Iterator[Finding]:
    """The orientation of the files, and files of different kinds in one data set."""
    yield _remark(data.opening.slices)
    if len(seen.orientations) > 1:
        mix = ", ".join(f"{count} {name}" for name, count in seen.orientations.most_common())
        yield _remark(f"the files are stored in different orientations ({mix}) and are brought into one")
    if seen.silent and seen.orientations:
        yield _warning(
            f"{len(seen.silent)} files do not store their orientation in the body (the first is {seen.silent[0]!r}) and are "
            "taken as stored; correct their headers if their orientation differs from the others"
        )
    if seen.across:
        yield _warning(
            f"{len(seen.across)} cases were acquired in thick slices of another plane (the first is {seen.across[0]!r}): "
            "leave them out, or put them into a data set of their own"
        )
    if len(seen.channels) > 1:
        mix = ", ".join(f"{count} with {channels}" for channels, count in seen.channels.most_common())
        yield _warning(f"the cases have different numbers of channels ({mix})")
    if seen.no_spacing:
        yield _remark(
            f"{len(seen.no_spacing)} files do not store their voxel spacing (the first is {seen.no_spacing[0]!r}): distances "
            "in mm cannot be computed for them"
        )


def _patients(data: Dataset) -> Iterator[Finding]:
    """The rule that assigns cases to patients, and signs that it is wrong."""
    yield _remark(f"read as {data.task}, laid out as {data.layout}; classes: {', '.join(data.classes)}")
    yield _remark(f"patients: {data.group_rule}")
    sizes = Counter(data.groups.values())
    patient, most = sizes.most_common(1)[0]
    if len(sizes) > 1 and most > _CROWDED and most > len(data.groups) / 2:
        yield _warning(
            f"{most} of {len(data.groups)} cases are of one patient, {patient!r}: if they are not, assign "
            "patients with --group"
        )


def _overlap(data: Dataset, encoder: str) -> list[Finding]:
    """Whether the training data of an encoder include these data."""
    found = overlaps_of(encoder, data)
    if not found and training_of(encoder).medical:
        about = (
            f"the training of encoder {encoder} saw {training_of(encoder).text}; whether these data are in it is not known: "
            "where they are public, look before the scores are believed"
        )
        return [_remark(about)]
    if not found:
        return [_remark(f"encoder {encoder} was trained on {training_of(encoder).text}")]
    return [
        _warning(f"{x.text}; scores on these data may be too optimistic") if x.warns else _remark(x.text)
        for x in found
    ]


def _left_out(data: Dataset) -> list[Finding]:
    words = io.in_words(data.left_out, data.root)
    broken = any(path.is_symlink() and not path.exists() for path, _ in data.left_out)
    return [Finding("warning" if broken else "note", "", f"left out: {words}")] if words else []


def _shared_beginnings(data: Dataset, split: Split) -> list[Finding]:
    """Cases that are patients of their own, and whose names begin alike on both sides of the split."""
    if any(case != patient for case, patient in data.groups.items()):
        return []
    beginnings = {
        side: {b: case for case in getattr(split, side) if (b := alike(case))} for side in ("train", "val")
    }
    everywhere = {b for case in data.ids if (b := alike(case))}
    shared = sorted(set(beginnings["train"]) & set(beginnings["val"]))
    if len(everywhere) < _FEWEST_BEGINNINGS or not shared:  # one word before every number is no patient
        return []
    first = shared[0]
    return [
        _warning(
            f"{beginnings['train'][first]!r} trains and {beginnings['val'][first]!r} is scored; if {first!r} is a patient "
            f"(there are {len(shared)} such beginnings), scores will be too optimistic: assign patients with --group"
        )
    ]


def _splits(data: Dataset) -> Iterator[Finding]:
    """Every split as a training would use it: no patient on both sides, no part with a single class."""
    for fold in range(max(1, len(data.folds))) if data.labelled_ids else ():
        try:
            yield from _shared_beginnings(data, data.split(fold=fold))
        except SamAdaptError as error:
            yield Finding("error", "", str(error))
