"""Classification from folders: one folder for each class, perhaps inside train/, val/, test/."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from samadapt import io
from samadapt.datasets.dataset import Entry, Part
from samadapt.datasets.found import Found, part_folders, window_of
from samadapt.types import SamAdaptError

_NOT_CLASSES = {"images", "masks", "labels", "imagestr", "labelstr", "imagests", "labelsts", "annotations"}


def _class_folders(path: Path) -> dict[str, Path]:
    if not path.is_dir():
        return {}
    return {f.name: f for f in sorted(path.iterdir()) if f.is_dir() and not f.name.startswith(".")}


def _roots(path: Path) -> list[tuple[Part | None, Path]]:
    parts = part_folders(path) if path.is_dir() else {}
    return list(parts.items()) if parts else [(None, path)]


def is_classes(path: Path) -> bool:
    """Two or more folders of images, none of them called images or masks."""
    for _, root in _roots(path):
        folders = _class_folders(root)
        if len(folders) < 2 or _NOT_CLASSES & {name.lower() for name in folders}:
            return False
        if not any(io.find_files(folder, recursive=True) for folder in folders.values()):
            return False
    return True


def read_classes(path: Path, label_column: str | None) -> Found:
    """`CLASS/*.png`; classes in alphabetical order. A case is a file; volumes are cases too."""
    roots = _roots(path)
    classes = tuple(sorted({name for _, root in roots for name in _class_folders(root)}))
    entries = []
    for part, root in roots:
        folders = _class_folders(root)
        for number, name in enumerate(classes):
            files = io.find_files(folders[name], recursive=True) if name in folders else []
            if not files:
                raise SamAdaptError(
                    f"{root / name} holds no images; expected some of every class in each part"
                )
            entries += [Entry(io.case_name(f), (f,), target=number, part=part) for f in files]
    entries = unique_names(entries, path)
    first = entries[0].images[0]
    return Found(entries, classes, channel_names=channel_names(first), window=window_of(first, ("image",)))


def channel_names(first: Path) -> tuple[str, ...]:
    """By the first picture: grey or colours."""
    return ("red", "green", "blue") if io.read_geometry(first).channels == 3 else ("image",)


def unique_names(entries: Sequence[Entry], root: Path) -> list[Entry]:
    """Cases of the same file name in different folders are called by their folders as well."""
    counts = Counter(entry.id for entry in entries)
    return [
        entry if counts[entry.id] == 1 else replace(entry, id=_long_name(entry.images[0], root))
        for entry in entries
    ]


def _long_name(file: Path, root: Path) -> str:
    folder = file.parent.relative_to(root).parts if file.is_relative_to(root) else file.parent.parts[-1:]
    return "__".join((*folder, io.case_name(file)))
