"""Classification from folders: one folder for each class, perhaps inside train/, val/, test/."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from samadapt import io
from samadapt.datasets.dataset import Entry, Part
from samadapt.datasets.masks import FOLDERS, is_in_mask_folder, split_masks
from samadapt.datasets.parsed import ParsedLayout, part_folders
from samadapt.types import SamAdaptError

_NOT_CLASSES = {"images", "image", "imagestr", "labelstr", "imagests", "labelsts", "derivatives", *FOLDERS}


def _class_folders(path: Path) -> dict[str, list[Path]]:
    """Class -> its images."""
    return {folder.name: images for folder in io.find_folders(path) if (images := _images(folder))}


def _images(folder: Path) -> list[Path]:
    """The images below a class's folder; masks, beside them or in a folder of masks, are none."""
    inside: dict[Path, list[Path]] = defaultdict(list)
    for file in io.list_files(folder, recursive=True).files:
        inside[file.parent].append(file)
    images = (files for files in inside.values() if not is_in_mask_folder(files[0], folder))
    return sorted(image for files in images for image in split_masks(files)[0])


def _roots(path: Path) -> list[tuple[Part | None, Path]]:
    parts = part_folders(path) if path.is_dir() else {}
    return list(parts.items()) if parts else [(None, path)]


def is_classes(path: Path) -> bool:
    """Two or more folders of images, none of them called images or masks."""
    classes: set[str] = set()
    for _, root in _roots(path):
        found = set(_class_folders(root))
        if not found or _NOT_CLASSES & {folder.name.lower() for folder in io.find_folders(root)}:
            return False
        classes |= found
    return len(classes) > 1


def read_classes(path: Path, label_column: str | None) -> ParsedLayout:
    """`CLASS/*.png`; classes in alphabetical order. A case is a file; volumes are cases too."""
    roots = _roots(path)
    found = [_class_folders(root) for _, root in roots]
    classes = tuple(sorted({name for folders in found for name in folders}))
    entries = []
    for (part, root), folders in zip(roots, found, strict=True):
        for number, name in enumerate(classes):
            if name not in folders:
                raise SamAdaptError(
                    f"{root / name} holds no images; expected some of every class in each part"
                )
            entries += [Entry(io.case_name(f), (f,), target=number, part=part) for f in folders[name]]
    entries = unique_names(entries, path)
    first = entries[0].images[0]
    return ParsedLayout(entries, classes, channel_names=channel_names(first))


def channel_names(first: Path) -> tuple[str, ...]:
    """By the first image: grey or colours; of a volume its modality, where its header says it."""
    geometry = io.read_geometry(first)
    if geometry.channels == 3:
        return ("red", "green", "blue")
    return (geometry.modality,) if geometry.modality and geometry.affine is not None else ("image",)


def unique_names(entries: Sequence[Entry], root: Path) -> list[Entry]:
    """Cases of the same file name in different folders are called by their folders as well."""
    counts = Counter(entry.id for entry in entries)
    return [
        entry if counts[entry.id] == 1 else replace(entry, id=_long_name(entry.images[0], root))
        for entry in entries
    ]


def _long_name(file: Path, root: Path) -> str:
    folder = file.parent.relative_to(root).parts if file.is_relative_to(root) else file.parent.parts[-1:]
    return "__".join((*(name for name in folder if name not in ("images", "image")), io.case_name(file)))
