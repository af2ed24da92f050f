"""What `predict` is given -> the cases to predict, each named, none read yet."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from samadapt import io
from samadapt.datasets import (
    Dataset,
    Entry,
    NameKey,
    Split,
    cases_in_place_of,
    coded_alike,
    demand_inside,
    find_key,
    find_layout,
    open_like,
    patients_of,
    split_masks,
    told_modality,
)
from samadapt.names import SUBSETS
from samadapt.opening import Opening
from samadapt.predicted import Planned
from samadapt.runs import demand_split, read_config
from samadapt.types import Case, SamAdaptError, SamAdaptWarning

#: Where nothing was trained on, or nobody asks which cases were.
NO_SPLIT = Split((), (), (), (), (), labels=None, seed=0, rule="")


@dataclass(frozen=True)
class Taken:
    """How files are to be taken, beyond what the model says."""

    modality: str | None = None  # of all scans, whatever they say themselves; None: as they say
    anonymous: str | None = None  # as for `datasets.open_like`
    allow_outside: bool = False  # whether links and lists may lead out of the folder

    def __post_init__(self) -> None:
        if self.modality is not None:
            told_modality(self.modality)


@dataclass(frozen=True)
class Input:
    """A case that can be loaded."""

    id: str
    planned: Planned
    read: Callable[[], Case]
    files: tuple[Path, ...]  # of its image
    opening: Opening
    any_modality: bool = False
    of_data_set: bool = False  # which may have labels, beside a scan or a folder of scans

    def load(self) -> Case:
        """The case, if it is of the modality that the model was trained on."""
        if not self.any_modality:
            self.opening.demand_modality(io.modality_of(self.files[0]), self.files[0])
        case = self.read()
        self.opening.warn_of_values(case)
        return case

    def what_failed(self, error: SamAdaptError) -> str:
        """In words that can be recorded: the folders of DICOM files may be called after the patient, the case is not."""
        message, file = str(error), self.files[0]
        if self.opening.anonymous:
            return cases_in_place_of(message, [(path, self.id) for path in self.files], self.opening)
        if io.is_found_by_content(file):
            if len(io.files_of(file)) == 1:
                message = message.replace(str(file), self.id)
            message = message.replace(str(file.parent), self.id)
        return message


def split_of(run: Path) -> Split:
    """The split that a finished run was trained on; an empty one where it was trained without any."""
    path = run / "split.json"
    if path.is_file():
        return Split.read(path)
    demand_split(run, read_config(run))
    return NO_SPLIT


def find_inputs(
    given: Path, opening: Opening, split: Split, subset: str | None, taken: Taken = Taken()
) -> tuple[list[Input], Opening]:
    """A scan, a folder of scans or a data set -> its cases, and how they are read.

    Args:
        split: that the model was trained on.
        subset: of a data set: a part of its official split or, where it has none, of the run's, or "all". None: the
            cases that the run's split keeps for scoring, else all.
    """
    if subset is not None and subset not in SUBSETS:
        raise SamAdaptError(f"unknown subset {subset!r}; known: {', '.join(SUBSETS)}")
    if not given.exists():
        raise SamAdaptError(f"{given} does not exist; give an image file, a folder of images, or a data set")
    if (given / "predictions.json").is_file():
        raise SamAdaptError(f"{given} holds predictions of samadapt and no images; give the images")
    if find_layout(given, opening.task, opening.layout) is not None:
        data = open_like(given, opening, split.patient_of, labelled=False, **vars(taken))
        used = replace(opening, anonymous=data.opening.anonymous)
        return _known_as(_of_data_set(data, split, subset, taken), opening, used), used
    if subset is not None:
        raise SamAdaptError(
            f"{given} is not a data set, so it has no subset {subset!r}; leave out --subset, or give the data set's folder"
        )
    return find_scans(given, opening, split, taken)


def find_scans(
    given: Path, opening: Opening, split: Split, taken: Taken = Taken()
) -> tuple[list[Input], Opening]:
    """As `find_inputs`, but a folder is a folder of scans, also where it is laid out as a data set: no list in it is read."""
    key = find_key(taken.anonymous, opening)
    used = replace(opening, anonymous="" if key is None else key.recorded)
    return _known_as(_of_scans(given, used, split, key, taken), opening, used), used


def _known_as(cases: list[Input], trained: Opening, used: Opening) -> list[Input]:
    """Where names are coded otherwise than those of the run, nobody knows which of them it learned from."""
    if coded_alike(trained.anonymous, used.anonymous):
        return cases
    return [replace(case, planned=replace(case.planned, trained=None)) for case in cases]


def recorded_path(given: Path, opening: Opening) -> str:
    """Where the inputs are, as it may be written down: a code for scans that may be called after a patient.

    Args:
        opening: as `find_inputs` gives it.
    """
    path = str(given.resolve())
    key = find_key(None, opening)
    if key is None or find_layout(given, opening.task, opening.layout) is not None:
        return path
    return key.code("inputs", path)


def find_unlabelled(
    given: Path, opening: Opening, recorded: Mapping[str, str], taken: Taken = Taken()
) -> Dataset:
    """All cases of a folder of scans or of a data set, without labels.

    Args:
        opening: of the data set that has the labels.
        recorded: case -> patient of that data set, where the two are not the same.
    """
    if not given.exists():
        raise SamAdaptError(f"{given} does not exist; give a folder of scans, a data set, or pool")
    if find_layout(given, opening.task, opening.layout) is not None:
        return open_like(given, opening, recorded, labelled=False, **vars(taken))
    key = find_key(taken.anonymous, opening)
    entries = _scan_entries(given, opening, recorded, key, taken)
    if taken.modality is None:
        for entry in entries:
            opening.demand_modality(io.modality_of(entry.images[0]), entry.images[0])
    return Dataset(given.name, given, opening, entries)


def _scan_entries(
    given: Path, opening: Opening, recorded: Mapping[str, str], key: NameKey | None, taken: Taken
) -> tuple[Entry, ...]:
    root = given if given.is_dir() else given.parent
    files = _scan_files(given, named=key is None) if given.is_dir() else [given]
    if not given.is_dir() and given.name.startswith("."):
        raise SamAdaptError(
            f"{given} is a hidden file, and answers of that name would not be found again; rename it"
        )
    if given.is_dir():  # a single file was named by the user, wherever it leads
        demand_inside(files, root, taken.allow_outside)
    cases = _named(files, root, len(opening.channel_names))
    entries = [Entry(name, paths) for name, paths in cases.items()]
    patients = patients_of(entries, root, opening, recorded if key is None else {})
    entries = [replace(e, group=patients[e.id]) for e in entries]
    if key is None:
        return tuple(entries)
    return tuple(replace(e, group=recorded.get(e.id, e.group)) for e in key.hide(entries))


def _of_scans(given: Path, opening: Opening, split: Split, key: NameKey | None, taken: Taken) -> list[Input]:
    return [
        Input(
            e.id,
            Planned(e.group or e.id, "", split.learned(e.id)),
            partial(opening.read_case, e.images, e.id, e.group or e.id),
            e.images,
            opening,
            taken.modality is not None,
        )
        for e in _scan_entries(given, opening, split.patient_of, key, taken)
    ]


def _named(files: Sequence[Path], root: Path, channels: int) -> dict[str, tuple[Path, ...]]:
    """Case -> its image files."""
    told = [file for file in files if io.is_found_by_content(file)]
    others = [file for file in files if file not in told]
    io.demand_one_folder(told)
    cases = (
        io.group_channels(others, channels if channels > 1 and len(others) > 1 else None) if others else {}
    )
    for path, name in io.scan_names(told, root).items():
        if name in cases:
            raise SamAdaptError(f"{cases[name][0]} and {path} are both called {name!r}; rename one")
        cases[name] = (path,)
    return cases


def _scan_files(folder: Path, named: bool) -> list[Path]:
    """The scans of a folder; masks beside them and files that cannot be read are left out with a warning.

    DICOM series are found at any depth.
    """
    listing = io.list_scans(folder)
    structures = [file for file in listing.files if io.structures_of(file)]
    scans, masks = split_masks(file for file in listing.files if file not in structures)
    left_out = [*listing.left_out, *((mask, "masks") for files in masks.values() for mask in files)]
    left_out += [(file, "masks") for file in structures]
    if not scans:
        strange = io.in_words(left_out, folder)
        raise SamAdaptError(
            f"{folder} holds no images{f'; it has {strange}' if strange else ''}; formats that are read: "
            f"{', '.join(io.known_suffixes())}"
        )
    if left_out:
        which = (
            io.in_words(left_out, folder) if named else f"{len(left_out)} files (not named, for --anonymous)"
        )
        warnings.warn(f"left out of {folder}: {which}", SamAdaptWarning, stacklevel=2)
    return scans


def _of_data_set(data: Dataset, split: Split, subset: str | None, taken: Taken) -> list[Input]:
    scored = set(split.val) & set(data.ids)
    parts = {i: data.parts[i] or split.part(i) for i in data.ids}
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
        Input(
            i,
            Planned(data.groups[i], parts[i], split.learned(i)),
            partial(data.case, i),
            data.entry(i).images,
            data.opening,
            taken.modality is not None or data.entry(i).row is not None,
            True,
        )
        for i in chosen
    ]
