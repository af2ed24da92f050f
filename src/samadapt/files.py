"""The one way to write a file: under a temporary name, then renamed, so that a reader never meets half of one. No torch."""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TextIO

from samadapt.records import SamAdaptError, WriteError

MAKE_ROOM = "make room or choose another folder"
#: `.PROCESS-HOST.NAME`; earlier versions wrote no host.
_TEMPORARY = re.compile(r"^\.(\d+)(?:-([0-9a-f]{8}))?\.")


@contextlib.contextmanager
def replacing(path: str | Path, finished: bool = False, cure: str = MAKE_ROOM) -> Iterator[Path]:
    """A temporary name beside `path`, which takes its place where the block ends well; the block makes a file or a folder.

    What killed processes left in this folder is removed when a process first writes into it.

    Args:
        finished: whether the file says that something is complete; it is then on the disk before anyone can read it.
        cure: what to do where the disk is full, for the message.

    Raises:
        SamAdaptError: the disk is full, or the place cannot be written to.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        with _writing(path, cure):
            _make_folder(path.parent)
            yield temporary
            if finished:
                _to_disk(temporary)
            temporary.replace(path)
            if finished:
                with contextlib.suppress(OSError):  # some network disks know no such thing of folders
                    _to_disk(path.parent)
    finally:
        _remove(temporary)


def _temporary(path: Path) -> Path:
    return path.with_name(f"{_prefix()}{path.name}")  # the suffix stays: writers decide by it


def _make_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder.absolute(), os.getpid())


@contextlib.contextmanager
def _writing(path: Path, cure: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(f"could not write {path}: {error.strerror or error}; {cure}") from error
    except RuntimeError as error:
        if not any(word in str(error) for word in ("PytorchStreamWriter", "inline_container")):
            raise  # these two are what torch.save says of a full disk
        raise WriteError(f"could not write {path}: {error}; {cure}") from error


@contextlib.contextmanager
def marker(folder: Path) -> Iterator[Path]:
    """A file of no meaning in a folder, which another machine sees if it sees the same folder; removed at the end."""
    path = folder / f"{_prefix()}shared-{secrets.token_hex(8)}"
    with _writing(path, MAKE_ROOM):
        path.touch()
    try:
        yield path
    finally:
        _remove(path)


class Drafts(contextlib.AbstractContextManager):
    """Files that are written bit by bit and get their names together, when all of them are on the disk.

    To await many small files one by one takes nearly all the time of writing them. What has no name at the end is
    removed.

    Args:
        cure: what to do where the disk is full, for the message.
    """

    def __init__(self, cure: str = MAKE_ROOM) -> None:
        self.cure = cure
        self._open: dict[Path, BinaryIO] = {}
        self._whole: dict[Path, BinaryIO] = {}

    def write(self, path: Path, content: bytes) -> None:
        """Add to the end of a file."""
        with _writing(path, self.cure):
            if path not in self._open:
                _make_folder(path.parent)
                self._open[path] = open(_temporary(path), "wb")  # noqa: SIM115  # closed by `place`, or at the end
            self._open[path].write(content)

    def end(self, path: Path) -> int:
        """Nothing more will be written to a file; its size in bytes."""
        with _writing(path, self.cure):
            self._open[path].flush()
            self._whole[path] = self._open.pop(path)
            return self._whole[path].tell()

    def place(self) -> None:
        """Give all files that were ended their names."""
        if self._whole:
            with contextlib.suppress(AttributeError):  # not on every system
                os.sync()  # all at once; what follows waits no more, and says what could not be written
        for path in sorted(self._whole):
            with _writing(path, self.cure):
                os.fsync(self._whole[path].fileno())
                _temporary(path).replace(path)
            self._whole.pop(path).close()

    def __exit__(self, *error: object) -> None:
        for path, file in (*self._open.items(), *self._whole.items()):
            with contextlib.suppress(OSError):  # what is in its buffer finds no room
                file.close()
            _remove(_temporary(path))


def _to_disk(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


# ---------------------------------------------------------------- what killed processes leave


def is_leftover(path: Path) -> bool:
    """Whether it is called as our temporary files are."""
    return _TEMPORARY.match(path.name) is not None


@functools.lru_cache(maxsize=1024)  # once for each folder and process; a server makes folders without end
def _remove_leftovers(folder: Path, process: int) -> None:
    for entry in os.scandir(folder):
        match = _TEMPORARY.match(entry.name)
        if match and match.group(2) == _host() and not _is_alive(int(match.group(1))):
            _remove(Path(entry.path))


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return True


def _prefix() -> str:
    return f".{os.getpid()}-{_host()}."


@functools.cache
def _host() -> str:
    """Process numbers mean something on one machine only, and folders are shared between several."""
    return f"{zlib.crc32(os.uname().nodename.encode()):08x}"


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


# ---------------------------------------------------------------- kinds of files


def write_bytes(path: str | Path, content: bytes, finished: bool = False) -> None:
    """Whole or not at all; `finished` as for `replacing`."""
    with replacing(path, finished) as temporary:
        temporary.write_bytes(content)


def write_through_memory(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Whole or not at all, for writers that end the process where a disk is full."""
    made = io.BytesIO()
    write(made)
    write_bytes(path, made.getvalue())


@contextlib.contextmanager
def scratch_folder(place: Path) -> Iterator[Path]:
    """A folder for this user alone, which is deleted at the end; what killed processes left of such is removed first."""
    _remove_leftovers(place.absolute(), os.getpid())
    folder = Path(tempfile.mkdtemp(prefix=f"{_prefix()}scratch-", dir=place))
    try:
        yield folder
    finally:
        _remove(folder)


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder."""
    return shutil.disk_usage(folder).free


def taken_out(path: Path) -> bytes:
    """The content of a file, which is deleted."""
    try:
        return path.read_bytes()
    finally:
        path.unlink()


def reserve(temporary: Path) -> None:
    """Take the disk that a file of holes will need now: written through memory, a full disk kills the process."""
    with contextlib.suppress(AttributeError):  # not on every system
        number = os.open(temporary, os.O_RDWR)
        try:
            os.posix_fallocate(number, 0, temporary.stat().st_size)
        finally:
            os.close(number)


def write_text(path: str | Path, text: str, finished: bool = False) -> None:
    """UTF-8, whole or not at all; `finished` as for `replacing`."""
    write_bytes(path, text.encode(), finished)


def write_json(path: str | Path, content: object, finished: bool = False) -> None:
    """Indented by one, whole or not at all; `finished` as for `replacing`."""
    write_text(path, json.dumps(content, indent=1) + "\n", finished)


def write_csv(path: str | Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """A table, whole or not at all."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)
    return Path(path)


def open_log(path: str | Path) -> TextIO:
    """A log to append to: the one kind of file that is read while it grows."""
    try:
        return open(path, "a", encoding="utf-8")
    except OSError as error:
        raise SamAdaptError(f"could not write {path}: {error.strerror or error}; {MAKE_ROOM}") from error


def file_sha256(path: str | Path) -> str:
    """The hash of a file's bytes, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def demand_path(folder: str | Path, option: str) -> None:
    """Refuse a URL, which would else become a folder of an odd name below the current one.

    Args:
        option: what the user would change, "--out" for example.
    """
    if re.match(
        r"[A-Za-z][A-Za-z0-9+.-]+:/", str(folder)
    ):  # a Path keeps one slash; a drive of Windows has one letter
        raise SamAdaptError(
            f"{option} {folder} looks like a URL; expected a folder: runs, studies and predictions are kept in folders, and only feature maps "
            "(--store) behind a URL (docs/cluster.md)"
        )


def demand_writable(folder: str | Path, option: str) -> None:
    """Before hours of work: whether a folder can be made there and written into. Nothing is left behind.

    Args:
        option: what the user would change, "--out" for example.
    """
    demand_path(folder, option)
    folder = Path(folder)
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=_prefix()):
            pass
    except OSError as error:
        reason = (
            "a file is in its place"
            if isinstance(error, FileExistsError | NotADirectoryError)
            else error.strerror
        )
        raise SamAdaptError(
            f"{option} {folder} cannot be written to ({reason}); choose another folder"
        ) from error
    finally:
        for place in missing:
            with contextlib.suppress(OSError):
                place.rmdir()
