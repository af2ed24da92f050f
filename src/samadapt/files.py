"""The one way to write a file: under a temporary name, then renamed, so that a reader never meets half of one. No torch."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from samadapt.records import SamAdaptError

MAKE_ROOM = "make room or choose another folder"


@contextlib.contextmanager
def replacing(path: str | Path, cure: str = MAKE_ROOM) -> Iterator[Path]:
    """A temporary name beside `path`, which takes its place where the block ends well.

    Args:
        cure: what to do where the disk is full, for the message.

    Raises:
        SamAdaptError: the disk is full, or the place cannot be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")  # the suffix stays: writers decide by it
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise SamAdaptError(f"could not write {path}: {error.strerror or error}; {cure}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def is_leftover(path: Path) -> bool:
    """Whether it is a temporary file that a killed process left."""
    number = path.name.split(".")[1:2]
    return path.name.startswith(".") and bool(number) and number[0].isdigit()


def write_text(path: str | Path, text: str) -> None:
    """UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: object) -> None:
    """Indented by one, whole or not at all."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_csv(path: str | Path, head: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """A table, whole or not at all."""
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)
    return Path(path)


def demand_writable(folder: str | Path, option: str) -> None:
    """Before hours of work: whether a folder can be made there and written into. Nothing is left behind.

    Args:
        option: what the user would change, "--out" for example.
    """
    folder = Path(folder)
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{os.getpid()}."):
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
