"""A store behind a URL (`s3://bucket/features`): a folder of this machine that mirrors what is needed of it.

What is missing here is fetched before it is read, and what was encoded here is sent. `frame.json` of a case goes last in both
directions, so a case is there as a whole or not at all, whenever a process ends; another machine may send the same case at the
same time, for both send the same bytes. The mirror is a cache: it may be deleted.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from samadapt.features.notes import NOTE, maps_of_note
from samadapt.files import demand_writable, replacing
from samadapt.types import SamAdaptError

T = TypeVar("T")
#: A `Path` keeps one slash of a URL; a drive of Windows has a single letter before its colon.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.+)")


def url_of(root: str | Path) -> str | None:
    """The URL that is meant; None where it is a folder."""
    found = _URL.fullmatch(str(root))
    return f"{found[1]}://{found[2].rstrip('/')}" if found else None


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
        if url.startswith("file:"):
            raise SamAdaptError(f"--store {url} is a folder of this machine; give its path alone")
        try:
            self.files, self.base = fsspec.core.url_to_fs(url)
        except ImportError as error:  # fsspec names the package
            raise SamAdaptError(
                f"--store {url} cannot be reached: {error}; for s3:// install samadapt[s3], or give a folder"
            ) from error
        except (ValueError, OSError) as error:
            raise SamAdaptError(
                f"--store {url} cannot be reached: {error}; give a folder, or another URL"
            ) from error
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        name = re.sub(r"[^A-Za-z0-9.-]+", "_", url)[-40:]
        self.mirror = (
            caches / "samadapt" / "stores" / f"{name}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
        )

    def fetch(self, folder: Path) -> None:
        """Bring what the store has of a case and this machine has not.

        Args:
            folder: of the case, below `mirror`.
        """
        here = folder / NOTE
        note = self._asked(lambda: self._content(self._place(here)))
        if note is None or (here.is_file() and here.read_bytes() == note):
            return
        for name, size in maps_of_note(note).items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != size:
                self._asked(lambda path=path: self._get(path))  # type: ignore[misc]
        with replacing(here) as temporary:
            temporary.write_bytes(note)

    def send(self, folder: Path) -> None:
        """Give the store what is complete here of a case, as far as it has it not."""
        if not (folder / NOTE).is_file():
            return
        note, there = (folder / NOTE).read_bytes(), self._place(folder / NOTE)
        if self._asked(lambda: self._content(there)) == note:
            return
        for name in maps_of_note(note):
            self._asked(lambda name=name: self.files.put_file(str(folder / name), self._place(folder / name)))  # type: ignore[misc]
        self._asked(lambda: self.files.pipe_file(there, note))

    def _place(self, path: Path) -> str:
        return f"{self.base}/{path.relative_to(self.mirror).as_posix()}"

    def _content(self, place: str) -> bytes | None:
        try:
            return bytes(self.files.cat_file(place))
        except FileNotFoundError:
            return None

    def _get(self, path: Path) -> None:
        with replacing(path) as temporary:
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
                f"the store {self.url} does not answer ({reason}); check the address, the credentials and the network, then run the same "
                "command again: what is stored is kept"
            ) from error


def demand_store(root: str | Path) -> None:
    """Before hours of work: whether feature maps can be kept there."""
    remote = remote_of(root)
    demand_writable(Path(root) if remote is None else remote.mirror, "--store")


def remote_of(root: str | Path) -> Remote | None:
    """The other end, where the root is a URL."""
    url = url_of(root)
    return Remote(url) if url else None
