"""Files are written whole or not at all, and what killed processes left goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from samadapt import files
from samadapt.files import Drafts
from samadapt.records import SamAdaptError


def fail(path: Path, write: Callable[[Path], object], error: Exception) -> None:
    with files.replacing(path) as temporary:
        write(temporary)
        raise error


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("before")
    full = OSError(28, "No space left on device")
    with pytest.raises(SamAdaptError, match=r"could not write .*a\.txt: No space left.*make room or choose"):
        fail(tmp_path / "a.txt", lambda path: path.write_text("half"), full)
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "before"


def test_a_folder_too_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    with files.replacing(tmp_path / "data") as temporary:
        files.write_text(temporary / "inner" / "a.txt", "x")
        assert not (tmp_path / "data").exists()
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.txt")] == ["data/inner/a.txt"]
    with pytest.raises(RuntimeError):
        fail(tmp_path / "other", lambda path: files.write_text(path / "a.txt", "x"), RuntimeError())
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


KILLED = """
import os, sys, time
from samadapt import files
from samadapt.files import Drafts
with files.replacing(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print(temporary.name, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, tmp_path / "a.nii.gz"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    left = tmp_path / process.stdout.readline().strip()
    files._remove_leftovers(tmp_path, 1)
    assert left.is_file() and files.is_leftover(left) and left.name.endswith(".a.nii.gz")  # it still writes
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    elsewhere = tmp_path / left.name.replace(
        files._host(), "0" * 8
    )  # of another machine, which may still write
    mine = tmp_path / f".{process.pid}.a.nii.gz"
    for other in (elsewhere, mine, tmp_path / "a.txt"):
        other.write_text("x")
    files.write_text(tmp_path / "b.txt", "whole")
    assert {p.name for p in tmp_path.iterdir()} == {elsewhere.name, mine.name, "a.txt", "b.txt"}
    assert not files.is_leftover(tmp_path / "a.txt") and not files.is_leftover(tmp_path / ".hidden")


def test_what_means_finished_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    sync = os.fsync

    def fsync(number: int) -> None:
        seen.append((os.readlink(f"/proc/self/fd/{number}"), (tmp_path / "done.json").exists()))
        sync(number)

    monkeypatch.setattr(os, "fsync", fsync)
    files.write_json(tmp_path / "part.json", [])
    assert seen == []
    files.write_json(tmp_path / "done.json", [], finished=True)
    assert [(Path(place).name[-9:], there) for place, there in seen] == [
        ("done.json", False),
        (tmp_path.name[-9:], True),
    ]


def test_a_log_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with files.open_log(tmp_path / "log") as log:
        log.write("one\n")
    with files.open_log(tmp_path / "log") as log:
        log.write("two\n")
    assert (tmp_path / "log").read_text() == "one\ntwo\n"
    with pytest.raises(SamAdaptError, match=r"could not write .*choose another folder"):
        files.open_log(tmp_path / "none" / "log")


def test_a_full_disk_is_said_before_a_file_is_written_through_memory(tmp_path, monkeypatch):
    """A memory map of holes on a full disk would kill the process without a word."""

    def full(number, offset, length):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("samadapt.files.os.posix_fallocate", full)

    def write() -> None:
        with files.replacing(tmp_path / "a") as draft:
            draft.write_bytes(b"x")
            files.reserve(draft)

    with pytest.raises(SamAdaptError, match="No space left on device"):
        write()
    assert list(tmp_path.iterdir()) == []


def test_drafts_whose_renaming_failed_are_placed_when_it_works_again(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with Drafts() as drafts:
        for name in "ab":
            drafts.write(tmp_path / name, name.encode())
            assert drafts.end(tmp_path / name) == 1
        drafts.write(tmp_path / "c", b"half")
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", full)
            with pytest.raises(SamAdaptError, match=r"could not write .*a: No space left"):
                drafts.place()
        drafts.place()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"a", "b": b"b"}
