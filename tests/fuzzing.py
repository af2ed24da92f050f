"""Damaged headers of every format: reading one gives a case or a message, and nothing else.

    python tests/fuzzing.py --seconds 60        # `make fuzz`; damage is drawn at random

The file of a finding is kept as `fuzz-FORMAT.bin`, and its error is raised.
"""

from __future__ import annotations

import argparse
import functools
import gzip
import io as stdio
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from samadapt import io
from samadapt.io.formats import FORMATS
from samadapt.types import SamAdaptError


def _npz() -> bytes:
    out = stdio.BytesIO()
    arrays = {f"{part}_images": np.zeros((3, 8, 8), np.uint8) for part in ("train", "val", "test")}
    np.savez(
        out, **arrays, **{name.replace("images", "labels"): np.zeros((3, 1), np.uint8) for name in arrays}
    )
    return out.getvalue()


def _read_archive(path: Path) -> None:
    arrays = io.NpzArrays(path)
    for name in arrays.headers:
        arrays.read(name)


def _examples() -> Iterator[tuple[str, str, bytes]]:
    """Of every format that is read: its name, the suffix and the content of its example."""
    for name, of in FORMATS.items():
        with tempfile.TemporaryDirectory() as folder:
            path = of.example(Path(folder))
            yield name, "".join(path.suffixes), path.read_bytes()


@functools.cache
def sound_files() -> dict[str, tuple[str, bytes]]:
    """What is damaged: name -> the suffix and the content of a file that can be read."""
    found = {name: (suffix, content) for name, suffix, content in _examples()}
    unpacked = {"nifti, not compressed": (".nii", gzip.decompress(found["nifti"][1]))}
    return found | unpacked | {"npz": (".npz", _npz())}


NAMES = (*FORMATS, "nifti, not compressed", "npz")


def demand_answer(name: str, content: bytes, folder: Path) -> bool:
    """Whether the file was read; anything but a case or a message of ours is raised."""
    path = folder / f"a{sound_files()[name][0]}"
    path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (_read_archive if name == "npz" else io.read_case)(path)
    except SamAdaptError as error:
        if path.name not in str(error) and str(folder) not in str(error):
            raise AssertionError(f"the message does not name the file: {error}") from error
        return False
    return True


def damaged(content: bytes, places: list[tuple[float, int]], cut: float) -> bytes:
    """Bytes replaced at places (as shares of the length), and the end cut off."""
    array = bytearray(content)
    for place, value in places:
        array[int(place * (len(array) - 1))] = value
    return bytes(array[: int(cut * len(array))])


def _at_random(name: str, seconds: int, folder: Path) -> None:
    content = sound_files()[name][1]
    rng, end, tried, read = np.random.default_rng(0), time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        places = [(float(rng.random() ** 3), int(rng.integers(256))) for _ in range(rng.integers(1, 8))]
        tried_one = damaged(content, places, 1 if rng.random() < 0.8 else float(rng.random()))
        try:
            read += demand_answer(name, tried_one, folder)
        except Exception:
            Path(f"fuzz-{name}.bin").write_bytes(tried_one)
            raise
        tried += 1
    print(f"{name}: {tried} files, {read} of them read, the others refused with a message")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=30, help="for each format")
    parser.add_argument("--formats", nargs="+", choices=NAMES, default=NAMES)
    given = parser.parse_args()
    for name in given.formats:
        with tempfile.TemporaryDirectory() as folder:
            _at_random(name, given.seconds, Path(folder))


if __name__ == "__main__":
    main()
