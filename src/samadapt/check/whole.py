"""What can be said of the data set: how it was read, its classes, patients, splits, and what an encoder has seen of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from samadapt import io
from samadapt.check.findings import Finding
from samadapt.datasets import Dataset, Split
from samadapt.datasets.patient_names import alike
from samadapt.overlap import overlaps_of, training_of
from samadapt.types import IGNORED, Case, SamAdaptError, encoder_names

_CROWDED = 10  # more cases of one patient than this are looked at
_FEWEST_BEGINNINGS = 3  # beginnings of names that differ so little are no patients
_FEW_CASES = 5  # a class with fewer cannot be learned and scored
_UNBALANCED = 20  # times as many cases of the commonest class as of the rarest


def _warning(kind: str, found: str, advice: str = "", cases: tuple[str, ...] = ()) -> Finding:
    return Finding("warning", kind, found, advice, cases)


def _note(kind: str, found: str, cases: tuple[str, ...] = ()) -> Finding:
    return Finding("note", kind, found, "", cases)


@dataclass
class Seen:
    """What is counted over the cases while each is read once."""

    orientations: Counter[str] = field(default_factory=Counter)
    across: list[str] = field(default_factory=list)  # cases whose thickest slices lie in another plane
    silent: list[str] = field(default_factory=list)  # cases that do not store their orientation in the body
    channels: Counter[int] = field(default_factory=Counter)
    no_spacing: list[str] = field(default_factory=list)
    classes: Counter[int] = field(default_factory=Counter)  # class -> cases that have it
    labelled: int = 0  # cases whose label could be read
    unread: list[str] = field(default_factory=list)

    def add(self, case: Case, data: Dataset) -> None:
        """Count one case."""
        self.channels[len(case.image)] += 1
        if case.affine is not None:
            if case.source is not None:
                self._add_place(case, io.read_geometry(case.source), data.opening.plane)
            if case.spacing_mm is None:
                self.no_spacing.append(case.id)
        if case.label is not None:
            self.labelled += 1
            label = case.label.numpy()
            several = data.task == "classification" and label.ndim == 1  # 0/1 for each class
            present = np.flatnonzero(label) if several else np.unique(label)
            self.classes.update(int(k) for k in present if k != IGNORED)

    def _add_place(self, case: Case, geometry: io.Geometry, plane: io.Plane) -> None:
        if geometry.orientation is None:
            self.silent.append(case.id)
        else:
            self.orientations[geometry.orientation] += 1
        if plane.is_across(geometry):
            self.across.append(case.id)


def check_whole(data: Dataset, seen: Seen, encoder: str | None) -> Iterator[Finding]:
    """All that is not about single cases."""
    yield from _classes(data, seen)
    yield from _kinds(data, seen)
    yield from _patients(data)
    yield from _left_out(data)
    yield from _splits(data)
    if encoder is not None:
        for one in encoder_names(encoder):
            yield from _overlap(data, one)


def _classes(data: Dataset, seen: Seen) -> Iterator[Finding]:
    if not data.labelled_ids:
        text = "no case has a label: nothing can be trained or evaluated"
        yield Finding(
            "error", "no labels", text, "put the label maps where the layout expects them; see the README"
        )
        return
    named = {n: name for n, name in enumerate(data.classes) if n or data.task == "classification"}
    absent = [repr(name) for n, name in named.items() if seen.classes[n] == 0]
    if absent and seen.labelled:
        one = len(absent) == 1
        yield _warning(
            "absent class",
            f"{'class' if one else 'classes'} {', '.join(absent)} {'is' if one else 'are'} declared, but "
            f"{'occurs' if one else 'occur'} in none of the {seen.labelled} labels that could be read"
            + (f" ({len(seen.unread)} cases could not be read)" if seen.unread else ""),
            "correct the labels, or the list of classes"
            + (f" in {file}" if (file := _declaring(data)) else ""),
        )
    if data.task == "classification":
        for n, name in named.items():
            if 0 < seen.classes[n] < _FEW_CASES:
                text = f"class {name!r} has only {seen.classes[n]} cases"
                yield _warning(
                    "class balance", text, "it can hardly be learned or scored; merge it or find more cases"
                )
    yield from _balance(data, seen, named)
    bare = [case for case in data.ids if case not in set(data.labelled_ids)]
    if bare:
        text = f"{len(bare)} of {len(data.ids)} cases have no label (the first is {bare[0]!r}); they are not learned from"
        yield _note("no label", text, tuple(bare))


def _declaring(data: Dataset) -> str:
    """The file that declares the classes, where the layout has one."""
    file = data.root / "dataset.json"
    return str(file) if file.is_file() else ""


def _balance(data: Dataset, seen: Seen, named: dict[int, str]) -> Iterator[Finding]:
    present = {n: seen.classes[n] for n in named if seen.classes[n]}
    if len(present) < 2:
        return
    ordered = sorted(present, key=lambda n: -present[n])
    listed = ", ".join(f"{named[n]} in {present[n]}" for n in ordered[:10]) + (
        ", ..." if len(ordered) > 10 else ""
    )
    text = f"of {seen.labelled} labelled cases: {listed}"
    if present[ordered[0]] >= _UNBALANCED * present[ordered[-1]]:
        yield _warning(
            "class balance",
            text,
            "few cases of a class make its scores uncertain; look at the scores per class",
        )
    else:
        yield _note("class balance", text)


def _kinds(data: Dataset, seen: Seen) -> Iterator[Finding]:
    """The orientation of the files, and files of different kinds in one data set."""
    yield _note("orientation", data.opening.slices)
    if len(seen.orientations) > 1:
        mix = ", ".join(f"{count} {name}" for name, count in seen.orientations.most_common())
        yield _note(
            "orientation", f"the files are stored in different orientations ({mix}) and are brought into one"
        )
    if seen.silent and seen.orientations:
        yield _warning(
            "orientation",
            f"{len(seen.silent)} files do not store their orientation in the body (the first is {seen.silent[0]!r}) and are "
            "taken as stored",
            "correct their headers if their orientation differs from the others",
            tuple(seen.silent),
        )
    if seen.across:
        yield _warning(
            "orientation",
            f"{len(seen.across)} cases were acquired in thick slices of another plane (the first is {seen.across[0]!r})",
            "leave them out, or put them into a data set of their own",
            tuple(seen.across),
        )
    if len(seen.channels) > 1:
        mix = ", ".join(f"{count} with {channels}" for channels, count in seen.channels.most_common())
        yield _warning(
            "channels",
            f"the cases have different numbers of channels ({mix})",
            "give all of them the same ones",
        )
    if seen.no_spacing:
        yield _note(
            "spacing",
            f"{len(seen.no_spacing)} files do not store their voxel spacing (the first is {seen.no_spacing[0]!r}): distances "
            "in mm cannot be computed for them",
            tuple(seen.no_spacing),
        )


def _patients(data: Dataset) -> Iterator[Finding]:
    """The rule that assigns cases to patients, and signs that it is wrong."""
    yield _note(
        "layout", f"read as {data.task}, laid out as {data.layout}; classes: {', '.join(data.classes)}"
    )
    yield _note("patients", f"patients: {data.group_rule}")
    sizes = Counter(data.groups.values())
    patient, most = sizes.most_common(1)[0]
    if len(sizes) > 1 and most > _CROWDED and most > len(data.groups) / 2:
        text = f"{most} of {len(data.groups)} cases are of one patient, {patient!r}"
        yield _warning("patients", text, "if they are not, assign patients with --group")


def _overlap(data: Dataset, encoder: str) -> Iterator[Finding]:
    """Whether the training data of an encoder include these data."""
    found = overlaps_of(encoder, data)
    if not found and training_of(encoder).medical:
        yield _note(
            "encoder",
            f"the training of encoder {encoder} saw {training_of(encoder).text}; whether these data are in it is not known: "
            "where they are public, look before the scores are believed",
        )
    elif not found:
        yield _note("encoder", f"encoder {encoder} was trained on {training_of(encoder).text}")
    for overlap in found:
        if overlap.warns:
            text = f"{overlap.text}; scores on these data may be too optimistic"
            yield _warning("encoder", text, "choose another encoder, or score on other data")
        else:
            yield _note("encoder", overlap.text)


def _left_out(data: Dataset) -> Iterator[Finding]:
    words = io.in_words(data.left_out, data.root)
    broken = any(path.is_symlink() and not path.exists() for path, _ in data.left_out)
    if words:
        yield Finding("warning" if broken else "note", "left out", f"left out: {words}")


def _splits(data: Dataset) -> Iterator[Finding]:
    """Every split as a training would use it: no patient on both sides, no part with a single class."""
    for fold in range(max(1, len(data.folds))) if data.labelled_ids else ():
        try:
            yield from _shared_beginnings(data, data.split(fold=fold))
        except SamAdaptError as error:
            yield Finding("error", "split", str(error))


def _shared_beginnings(data: Dataset, split: Split) -> Iterator[Finding]:
    """Cases that are patients of their own, and whose names begin alike on both sides of the split."""
    if any(case != patient for case, patient in data.groups.items()):
        return
    beginnings = {
        side: {b: case for case in getattr(split, side) if (b := alike(case))} for side in ("train", "val")
    }
    everywhere = {b for case in data.ids if (b := alike(case))}
    shared = sorted(set(beginnings["train"]) & set(beginnings["val"]))
    if len(everywhere) < _FEWEST_BEGINNINGS or not shared:  # one word before every number is no patient
        return
    first = shared[0]
    both = (beginnings["train"][first], beginnings["val"][first])
    yield _warning(
        "patients",
        f"{both[0]!r} trains and {both[1]!r} is scored; if {first!r} is a patient (there are {len(shared)} such "
        "beginnings), scores will be too optimistic",
        "assign patients with --group",
        both,
    )
