"""Dataset: cases on disk, loaded one at a time on access."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, overload

import torch
from torch import Tensor

from samadapt import io
from samadapt.datasets.split import make_split
from samadapt.opening import Opening, plain_modality
from samadapt.types import Case, SamAdaptError, SamAdaptWarning, Task

Part = Literal["train", "val", "test"]

_WHOLE_FILE = 16 << 20  # larger image files are hashed by size and both ends
_END = 1 << 20


@dataclass(frozen=True)
class Entry:
    """The files of one case and what the data set says of it; nothing is loaded."""

    id: str
    images: tuple[Path, ...]  # one for each channel file
    labels: tuple[Path, ...] = ()  # segmentation: the label map, or several masks that are merged
    target: int | tuple[float, ...] | None = None  # classification: the class, or one number for each class
    part: Part | None = None  # of the data set's own split
    group: str | None = None  # the patient, where the layout says it; later always
    row: int | None = None  # in the arrays of an .npz
    file_classes: tuple[int, ...] = ()  # where each label file is one class: which; else stored values say it


@dataclass(frozen=True)
class Dataset:
    """Cases with their classes, patients and official split. Frozen; a subset is a new one."""

    name: str
    root: Path
    opening: Opening  # how its files become cases
    entries: tuple[Entry, ...]
    folds: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ()  # (train, val) ids of splits_final.json
    left_out: tuple[tuple[Path, str], ...] = ()  # files below the root that are in no case, and why
    outside: bool = False  # whether the user allowed links and lists to lead out of the folder
    modality_told: bool = (
        False  # whether the user said what all scans are to be taken as, whatever their headers say
    )

    def __post_init__(self) -> None:
        if not self.entries:
            raise SamAdaptError(f"{self.root} holds no cases (read as {self.layout}); check the folder")
        seen: set[str] = set()
        for entry in self.entries:
            if entry.id in seen:
                raise SamAdaptError(
                    f"{self.root} has two cases called {entry.id!r}; a name is one case: rename one"
                )
            seen.add(entry.id)

    # ------------------------------------------------ how it was opened

    @property
    def layout(self) -> str:
        return self.opening.layout

    @property
    def task(self) -> Task:
        return self.opening.task

    @property
    def classes(self) -> tuple[str, ...]:
        return self.opening.classes

    @property
    def multilabel(self) -> bool:
        return self.opening.multilabel

    @property
    def channel_names(self) -> tuple[str, ...]:
        return self.opening.channel_names

    @property
    def channels(self) -> tuple[int, ...] | None:
        return self.opening.channels

    @property
    def window(self) -> str:
        return self.opening.window

    @property
    def label_values(self) -> Mapping[int, int]:
        return self.opening.label_values

    @property
    def group_rule(self) -> str:
        return self.opening.group_rule

    def with_window(self, window: str) -> Dataset:
        """The same data set, with another intensity window."""
        return dataclasses.replace(self, opening=dataclasses.replace(self.opening, window=window))

    # ------------------------------------------------ names

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """The cases' names, in the data set's order."""
        return tuple(entry.id for entry in self.entries)

    @cached_property
    def labelled_ids(self) -> tuple[str, ...]:
        """The names of the cases that have a label."""
        return tuple(e.id for e in self.entries if e.labels or e.target is not None)

    @cached_property
    def groups(self) -> dict[str, str]:
        """Case -> patient: no split cuts through one."""
        return {entry.id: entry.group or entry.id for entry in self.entries}

    @cached_property
    def parts(self) -> dict[str, Part | None]:
        """Case -> its part of the official split, None where there is none."""
        return {entry.id: entry.part for entry in self.entries}

    @cached_property
    def _by_id(self) -> dict[str, Entry]:
        return {entry.id: entry for entry in self.entries}

    def entry(self, case_id: str) -> Entry:
        """The files of a case."""
        if case_id not in self._by_id:
            near = difflib.get_close_matches(case_id, self.ids, n=3) or list(self.ids[:3])
            raise SamAdaptError(
                f"data set {self.name!r} has no case {case_id!r}; it has {', '.join(near)}, ..."
            )
        return self._by_id[case_id]

    # ------------------------------------------------ cases

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Case]:
        return (self.case(case_id) for case_id in self.ids)

    @overload
    def __getitem__(self, key: str) -> Case: ...
    @overload
    def __getitem__(self, key: list[str] | tuple[str, ...]) -> Dataset: ...
    def __getitem__(self, key: str | list[str] | tuple[str, ...]) -> Case | Dataset:
        """One case by its name; a data set of the named cases."""
        if isinstance(key, str):
            return self.case(key)
        if not key:
            raise SamAdaptError(f"no cases of data set {self.name!r} were chosen; give at least one name")
        return dataclasses.replace(self, entries=tuple(self.entry(i) for i in key))

    def is_alike(self, case_id: str) -> bool:
        """Whether a case is of the modality of the labelled ones, as the PET beside a labelled CT is not."""
        entry = self.entry(case_id)
        if self.modality_told or entry.row is not None:
            return True
        found = plain_modality(io.modality_of(entry.images[0]))
        return not found or not self.opening.modality or found == self.opening.modality

    def without_labels(self, ids: tuple[str, ...]) -> Dataset:
        """These cases without their labels, which are then not even read."""
        bare = (dataclasses.replace(self.entry(i), labels=(), file_classes=(), target=None) for i in ids)
        return dataclasses.replace(self[ids], entries=tuple(bare))

    def case(self, case_id: str) -> Case:
        """Load one case from disk."""
        entry = self.entry(case_id)
        group = self.groups[case_id]
        if entry.row is not None:
            images = io.NpzArrays(entry.images[0]).read(f"{entry.part}_images")
            case = io.make_case(images[entry.row], case_id, group, entry.images[0])
        else:
            case = self.opening.read_case(entry.images, case_id, group)
        label = self._label(entry, case)
        return case if label is None else dataclasses.replace(case, label=label)

    def depth(self, case_id: str) -> int:
        """How many slices a case has, from the header of its file."""
        return self.shape(case_id)[0]

    def shape(self, case_id: str) -> tuple[int, int, int]:
        """Slices, rows and columns of a case, from the header of its file."""
        entry = self.entry(case_id)
        if entry.row is not None:
            return (1, *io.NpzArrays(entry.images[0]).read(f"{entry.part}_images").shape[1:3])
        geometry = io.read_geometry(entry.images[0])
        axes, _ = self.opening.plane.place(geometry, entry.images[0])
        depth, rows, columns = (geometry.shape[axis] for axis in axes)
        return depth, rows, columns

    def label(self, case_id: str) -> Tensor | None:
        """The label alone: () int64 or (K,) float32 without reading the image; (D, H, W) uint8 with it."""
        entry = self.entry(case_id)
        return self._label(entry, None if self.task == "classification" else self.case(case_id))

    def _label(self, entry: Entry, case: Case | None) -> Tensor | None:
        if self.task == "segmentation":
            if not entry.labels or case is None:
                return None
            return case.label if case.label is not None else self._mask(entry, case)
        if entry.target is None:
            return None
        return torch.tensor(entry.target, dtype=torch.float32 if self.multilabel else torch.int64)

    def _mask(self, entry: Entry, case: Case) -> Tensor:
        """(D, H, W) uint8 of all label files of a case."""
        if entry.file_classes:
            return _one_class_a_file(entry, case)
        names, chosen = self.opening.stored_classes or self.classes, self.opening.structures_chosen
        first, *others = (
            io.read_label(path, case, self.label_values or None, names, chosen) for path in entry.labels
        )
        for path, other in zip(entry.labels[1:], others, strict=True):
            both = (first != 0) & (other != 0)
            shared = int((both & (first == other)).sum()) if io.structures_of(path) else 0
            if shared:
                raise SamAdaptError(
                    f"{path} and the other labels of case {entry.id!r} have a structure of the same name, and {shared} voxels of it in "
                    "common; expected objects of one structure that lie apart, for two labels of one object may be of two raters: "
                    "keep the one to learn from and move the other elsewhere, or merge them into one file"
                )
            if chosen:
                first = torch.where(both, torch.minimum(first, other), first)
            elif bool((both & (first != other)).any()):
                raise SamAdaptError(
                    f"{path} and the other masks of case {entry.id!r} give some voxels different classes; expected masks "
                    "that can be merged: correct them"
                )
            first = torch.where(first == 0, other, first)
        return first

    def without_paths(self, message: str) -> str:
        """A message that can be recorded: cases in place of their files and folders, which may be called after patients."""
        files = [(path, entry.id) for entry in self.entries for path in entry.images]
        files += [(path, f"{entry.id} (label)") for entry in self.entries for path in entry.labels]
        return cases_in_place_of(message, files, self.opening)

    # ------------------------------------------------ splits and identity

    split = make_split  # as a method: `data.split(labels=2)`

    def demand_unchanged(self) -> None:
        """Refuse to go on where a file was changed since `hash` was computed, so that it was not what was read."""
        if dataclasses.replace(self, name=self.name).hash != self.hash:
            raise SamAdaptError(
                f"a file of {self.root} was changed while the model learned from it, so that it is not known what it has seen: "
                "train again, with --overwrite, when the files are finished"
            )

    @cached_property
    def hash(self) -> str:
        """sha256 of what these cases are: names, patients, labels, image files.

        Files are hashed by content, images above 16 MiB by their size and both ends (the end of a `.gz` is
        a checksum of the whole). Copying or moving the data set does not change it.
        """
        digest = hashlib.sha256(repr((self.task, self.classes, self.channels, self.label_values)).encode())
        for entry in sorted(self.entries, key=lambda e: e.id):
            digest.update(repr((entry.id, entry.group, entry.part, entry.target, entry.row)).encode())
        files = {file for entry in self.entries for path in entry.images for file in io.files_of(path)}
        for path in sorted(files):
            digest.update(path.name.encode() + _file_hash(path, whole=False))
        for path in sorted(path for entry in self.entries for path in entry.labels):
            digest.update(path.name.encode() + _file_hash(path, whole=True))
        return digest.hexdigest()


def cases_in_place_of(message: str, files: Iterable[tuple[Path, str]], opening: Opening) -> str:
    """The message with a case's name where it has the path of a file of it, or the folder of a DICOM series.

    Where names are coded, file names alone are replaced too.

    Args:
        files: each with the name of its case.
    """
    # Whole paths first, for the files of all cases may have one name; longer ones first, for they may end in a shorter one.
    ordered = sorted(files, key=lambda item: -len(str(item[0])))
    for path, case in ordered:
        message = message.replace(str(path), case)
    for path, case in ordered:
        if str(path.parent) in message and io.is_found_by_content(path):
            message = message.replace(str(path.parent), case)
    if opening.anonymous:
        for path, case in sorted(ordered, key=lambda item: -len(item[0].name)):
            message = message.replace(path.name, case)
    return message


def _one_class_a_file(entry: Entry, case: Case) -> Tensor:
    """Binary masks, one for each class -> classes. Where two overlap, the first in the classes' order is kept."""
    label = torch.zeros(case.image.shape[1:], dtype=torch.uint8)
    for path, number in sorted(zip(entry.labels, entry.file_classes, strict=True), key=lambda item: item[1]):
        mask = io.read_label(path, case) > 0
        if bool((label[mask] > 0).any()):
            warnings.warn(
                "masks of different classes overlap in places; each voxel is given to the class that comes first",
                SamAdaptWarning,
                stacklevel=2,
            )
        label[mask & (label == 0)] = number
    return label


def _file_hash(path: Path, whole: bool) -> bytes:
    try:
        size = path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with open(path, "rb") as file:
            if whole or size <= _WHOLE_FILE:
                while block := file.read(_END):
                    digest.update(block)
            else:
                digest.update(file.read(_END))
                file.seek(-_END, 2)
                digest.update(file.read())
    except OSError as error:
        raise SamAdaptError(f"{path} cannot be read ({error.strerror}); check the file") from error
    return digest.digest()
