"""What `predict` is given -> the cases to predict, each named, none read yet."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from samadapt import io
from samadapt.datasets import Dataset, Entry, Split, find_layout, open_like, patients_of, split_masks
from samadapt.names import SUBSETS
from samadapt.opening import Opening
from samadapt.predicted import Planned
from samadapt.runs import demand_split, read_config
from samadapt.types import Case, SamAdaptError, SamAdaptWarning


@dataclass(frozen=True)
class Input:
    """A case that can be loaded."""

    id: str
    planned: Planned
    load: Callable[[], Case]
    file: Path  # its first one

    def what_failed(self, error: SamAdaptError) -> str:
        """In words that can be recorded: the folders of DICOM files may be called after the patient, the case is not."""
        message = str(error)
        if io.is_found_by_content(self.file):
            if len(io.files_of(self.file)) == 1:
                message = message.replace(str(self.file), self.id)
            message = message.replace(str(self.file.parent), self.id)
        return message


def split_of(run: Path) -> Split:
    """The split that a finished run was trained on; an empty one where it was trained without any."""
    path = run / "split.json"
    if path.is_file():
        return Split.read(path)
    demand_split(run, read_config(run))
    return Split((), (), (), (), (), labels=None, seed=0, rule="")


def find_inputs(given: Path, opening: Opening, split: Split, subset: str | None) -> list[Input]:
    """A scan, a folder of scans or a data set -> its cases.

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
        return _of_data_set(open_like(given, opening, split.patient_of, labelled=False), split, subset)
    if subset is not None:
        raise SamAdaptError(
            f"{given} is not a data set, so it has no subset {subset!r}; leave out --subset, or give the data set's folder"
        )
    return _of_scans(given, opening, split)


def find_unlabelled(given: Path, opening: Opening, recorded: Mapping[str, str]) -> Dataset:
    """All cases of a folder of scans or of a data set, without labels.

    Args:
        opening: of the data set that has the labels.
        recorded: case -> patient of that data set, where the two are not the same.
    """
    if not given.exists():
        raise SamAdaptError(f"{given} does not exist; give a folder of scans, a data set, or pool")
    if find_layout(given, opening.task, opening.layout) is not None:
        return open_like(given, opening, recorded, labelled=False)
    return Dataset(given.name, given, opening, _scan_entries(given, opening, recorded))


def _scan_entries(given: Path, opening: Opening, recorded: Mapping[str, str]) -> tuple[Entry, ...]:
    files = _scan_files(given) if given.is_dir() else [given]
    cases = _named(files, given if given.is_dir() else given.parent, len(opening.channel_names))
    entries = [Entry(name, paths) for name, paths in cases.items()]
    patients = patients_of(entries, given if given.is_dir() else given.parent, opening, recorded)
    return tuple(dataclasses.replace(e, group=patients[e.id]) for e in entries)


def _of_scans(given: Path, opening: Opening, split: Split) -> list[Input]:
    return [
        Input(
            e.id,
            Planned(e.group or e.id, "", split.learned(e.id)),
            partial(opening.read_case, e.images, e.id, e.group or e.id),
            e.images[0],
        )
        for e in _scan_entries(given, opening, split.patient_of)
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


def _scan_files(folder: Path) -> list[Path]:
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
        warnings.warn(f"left out of {folder}: {io.in_words(left_out, folder)}", SamAdaptWarning, stacklevel=2)
    return scans


def _of_data_set(data: Dataset, split: Split, subset: str | None) -> list[Input]:
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
            data.entry(i).images[0],
        )
        for i in chosen
    ]
