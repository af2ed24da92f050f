"""Damaged headers of every format: reading one gives a case or a message, and nothing else.

    python tests/fuzzing.py --seconds 60        # `make fuzz`; damage is drawn at random

The file of a finding is kept as `fuzzFORMAT.bin`, and its error is raised.
"""

from __future__ import annotations

import argparse
import functools
import io as stdio
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

import dicoms
from samadapt import io
from samadapt.types import SamAdaptError


def _nifti(suffix: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        nib.save(nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3), np.eye(4)), path)
        return path.read_bytes()


def _picture(kind: str) -> bytes:
    out = stdio.BytesIO()
    Image.fromarray(np.arange(120, dtype=np.uint8).reshape(10, 12)).save(out, kind)
    return out.getvalue()


def _dicom() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        dicoms.series(Path(folder))
        return sorted(p for p in Path(folder).rglob("*") if p.is_file())[0].read_bytes()


def _nrrd() -> bytes:
    header = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 5 4 3\n"
        "space directions: (1,0,0) (0,1,0) (0,0,1)\nendian: little\nencoding: raw\nspace origin: (0,0,0)\n\n"
    )
    return header.encode() + np.arange(60, dtype="<i2").tobytes()


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


#: Suffix -> a sound file, and how it is read.
FORMATS: dict[str, tuple[Callable[[], bytes], Callable[[Path], object]]] = {
    ".nii": (functools.partial(_nifti, ".nii"), io.read_case),
    ".nii.gz": (functools.partial(_nifti, ".nii.gz"), io.read_case),
    ".nrrd": (_nrrd, io.read_case),
    ".png": (functools.partial(_picture, "png"), io.read_case),
    ".tif": (functools.partial(_picture, "tiff"), io.read_case),
    ".jpg": (functools.partial(_picture, "jpeg"), io.read_case),
    ".dcm": (_dicom, io.read_case),
    ".npz": (_npz, _read_archive),
}


@functools.lru_cache
def sound(suffix: str) -> bytes:
    """A file that can be read."""
    return FORMATS[suffix][0]()


def demand_answer(suffix: str, content: bytes, folder: Path) -> bool:
    """Whether the file was read; anything but a case or a message of ours is raised."""
    path = folder / f"a{suffix}"
    path.write_bytes(content)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            FORMATS[suffix][1](path)
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


def _at_random(suffix: str, seconds: int, folder: Path) -> None:
    rng, end, tried, read = np.random.default_rng(0), time.monotonic() + seconds, 0, 0
    while time.monotonic() < end:
        places = [(float(rng.random() ** 3), int(rng.integers(256))) for _ in range(rng.integers(1, 8))]
        content = damaged(sound(suffix), places, 1 if rng.random() < 0.8 else float(rng.random()))
        try:
            read += demand_answer(suffix, content, folder)
        except Exception:
            Path(f"fuzz{suffix}.bin").write_bytes(content)
            raise
        tried += 1
    print(f"{suffix}: {tried} files, {read} of them read, the others refused with a message")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=int, default=30, help="for each format")
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=list(FORMATS))
    given = parser.parse_args()
    for suffix in given.formats:
        with tempfile.TemporaryDirectory() as folder:
            _at_random(suffix, given.seconds, Path(folder))


if __name__ == "__main__":
    main()
