"""Limits that hold before anything is allocated: what a header claims must be possible, and must be in the file."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from samadapt.types import SamAdaptError

MOST_PIXELS = 1 << 28  # of one frame, from which a header is not believed
MOST_VOXELS = 1 << 31  # of one scan: 8 GiB as float32
MOST_HEADER = 1 << 26  # bytes before the voxels: extensions of a header may hold text, not volumes
SLACK = 1 << 20  # bytes that may follow the voxels
_FLOAT32 = 4
_GZIP = 31  # of zlib: a gzip stream with its checksum
_RATIO = 200  # an array of images is not compressed to less than this part of it
_PIECE = 1 << 20  # bytes
_SMALL = 1 << 28  # bytes that are unpacked whatever they were compressed from


def demand_size(path: Path, shape: Sequence[int]) -> None:
    """Refuse a volume or picture whose header claims more numbers than are read, or than this machine can hold."""
    claimed = math.prod(int(n) for n in shape)
    if claimed > MOST_VOXELS:
        raise SamAdaptError(
            f"{path} claims {' x '.join(map(str, shape))} = {claimed:.3g} voxels; at most {MOST_VOXELS} ({MOST_VOXELS:.1g}) are "
            "read: the header is damaged, or the scan has to be cropped"
        )
    if claimed * _FLOAT32 > memory_bytes():
        raise SamAdaptError(
            f"{path} claims {' x '.join(map(str, shape))} voxels, which need {claimed * _FLOAT32 / 2**30:.1f} GiB; this machine "
            f"has {memory_bytes() / 2**30:.1f} GiB: crop the scan, or use a larger machine"
        )


def demand_there(path: Path, needed: int, there: int) -> None:
    """Refuse a file that has fewer bytes than its header says, before room is made for them."""
    if there < needed:
        raise SamAdaptError(
            f"{path} is cut off: its header needs {needed} bytes, and {there} are there; copy or export it again"
        )


def demand_unpacked(path: Path, name: str, packed: int, unpacked: int) -> None:
    """Refuse an archive's member that would become far larger than compressed images do."""
    if unpacked > max(_SMALL, packed * _RATIO) or unpacked > memory_bytes():
        raise SamAdaptError(
            f"{path}: {name!r} would become {unpacked / 2**30:.1f} GiB from {packed} bytes; expected at most {_RATIO} times "
            f"its compressed size, and the {memory_bytes() / 2**30:.1f} GiB of this machine: the file is damaged, or made "
            "to fill the memory"
        )


def gunzip(path: Path, most: int) -> bytes:
    """The content of a gzip file, with its checksums checked.

    At once, not by `gzip.open`: its thousands of small reads are slow on a busy machine or a network disk.

    Args:
        most: bytes that its header explains; a file that becomes larger is refused before it does.

    Raises:
        EOFError, zlib.error: it is cut off or damaged.
    """
    packed, parts, left, at = path.read_bytes(), list[bytes](), most, 0
    while at < len(packed):
        stream = zlib.decompressobj(_GZIP)
        while not stream.eof and at < len(packed):  # in pieces: what a member leaves over is copied
            piece = packed[at : at + _PIECE]
            at += len(piece)
            part = stream.decompress(piece, left + 1)
            if len(part) > left:
                raise SamAdaptError(
                    f"{path} unpacks to more than the {most} bytes that its header explains; it is damaged, or made to fill the "
                    "memory: export it again"
                )
            parts.append(part)
            left -= len(part)
        if not stream.eof:
            raise EOFError("the compressed data end before their mark")
        at -= len(stream.unused_data)
        while packed[at : at + 1] == b"\0":  # gzip files may be joined, and padded
            at += 1
    return parts[0] if len(parts) == 1 else b"".join(parts)


@lru_cache(maxsize=1)
def memory_bytes() -> float:
    """The memory of this machine; infinite where the system does not say."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return math.inf
