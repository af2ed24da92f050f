"""numpy archives (.npz): several arrays in one file, nothing unpickled."""

from __future__ import annotations

import math
import zipfile
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from samadapt.io.limits import demand_unpacked
from samadapt.types import SamAdaptError


@dataclass(frozen=True)
class NpzArrays:
    """The arrays of an archive. `headers` reads no numbers; `read` keeps the arrays used last in memory."""

    path: Path

    @cached_property
    def headers(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Array name -> (shape, dtype)."""
        found = {}
        try:
            with zipfile.ZipFile(self.path) as archive:
                for member in archive.infolist():
                    with archive.open(member) as file:
                        shape, dtype = _header(file)
                        needed = math.prod(shape) * dtype.itemsize + file.tell()
                    name = member.filename.removesuffix(".npy")
                    if needed != member.file_size and not dtype.hasobject:
                        raise ValueError(
                            f"array {name!r} of {shape} needs {needed} bytes and has {member.file_size}"
                        )
                    demand_unpacked(self.path, name, member.compress_size, needed)
                    found[name] = shape, dtype
        except FileNotFoundError:
            raise SamAdaptError(f"{self.path} does not exist; check the name and the folder") from None
        except SamAdaptError:
            raise
        except Exception as error:  # zipfile and numpy raise whatever the bytes happen to mean
            raise SamAdaptError(
                f"{self.path} cannot be read as .npz ({error}); copy or download it again"
            ) from error
        objects = [name for name, (_, dtype) in found.items() if dtype.hasobject]
        if objects:
            raise SamAdaptError(
                f"{self.path}: array {objects[0]!r} is of object dtype, which only unpickling could read and which "
                "may run any code; expected plain numbers: save it again with a numeric dtype"
            )
        return found

    def read(self, name: str) -> np.ndarray:
        """One whole array; do not write into it."""
        return _read_npz(self.path, self.path.stat().st_mtime_ns, name)


def is_npz(path: Path) -> bool:
    """Whether the file is an archive by its name."""
    return path.suffix.lower() == ".npz"


def open_npz(path: str | Path) -> NpzArrays:
    """Checks that the archive is one and that no array needs unpickling."""
    arrays = NpzArrays(Path(path))
    _ = arrays.headers
    return arrays


def _header(file: Any) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype


@lru_cache(maxsize=6)  # images and labels of three parts; the time stamp makes a rewritten file a miss
def _read_npz(path: Path, mtime_ns: int, name: str) -> np.ndarray:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive[name]
    except Exception as error:  # as above
        raise SamAdaptError(
            f"{path}: array {name!r} is damaged ({error}); copy or download it again"
        ) from error
