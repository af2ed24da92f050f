"""File names: which files are images, which of them are channels of one case, what a case is called."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from samadapt.io.nifti import VOLUME_SUFFIXES
from samadapt.io.pictures import PICTURE_SUFFIXES
from samadapt.types import SamAdaptError

IMAGE_SUFFIXES = (*VOLUME_SUFFIXES, *PICTURE_SUFFIXES)

_CHANNEL = re.compile(r"^(.+)_(\d{4})$")


def suffix_of(path: Path) -> str:
    """`.nii.gz`, `.png`, ... in small letters; "" for what is not an image file."""
    name = path.name.lower()
    return max((s for s in IMAGE_SUFFIXES if name.endswith(s)), key=len, default="")


def case_name(path: Path, channels: bool = False) -> str:
    """`case_0000.nii.gz` -> `case_0000`, or `case` where the number is a channel's."""
    stem = path.name[: len(path.name) - len(suffix_of(path))]
    match = _CHANNEL.match(stem) if channels else None
    return match.group(1) if match else stem


def find_files(folder: Path, recursive: bool = False) -> list[Path]:
    """The image files of a folder, sorted; hidden ones are left out."""
    files = folder.rglob("*") if recursive else folder.iterdir()
    return sorted(f for f in files if suffix_of(f) and not f.name.startswith(".") and f.is_file())


def group_channels(files: Iterable[Path], n_channels: int | None = None) -> dict[str, tuple[Path, ...]]:
    """Files -> {case: its channel files in order}, by nnU-Net's `CASE_0000.nii.gz`, `CASE_0001.nii.gz`.

    The number is a channel's only where every file has one and every case has a `_0000`; otherwise each file
    is a case of its own.

    Args:
        n_channels: how many each case must have; None takes what is there, the same for all.
    """
    files = list(files)
    matches = [_CHANNEL.match(case_name(file)) for file in files]
    grouped: dict[str, dict[int, Path]] = {}
    for file, match in zip(files, matches, strict=True):
        if match is None:
            break
        channels = grouped.setdefault(match.group(1), {})
        number = int(match.group(2))
        if number in channels:
            raise SamAdaptError(f"{channels[number]} and {file} are the same channel of a case; remove one")
        channels[number] = file
    if any(match is None for match in matches) or any(0 not in c for c in grouped.values()):
        named: dict[str, tuple[Path, ...]] = {}
        for file in files:
            if case_name(file) in named:
                raise SamAdaptError(
                    f"{named[case_name(file)][0]} and {file} have the same name; a case is one file: remove one"
                )
            named[case_name(file)] = (file,)
        return named
    wanted = n_channels or max(len(c) for c in grouped.values())
    for name, channels in grouped.items():
        missing = sorted(set(range(wanted)) - set(channels))
        if missing or len(channels) > wanted:
            raise SamAdaptError(
                f"case {name!r} has the channels {sorted(channels)}; expected {wanted} channels 0..{wanted - 1}: "
                + (f"add {name}_{missing[0]:04d}" if missing else "remove the others or declare them")
            )
    return {name: tuple(c[n] for n in range(wanted)) for name, c in grouped.items()}
