"""A store behind a URL (`s3://bucket/features`): a folder of this machine that mirrors what is needed of it.

What is missing here is fetched before it is read, and what was encoded here is sent. `frame.json` of a case, which says what is
there of it, goes last in both directions, so that a map is there as a whole or not at all, whenever a process ends. Several
machines may encode one case: equal maps are equal bytes, and of different ones the notes are joined. The mirror is a cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from samadapt.features.notes import NOTE, sound_note
from samadapt.files import demand_writable, replacing, write_json
from samadapt.types import SamAdaptError

T = TypeVar("T")
#: Where a bucket or a host comes first, so that it does not matter that a `Path` keeps one slash of a URL.
_KINDS = ("s3", "gs", "gcs", "az", "abfs", "abfss", "sftp", "ssh", "memory")
_URL = re.compile(rf"({'|'.join(_KINDS)}):/+([^/]+/.*[^/]|[^/]+)/*")
#: Of what looks like a URL, or like several (`simplecache::s3://...`); a drive of Windows has a single letter.
_LIKE_ONE = re.compile(r"([^/\\]{2,}|):(:.*|/.*|)")


def url_of(root: str | Path) -> str | None:
    """The URL that is meant; None where it is a folder.

    Raises:
        SamAdaptError: it looks like a URL, and is of no kind that is known here.
    """
    found = _URL.fullmatch(str(root))
    if found:
        return f"{found[1]}://{found[2]}"
    if _LIKE_ONE.fullmatch(str(root)):
        raise SamAdaptError(
            f"--store {_without_password(str(root))} looks like a URL; expected a folder, or BUCKET_OR_HOST/FOLDER behind one of "
            f"{', '.join(f'{kind}://' for kind in _KINDS[:-1])}"
        )
    return None


def _without_password(url: str) -> str:
    return re.sub(r"/[^/@]*@", "/", url)


class Remote:
    """The other end of a mirrored folder.

    Args:
        url: as fsspec reads it; credentials are those of the environment.

    Raises:
        SamAdaptError: nothing that reads such URLs is installed.
    """

    def __init__(self, url: str) -> None:
        import fsspec  # comes with torch

        self.url = url
        self.shown = _without_password(url)
        if url.startswith("file:"):
            raise SamAdaptError(f"--store {self.shown} is a folder of this machine; give its path alone")
        try:
            self.files, self.base = fsspec.core.url_to_fs(url)
        except ImportError as error:  # fsspec names the package
            raise SamAdaptError(
                f"--store {self.shown} cannot be reached: {error}; for s3:// install samadapt[s3], or give a folder"
            ) from error
        except (ValueError, OSError) as error:
            raise SamAdaptError(
                f"--store {self.shown} cannot be reached: {error}; give a folder, or another URL"
            ) from error
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        name = re.sub(r"[^A-Za-z0-9.-]+", "_", self.shown)[-40:]
        self.mirror = (
            caches / "samadapt" / "stores" / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
        )

    def sync(self, folder: Path, fresh: bool = False) -> None:
        """Bring what the store has of a case and this machine has not, and give it what it has not.

        Args:
            folder: of the case, below `mirror`.
            fresh: whether its maps were just encoded: they are sent even if the store says that it has them.
        """
        text = self._asked(lambda: self._content(self._place(folder / NOTE)))
        there, here = sound_note(text), sound_note(_bytes(folder / NOTE))
        if here and there and here["image_sha256"] != there["image_sha256"]:
            there = {}
        theirs: dict[str, Any] = there.get("maps", {})
        ours = {
            stem: about
            for stem, about in here.get("maps", {}).items()
            if _size(folder, stem) == about["bytes"]
        }
        for stem, about in theirs.items():
            if stem not in ours or ours[stem]["views"] < about["views"]:
                self._asked(lambda path=folder / f"{stem}.npy": self._get(path))  # type: ignore[misc]
                if _size(folder, stem) == about["bytes"]:  # else another machine was sending it just now
                    ours[stem] = about
        sent = False
        for stem, about in ours.items():
            known = theirs.get(stem, {"views": 0})["views"]
            if known < about["views"] or (fresh and known == about["views"]):
                path = folder / f"{stem}.npy"
                self._asked(lambda path=path: self.files.put_file(str(path), self._place(path)))  # type: ignore[misc]
                sent = True
        if not ours:
            return
        note = {**(here or there), "maps": ours}
        if note != here:
            write_json(folder / NOTE, note)
        if sent:
            merged = json.dumps({**note, "maps": theirs | ours}, indent=1) + "\n"
            self._asked(lambda: self.files.pipe_file(self._place(folder / NOTE), merged.encode()))

    def _place(self, path: Path) -> str:
        return f"{self.base}/{path.relative_to(self.mirror).as_posix()}"

    def _content(self, place: str) -> bytes | None:
        try:
            return bytes(self.files.cat_file(place))
        except FileNotFoundError:
            return None

    def _get(self, path: Path) -> None:
        """Nothing where it is not there after all."""
        with contextlib.suppress(FileNotFoundError), replacing(path) as temporary:
            self.files.get_file(self._place(path), str(temporary))

    def _asked(self, question: Callable[[], T]) -> T:
        """Where the store does not answer, in words that say what to do.

        It may have been out of reach for a moment: what was fetched and sent before is kept.
        """
        try:
            return question()
        except SamAdaptError:
            raise
        except Exception as error:  # each kind of store has its own
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise SamAdaptError(
                f"the store {self.shown} does not answer ({reason}); check the address, the credentials and the network, then run the same "
                "command again: what is stored is kept"
            ) from error


def _bytes(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _size(folder: Path, stem: str) -> int | None:
    path = folder / f"{stem}.npy"
    return path.stat().st_size if path.is_file() else None


def demand_store(root: str | Path) -> None:
    """Before hours of work: whether feature maps can be kept there."""
    remote = remote_of(root)
    if remote is not None and remote.url.startswith("memory:"):
        raise SamAdaptError(
            f"--store {remote.shown} would end with this process; give a folder, or s3://BUCKET/FOLDER"
        )
    demand_writable(Path(root) if remote is None else remote.mirror, "--store")


def remote_of(root: str | Path) -> Remote | None:
    """The other end, where the root is a URL."""
    url = url_of(root)
    return Remote(url) if url else None
