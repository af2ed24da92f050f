"""Segmentation folders without a description: masks in a folder beside the images, or beside each image."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from samadapt import io
from samadapt.datasets.dataset import Entry, Part
from samadapt.datasets.masks import classes_from_values, find_masks, image_name, masks_beside, split_masks
from samadapt.datasets.parsed import PARTS, ParsedLayout, part_folders
from samadapt.datasets.pictures import channel_names, unique_names
from samadapt.types import SamAdaptError

# ---------------------------------------------------------------- images/ and masks/


def _roots(path: Path) -> list[tuple[Part | None, Path]]:
    """The folder itself, or its train/, val/ and test/ folders, or class folders, each with images/ and masks/."""
    if not path.is_dir():
        return []
    if masks_beside(path):
        return [(None, path)]
    parts = [(part, folder) for part, folder in part_folders(path).items() if (folder / "images").is_dir()]
    if parts:
        return list(parts)
    return [(None, folder) for folder in io.find_folders(path) if masks_beside(folder)]


def is_pairs(path: Path) -> bool:
    """images/ and masks/ side by side, perhaps inside train/, val/, test/ or inside class folders."""
    return any(masks_beside(folder) for _, folder in _roots(path))


def read_pairs(path: Path, label_column: str | None) -> ParsedLayout:
    """`images/NAME.*` with `masks/NAME.*`, `NAME_mask.*`, `NAME_segmentation.*`, ... in one of the mask folders."""
    entries = [entry for part, folder in _roots(path) for entry in _pairs(folder, part)]
    if not entries:
        raise SamAdaptError(f"{path}: the images folder is empty; expected {', '.join(io.known_suffixes())}")
    return _found(unique_names(entries, path), path)


def _found(entries: Sequence[Entry], path: Path, group_rule: str = "as the data set says") -> ParsedLayout:
    """With classes made from the values in the masks."""
    classes, values = classes_from_values([file for entry in entries for file in entry.labels], path)
    names = _channel_names(entries[0])
    return ParsedLayout(
        entries,
        classes,
        classes_declared=False,
        channel_names=names,
        label_values=values,
        group_rule=group_rule,
    )


def _channel_names(entry: Entry) -> tuple[str, ...]:
    if len(entry.images) > 1:
        return tuple(f"channel {n}" for n in range(len(entry.images)))
    return channel_names(entry.images[0])


def _pairs(folder: Path, part: Part | None) -> list[Entry]:
    beside = masks_beside(folder)
    image_folder, mask_files = (beside[0], io.find_files(beside[1])) if beside else (folder / "images", [])
    images = io.find_files(image_folder)
    cases = io.each_file(images) if _same_names(images, mask_files) else io.group_channels(images)
    masks, alone = find_masks(cases, mask_files)
    if alone:
        raise SamAdaptError(
            f"{alone[0]} has no image; expected {image_folder / image_name(io.case_name(alone[0]))}.*, or remove the mask"
        )
    return [Entry(name, files, masks.get(name, ()), part=part) for name, files in sorted(cases.items())]


def _same_names(images: Sequence[Path], masks: Sequence[Path]) -> bool:
    """Whether a mask is called as a whole image file: then a number at its end is not a channel's."""
    names = {io.case_name(mask) for mask in masks}
    names |= {image_name(name) for name in names}
    return any(io.case_name(image) in names for image in images)


# ---------------------------------------------------------------- a mask beside each image, as ACDC and BUSI


_ACDC_NAME = re.compile(r"patient\d+_frame\d+$")
_ACDC_CLASSES = ("background", "RV", "MYO", "LV")


def _beside(path: Path) -> dict[Path, tuple[list[Path], dict[str, tuple[Path, ...]]]]:
    """Folder -> its images and the masks beside them, of folders that have any."""
    files: dict[Path, list[Path]] = defaultdict(list)
    for file in io.list_files(path, recursive=True).files if path.is_dir() else ():
        files[file.parent].append(file)
    found = {folder: split_masks(inside) for folder, inside in files.items()}
    return {folder: sides for folder, sides in found.items() if sides[1]}


def is_beside(path: Path) -> bool:
    """`NAME_gt.nii.gz`, `NAME_mask.png`, `NAME_seg.nii.gz`, ... beside NAME, in one folder or in several."""
    return bool(_beside(path))


def read_beside(path: Path, label_column: str | None) -> ParsedLayout:
    """NAME with NAME_gt, NAME_mask, NAME_mask_1, ... A folder called by a number is a patient.

    Where a patient's folder has masks, what has none (ACDC's 4-D series) is left out; elsewhere it is an image without
    a label.
    """
    entries = [
        e
        for folder, (images, masks) in sorted(_beside(path).items())
        for e in _in_folder(folder, images, masks, path)
    ]
    entries = unique_names(entries, path)
    if all(_ACDC_NAME.match(entry.id) for entry in entries):
        values = {v: v for v in range(len(_ACDC_CLASSES))}
        return ParsedLayout(entries, _ACDC_CLASSES, label_values=values, group_rule="the patient's folder")
    return _found(entries, path, "the patient's folder")


def _in_folder(
    folder: Path, images: list[Path], masks: dict[str, tuple[Path, ...]], root: Path
) -> list[Entry]:
    patient = folder.name if folder != root and re.search(r"\d", folder.name) else None
    part = next(
        (
            PARTS[p.name.lower()]
            for p in (folder, *folder.parents)
            if p != root and p.is_relative_to(root) and p.name.lower() in PARTS
        ),
        None,
    )
    cases = io.each_file(images)
    if not set(masks) <= set(cases):  # a mask of several channel files
        cases = io.group_channels(images)
    alone = sorted(set(masks) - set(cases))
    if alone:
        raise SamAdaptError(
            f"{masks[alone[0]][0]} has no image; expected {folder / alone[0]}.*, or remove the mask"
        )
    return [
        Entry(name, files, masks.get(name, ()), part=part, group=patient)
        for name, files in sorted(cases.items())
        if name in masks or patient is None
    ]
