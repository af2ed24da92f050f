"""Masks are distinguished from images by their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from samadapt import io

#: Folders of masks beside a folder `images`.
FOLDERS = ("masks", "mask", "labels", "label", "annotations", "segmentations", "gt", "ground_truth")
#: What stands at the end of a mask's name, after its image's; the number is that of one mask of several.
_WORDS = re.compile(
    r"(?:[_\- ](?:mask|masks|segmentation|seg|label|labels|gt|annotation|dseg|groundtruth))+(?:[_\- ]?\d{1,2})?$",
    re.IGNORECASE,
)


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
