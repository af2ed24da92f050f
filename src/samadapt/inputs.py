"""What `predict` is given -> the cases to predict, each named, none read yet."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from samadapt import io
from samadapt.datasets import Dataset, Entry, Split, find_layout, open_like, patients_of, split_masks
from samadapt.names import SUBSETS
from samadapt.opening import Opening
from samadapt.predicted import Planned
from samadapt.runs import read_config
from samadapt.types import Case, SamAdaptError, SamAdaptWarning


@dataclass(frozen=True)
class Input:
    """A case that can be loaded."""

    id: str
    planned: Planned
    load: Callable[[], Case]


@dataclass(frozen=True)
class Trained:
    """What a run folder knows of the cases of its data set."""

    split: Split | None  # None: it was trained without one

    @staticmethod
    def of(run: Path) -> Trained:
        """What a finished run knows."""
        path = run / "split.json"
        if path.is_file():
            return Trained(Split.read(path))
        if read_config(run).get("split_hash"):
            raise SamAdaptError(
                f"{run} was trained on a split, and its split.json is missing, so nobody knows which cases it learned from; "
                "copy the whole run folder again"
            )
        return Trained(None)

    @property
    def patients(self) -> Mapping[str, str]:
        """Case -> patient, where they differ."""
        return {} if self.split is None else self.split.patient_of

    @property
    def scored(self) -> frozenset[str]:
        """The cases that are kept for scoring."""
        return frozenset() if self.split is None else frozenset(self.split.val)

    def part(self, case: str) -> str:
        """ "train", "select" or "val"; "" for a case that the split does not name."""
        split = self.split
        lists = {} if split is None else {"train": split.train, "select": split.select, "val": split.val}
        return next((part for part, cases in lists.items() if case in cases), "")

    def learned(self, case: str) -> bool:
        """Whether the model has seen the label of a case of this name."""
        return self.part(case) in ("train", "select")


def find_inputs(given: Path, opening: Opening, trained: Trained, subset: str | None) -> list[Input]:
    """A scan, a folder of scans or a data set -> its cases.

    Args:
        subset: of a data set: a part of its official split or, where it has none, of the run's, or "all". None: the
            cases that the run's split keeps for scoring, else all.
    """
    if subset is not None and subset not in SUBSETS:
        raise SamAdaptError(f"unknown subset {subset!r}; known: {', '.join(SUBSETS)}")
    if not given.exists():
        raise SamAdaptError(f"{given} does not exist; give an image file, a folder of images, or a data set")
    if find_layout(given, opening.task, opening.layout) is not None:
        return _of_data_set(open_like(given, opening, trained.patients, labelled=False), trained, subset)
    if subset is not None:
        raise SamAdaptError(
            f"{given} is not a data set, so it has no subset {subset!r}; leave out --subset, or give the data set's folder"
        )
    return _of_scans(given, opening, trained)


def _of_scans(given: Path, opening: Opening, trained: Trained) -> list[Input]:
    files = _scan_files(given) if given.is_dir() else [given]
    channels = len(opening.channel_names)
    cases = io.group_channels(files, channels if channels > 1 and len(files) > 1 else None)
    entries = [Entry(name, paths) for name, paths in cases.items()]
    patients = patients_of(entries, given if given.is_dir() else given.parent, opening, trained.patients)
    return [
        Input(
            e.id,
            Planned(patients[e.id], "", trained.learned(e.id)),
            partial(opening.read_case, e.images, e.id, patients[e.id]),
        )
        for e in entries
    ]


def _scan_files(folder: Path) -> list[Path]:
    """The scans of a folder; masks beside them and files that cannot be read are left out with a warning."""
    listing = io.list_files(folder)
    scans, masks = split_masks(listing.files)
    left_out = [*listing.left_out, *((mask, "masks") for files in masks.values() for mask in files)]
    if not scans:
        strange = io.in_words(left_out, folder)
        raise SamAdaptError(
            f"{folder} holds no images{f'; it has {strange}' if strange else ''}; formats that are read: "
            f"{', '.join(io.known_suffixes())}"
        )
    if left_out:
        warnings.warn(f"left out of {folder}: {io.in_words(left_out, folder)}", SamAdaptWarning, stacklevel=2)
    return scans


def _of_data_set(data: Dataset, trained: Trained, subset: str | None) -> list[Input]:
    scored = trained.scored & set(data.ids)
    parts = {i: data.parts[i] or trained.part(i) for i in data.ids}
    chosen = [
        i for i in data.ids if subset in ("all", parts[i]) or (subset is None and (i in scored or not scored))
    ]
    if not chosen:
        known = sorted({part for part in parts.values() if part})
        raise SamAdaptError(
            f"no case of {data.root} is of the part {subset!r}; it has {', '.join(known) or 'no parts'}: choose one of "
            "these, or all"
        )
    if subset is None and len(chosen) < len(data):
        warnings.warn(
            f"of the {len(data)} cases of {data.name!r} the {len(chosen)} that were kept for scoring are predicted; "
            "choose others with --subset",
            SamAdaptWarning,
            stacklevel=2,
        )
    return [
        Input(i, Planned(data.groups[i], parts[i], trained.learned(i)), partial(data.case, i)) for i in chosen
    ]
