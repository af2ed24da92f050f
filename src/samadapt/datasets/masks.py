"""Masks: distinguished from images by their names; their classes, by their grey values."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from samadapt import io
from samadapt.types import IGNORED, SamAdaptError

#: Folders of masks beside a folder `images`.
FOLDERS = ("masks", "mask", "labels", "label", "annotations", "segmentations", "gt", "ground_truth")
#: What stands at the end of a mask's name, after its image's; the number is that of one mask of several.
_WORDS = re.compile(
    r"(?:[_\- ](?:mask|masks|segmentation|seg|label|labels|gt|annotation|dseg|groundtruth))+(?:[_\- ]?\d{1,2})?$",
    re.IGNORECASE,
)
_FEW = 8  # at most so many grey values can be classes that were spread out to be visible
_FLOOR = 64  # values below are taken as class numbers


def image_name(name: str) -> str:
    """`x_mask_1` -> `x`: the name of the image that a mask is of; a name without such words as it is."""
    return _WORDS.sub("", name)


def split_masks(files: Iterable[Path]) -> tuple[list[Path], dict[str, tuple[Path, ...]]]:
    """Files of one folder -> images, and the masks of each by the image's case name.

    A file is a mask where its name is that of another file, or of a case of channel files, and a word like `_mask`. Where
    a folder has such masks, a file called like one is a mask too if its image is not there: it is no image of its own.
    """
    files = sorted(files)
    names = {io.case_name(file) for file in files} | {io.case_name(file, channels=True) for file in files}
    images, masks = [], dict[str, tuple[Path, ...]]()
    for file in files:
        name = io.case_name(file)
        if (of := image_name(name)) != name:
            masks[of] = (*masks.get(of, ()), file)
        else:
            images.append(file)
    return (images, masks) if names & set(masks) else (files, {})


def is_in_mask_folder(file: Path, root: Path) -> bool:
    """Whether a folder between the root and the file is one of masks beside one of images."""
    return any(
        parent.name.lower() in FOLDERS and images_beside(parent) is not None
        for parent in file.parents
        if parent != root and parent.is_relative_to(root)
    )


def images_beside(mask_folder: Path) -> Path | None:
    """The folder of images beside a folder of masks."""
    for name in ("images", "image", "Images"):
        if (mask_folder.parent / name).is_dir():
            return mask_folder.parent / name
    return None


def masks_beside(folder: Path) -> tuple[Path, Path] | None:
    """The folders of images and of masks right in a folder."""
    for inner in io.find_folders(folder):
        if inner.name.lower() in FOLDERS and (images := images_beside(inner)):
            return images, inner
    return None


def find_masks(
    cases: Mapping[str, Sequence[Path]], files: Sequence[Path]
) -> tuple[dict[str, tuple[Path, ...]], list[Path]]:
    """Mask files of a folder of their own -> those of each case, and those without one."""
    found, alone = dict[str, tuple[Path, ...]](), []
    for file in files:
        name = io.case_name(file)
        name = name if name in cases else image_name(name)
        if name in cases:
            found[name] = (*found.get(name, ()), file)
        else:
            alone.append(file)
    return found, alone


# ---------------------------------------------------------------- classes, for data sets without a description


def classes_from_values(masks: Sequence[Path], root: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """Class names and stored value -> class, from the values of all masks.

    0/255 is background and foreground; small numbers are the classes themselves, with 255 ignored; a few
    spread-out grey values (0, 128, 255) are the classes in their order. Anything else is not a mask.
    """
    seen: dict[int, Path] = {}
    of_mask = {mask: set(io.label_values(mask)) for mask in masks}
    for mask, present in of_mask.items():
        for value in present:
            seen.setdefault(value, mask)
    values = sorted(seen)
    inner = [v for v in values if v != 255]
    if not masks or values == [0]:
        return ("background", "foreground"), {0: 0, 1: 1, 255: 1}
    if set(values) <= {0, 255}:
        return ("background", "foreground"), {0: 0, 255: 1}
    if max(inner) < _FLOOR and not any(map(io.is_lossy, masks)):
        _demand_one_coding(of_mask)
        classes = ("background", *(f"class {v}" for v in range(1, max(inner) + 1)))
        return classes, {**{v: v for v in range(len(classes))}, 255: IGNORED}
    apart = min((b - a for a, b in itertools.pairwise(values)), default=256)
    if len(values) <= _FEW and values[0] == 0 and apart >= 16 and not any(map(io.is_lossy, masks)):
        return ("background", *(f"value {v}" for v in values[1:])), {v: n for n, v in enumerate(values)}
    odd = next(v for v in inner if v != 0)
    raise SamAdaptError(
        f"the masks of {root} have {len(values)} grey values ({', '.join(map(str, values[:6]))}, ...; {odd} is in "
        f"{seen[odd]}); expected 0 and 255, or class numbers 0, 1, 2, ...: such masks are softened at the edges or "
        "were saved as JPEG; threshold them and save them as PNG"
    )


def _demand_one_coding(of_mask: Mapping[Path, set[int]]) -> None:
    """255 is what is not to be scored in masks of small numbers, and the foreground in masks of 0 and 255."""
    small = [mask for mask, present in of_mask.items() if present - {0, 255}]
    large = [mask for mask, present in of_mask.items() if 255 in present and not present - {0, 255}]
    if small and large:
        raise SamAdaptError(
            f"{len(large)} masks have the values 0 and 255, as {large[0]}, and {len(small)} small numbers, as {small[0]} "
            f"({', '.join(map(str, sorted(of_mask[small[0]])))}); expected one coding: save all masks with 0 and 255, or all "
            "with class numbers"
        )
