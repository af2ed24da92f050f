"""The scans to choose from, by patient: which may be labelled next, and which are left out. No label of theirs is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samadapt import io
from samadapt.datasets import Dataset, Split, default_window, find_layout, open_dataset, open_like
from samadapt.inputs import Taken, find_unlabelled
from samadapt.opening import Opening, plain_modality
from samadapt.types import SamAdaptError

_COLOURS = ("red", "green", "blue")


@dataclass(frozen=True)
class Pool:
    """The patients of a folder or a data set.

    Args:
        data: its cases without their labels, so that these cannot be read.
        known: patients whose labels the model learned from; new ones should differ from them.
        apart: patients whose labels choose a step or are kept for scoring, who stay where they are.
        labelled: patients of whom a label file is there, though nobody learned from it.
        scans: whether it is no data set, so that its own rule for patients does not stand in the opening.
        foreign: cases whose modality is not that of the others, such as the PET beside a CT.
    """

    data: Dataset
    known: frozenset[str] = frozenset()
    apart: frozenset[str] = frozenset()
    labelled: frozenset[str] = frozenset()
    foreign: tuple[str, ...] = ()
    scans: bool = False

    @property
    def rule(self) -> str:
        """How patients were told apart, in words."""
        if not self.scans:
            return self.data.group_rule
        return f"{len(self.data)} scans of {len(set(self.data.groups.values()))} patients, by their names"

    @property
    def open_to_label(self) -> dict[str, tuple[str, ...]]:
        """Patient -> cases, of all who may be suggested."""
        return {patient: ids for patient, ids in self.cases.items() if patient not in self.known | self.apart}

    @property
    def cases(self) -> dict[str, tuple[str, ...]]:
        """Patient -> cases."""
        found: dict[str, tuple[str, ...]] = {}
        for case in self.data.ids:
            if case not in self.foreign:
                patient = self.data.groups[case]
                found[patient] = (*found.get(patient, ()), case)
        return found

    @property
    def left_out(self) -> list[str]:
        """In words, a line each."""
        reasons = {
            "the model was trained on them": self.known,
            "their labels choose a step or are kept for scoring": self.apart,
        }
        lines = [f"{_patients(names)} left out, since {why}" for why, names in reasons.items() if names]
        if self.foreign:
            lines.append(f"{len(self.foreign)} scans left out, since they are of another modality")
        return lines


def pool_of_run(pool: Path, opening: Opening, split: Split, taken: Taken) -> Pool:
    """The pool as a model's data were opened.

    Args:
        opening, split: of the model's run.

    Raises:
        SamAdaptError: the pool cannot be read in this way, or no patient of it may be suggested.
    """
    if not pool.exists():
        raise SamAdaptError(f"{pool} does not exist; give a folder of scans, or a data set")
    labelled: tuple[str, ...] = ()
    is_data_set = find_layout(pool, opening.task, opening.layout) is not None
    if is_data_set:
        data = open_like(pool, opening, split.patient_of, **vars(taken))
        labelled, data = data.labelled_ids, data.without_labels(data.ids)
    else:
        data = find_unlabelled(pool, opening, split.patient_of, taken)
    patients = frozenset(data.groups.values())

    def of(cases: tuple[str, ...]) -> frozenset[str]:
        return patients & {split.patient_of.get(case, case) for case in cases}

    known = of(split.train)
    apart = of((*split.select, *split.val)) - known
    found = Pool(
        data,
        known,
        apart,
        frozenset(data.groups[i] for i in labelled) - known - apart,
        _foreign(data, taken),
        scans=not is_data_set,
    )
    return _demand_patients(found, pool)


def pool_alone(pool: Path, group: str | None, taken: Taken) -> Pool:
    """The pool where there is no model yet: a data set, or a folder of scans.

    Args:
        group: how patients are told apart, as for `datasets.open_dataset`.
    """
    if not pool.exists():
        raise SamAdaptError(f"{pool} does not exist; give a folder of scans, or a data set")
    if find_layout(pool) is None:
        opening = _opening_of_scans(pool, group, taken.modality)
        return _demand_patients(Pool(find_unlabelled(pool, opening, {}, taken), scans=True), pool)
    how: dict[str, Any] = {"modality": taken.modality, "anonymous": taken.anonymous}
    data = open_dataset(pool, group=group, allow_outside=taken.allow_outside, **how)
    labelled = frozenset(data.groups[i] for i in data.labelled_ids)
    bare = data.without_labels(data.ids)
    return _demand_patients(Pool(bare, labelled=labelled, foreign=_foreign(data, taken)), pool)


def _foreign(data: Dataset, taken: Taken) -> tuple[str, ...]:
    if taken.modality is not None:  # all are taken as it
        return ()
    return tuple(i for i in data.ids if not data.is_alike(i))


def _demand_patients(found: Pool, pool: Path) -> Pool:
    if not found.open_to_label:
        raise SamAdaptError(
            f"{pool} has no patient that could be labelled next: {'; '.join(found.left_out)}; give a folder of other scans"
        )
    return found


def _opening_of_scans(pool: Path, group: str | None, modality: str | None) -> Opening:
    """As a data set of such scans would be opened; of its classes nothing is known."""
    files = list(io.list_scans(pool).files) if pool.is_dir() else [pool]
    if not files:
        raise SamAdaptError(
            f"{pool} holds no images; formats that are read: {', '.join(io.known_suffixes())}"
        )
    first = files[0]
    kind = modality or plain_modality(io.modality_of(first))
    picture = io.is_picture(first)
    channels = io.read_geometry(first).channels
    volumes = [io.read_geometry(file) for file in files if not io.is_picture(file)]
    return Opening(
        "segmentation",
        ("background", "foreground"),
        channel_names=_COLOURS if picture and channels == len(_COLOURS) else ("image",),
        depth=io.depth_of(first),
        window=default_window(first, kind),
        plane=io.common_plane(volumes),
        modality=kind,
        group=group,
    )


def _patients(names: frozenset[str]) -> str:
    few = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} patient{'s'[: len(names) != 1]} ({few})"
