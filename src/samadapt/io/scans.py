"""File names: which files are images, which of them are channels of one case, what a case is called."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from samadapt.io.formats import find_format, is_picture, suffix_of
from samadapt.types import SamAdaptError

_MANY_CHANNELS = 8  # more files of one name are frames of a series
_CHANNEL = re.compile(r"^(.+)_(\d{4})$")


def case_name(path: Path, channels: bool = False) -> str:
    """`case_0000.nii.gz` -> `case_0000`, or `case` where the number is a channel's. A DICOM series is called by its folder."""
    found = find_format(path)
    if (
        found is not None
        and found.case_name is not None
        and found.matches is not None
        and found.matches(path)
    ):
        return found.case_name(path)
    stem = path.name[: len(path.name) - len(suffix_of(path))]
    match = _CHANNEL.match(stem) if channels else None
    return match.group(1) if match else stem


def has_channel_number(path: Path) -> bool:
    """Whether the file is called `CASE_0000`, as the channels of nnU-Net."""
    return _CHANNEL.match(case_name(path)) is not None


def channel_file(path: Path, channel: int) -> Path:
    """`case.nii.gz` -> `case_0001.nii.gz` beside it: where nnU-Net keeps a channel of the case."""
    return path.with_name(f"{case_name(path)}_{channel:04d}{suffix_of(path)}")


def group_channels(files: Iterable[Path], n_channels: int | None = None) -> dict[str, tuple[Path, ...]]:
    """Files -> {case: its channel files in order}, by nnU-Net's `CASE_0000.nii.gz`, `CASE_0001.nii.gz`.

    Args:
        n_channels: how many each case must have, where a description says so. None: the number is a channel's
            only where every file has one, every case has a `_0000` and it cannot be a frame's or a
            photograph's number; otherwise each file is a case of its own.
    """
    files = list(files)
    grouped = _by_channel(files)
    if not grouped or (n_channels is None and not _plausible(grouped)):
        return each_file(files)
    wanted = n_channels or max(len(c) for c in grouped.values())
    for name, channels in grouped.items():
        missing = sorted(set(range(wanted)) - set(channels))
        if missing or len(channels) > wanted:
            raise SamAdaptError(
                f"case {name!r} has the channels {sorted(channels)}; expected {wanted} channels 0..{wanted - 1}: "
                + (f"add {name}_{missing[0]:04d}" if missing else "remove the others or declare them")
            )
    return {name: tuple(c[n] for n in range(wanted)) for name, c in grouped.items()}


def each_file(files: Iterable[Path]) -> dict[str, tuple[Path, ...]]:
    """Every file is a case, called by its name without the suffix."""
    named: dict[str, tuple[Path, ...]] = {}
    for file in files:
        name = case_name(file)
        if name in named:
            raise SamAdaptError(
                f"{named[name][0]} and {file} have the same name; a case is one file: remove one"
            )
        named[name] = (file,)
    return named


def _by_channel(files: Iterable[Path]) -> dict[str, dict[int, Path]]:
    """Case -> number -> file; empty where a file has no number."""
    grouped: dict[str, dict[int, Path]] = {}
    for file in files:
        match = _CHANNEL.match(case_name(file))
        if match is None:
            return {}
        channels = grouped.setdefault(match.group(1), {})
        number = int(match.group(2))
        if number in channels:
            raise SamAdaptError(f"{channels[number]} and {file} are the same channel of a case; remove one")
        channels[number] = file
    return grouped


def _plausible(grouped: dict[str, dict[int, Path]]) -> bool:
    """IMG_0000.png, IMG_0001.png are photographs; a_0000.nii, a_0001.nii, b_0000.nii, ... are channels."""
    most = max(len(channels) for channels in grouped.values())
    pictures = any(is_picture(file) for channels in grouped.values() for file in channels.values())
    return all(0 in channels for channels in grouped.values()) and most <= (1 if pictures else _MANY_CHANNELS)
