"""Segmentation folders without a description: images/ with masks/, and patient folders with *_gt.nii.gz."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from samadapt import io
from samadapt.datasets.coding import told_classes
from samadapt.datasets.dataset import Entry, Part
from samadapt.datasets.found import PARTS, Found, part_folders, window_of
from samadapt.types import SamAdaptError

_MASKS = ("masks", "labels", "annotations", "segmentations", "gt")
_MASK_WORDS = re.compile(
    r"(?:[_-](?:mask|masks|segmentation|seg|label|labels|gt|annotation))+$", re.IGNORECASE
)


def _mask_folder(path: Path) -> Path | None:
    found = [path / name for name in _MASKS if (path / name).is_dir()]
    return found[0] if found and (path / "images").is_dir() else None


def _roots(path: Path) -> list[tuple[Part | None, Path]]:
    """The folder itself, or its train/, val/ and test/ folders, each with images/ and masks/."""
    if not path.is_dir():
        return []
    if _mask_folder(path):
        return [(None, path)]
    return [(part, folder) for part, folder in part_folders(path).items() if (folder / "images").is_dir()]


def is_pairs(path: Path) -> bool:
    """images/ and masks/ side by side, perhaps inside train/, val/, test/."""
    return any(_mask_folder(folder) for _, folder in _roots(path))


def read_pairs(path: Path, label_column: str | None) -> Found:
    """`images/NAME.*` with `masks/NAME.*`, `NAME_mask.*`, `NAME_segmentation.*`, ... in one of the mask folders."""
    entries = [entry for part, folder in _roots(path) for entry in _pairs(folder, part)]
    if not entries:
        raise SamAdaptError(f"{path}: the images folder is empty; expected {', '.join(io.IMAGE_SUFFIXES)}")
    classes, values = told_classes([e.label for e in entries if e.label is not None], path)
    first = entries[0].images[0]
    names = _channel_names(entries[0])
    window = window_of(first, names)
    return Found(entries, classes, False, channel_names=names, window=window, label_values=values)


def _channel_names(entry: Entry) -> tuple[str, ...]:
    if len(entry.images) > 1:
        return tuple(f"channel {n}" for n in range(len(entry.images)))
    return ("red", "green", "blue") if io.read_geometry(entry.images[0]).channels == 3 else ("image",)


def _pairs(folder: Path, part: Part | None) -> list[Entry]:
    mask_folder = _mask_folder(folder)
    mask_files = io.find_files(mask_folder) if mask_folder else []
    images = io.find_files(folder / "images")
    cases = io.each_file(images) if _same_names(images, mask_files) else io.group_channels(images)
    masks: dict[str, Path] = {}
    for file in mask_files:
        name = io.case_name(file)
        if name not in cases:
            name = _MASK_WORDS.sub("", name)
        if name not in cases:
            raise SamAdaptError(
                f"{file} has no image; expected {folder / 'images' / name}.*, or remove the mask"
            )
        if name in masks:
            raise SamAdaptError(
                f"{masks[name]} and {file} are masks of the same image; expected one: merge them"
            )
        masks[name] = file
    return [Entry(name, files, masks.get(name), part=part) for name, files in sorted(cases.items())]


def _same_names(images: Sequence[Path], masks: Sequence[Path]) -> bool:
    """Whether a mask is called as a whole image file: then a number at its end is not a channel's."""
    names = {io.case_name(mask) for mask in masks}
    names |= {_MASK_WORDS.sub("", name) for name in names}
    return any(io.case_name(image) in names for image in images)


# ---------------------------------------------------------------- ACDC as it is published


_ACDC_NAME = re.compile(r"patient\d+_frame\d+$")
_ACDC_CLASSES = ("background", "RV", "MYO", "LV")


def _truths(path: Path) -> list[Path]:
    """*_gt.nii.gz in patient folders, perhaps below training/ and testing/."""
    if not path.is_dir():
        return []
    return sorted([*path.glob("*/*_gt.nii.gz"), *path.glob("*/*/*_gt.nii.gz")])


def is_acdc(path: Path) -> bool:
    """Patient folders with a truth beside each image."""
    return bool(_truths(path))


def read_acdc(path: Path, label_column: str | None) -> Found:
    """`PATIENT/NAME.nii.gz` with `PATIENT/NAME_gt.nii.gz`; the folder is the patient. 4-D series are left out."""
    entries = []
    for truth in _truths(path):
        image = truth.with_name(truth.name.replace("_gt.nii.gz", ".nii.gz"))
        if not image.is_file():
            raise SamAdaptError(f"{truth} has no image; expected {image}")
        part = PARTS.get(truth.parent.parent.name.lower())
        entries.append(Entry(io.case_name(image), (image,), truth, part=part, group=truth.parent.name))
    if all(_ACDC_NAME.match(entry.id) for entry in entries):
        classes: tuple[str, ...] = _ACDC_CLASSES
        values = {v: v for v in range(len(classes))}
    else:
        classes, values = told_classes([e.label for e in entries if e.label is not None], path)
    return Found(
        entries,
        classes,
        classes_declared=classes == _ACDC_CLASSES,
        label_values=values,
        window=window_of(entries[0].images[0], ("image",)),
        group_rule="the patient's folder",
    )
