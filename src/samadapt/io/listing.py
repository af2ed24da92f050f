"""Which files of a folder are used, which are left out and why. No other module walks through folders."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from samadapt.io.dicom import headers
from samadapt.io.formats import is_found_by_content, not_scans_among, scans_among, suffix_of

BROKEN = "broken links"
UNREAD = "in formats that are not read"
PIPE = "pipes, sockets or devices"
HIDDEN = "hidden, or copies that a program made"
UNUSED = "images in no case"

#: Formats of medical images that are not read; what to do about some of them.
_UNREAD = {
    **dict.fromkeys((".nhdr", ".mha", ".mhd", ".mgz", ".mgh", ".hdr", ".img"), "convert them to NIfTI"),
    **dict.fromkeys((".jp2", ".heic", ".avif", ".svs", ".ndpi"), "convert them to PNG or TIFF"),
    **dict.fromkeys((".npy", ".mat", ".h5", ".hdf5"), "save them as NIfTI or PNG"),
}
_JUNK = {"thumbs.db", "desktop.ini", "__macosx", "@eadir"}
#: Files that mark what samadapt itself wrote: a run, predictions, stored maps, a study.
_OURS = (("config.json", "environment.json"), ("predictions.json",), ("frame.json",), ("experiment.json",))


@dataclass(frozen=True)
class Listing:
    """The image files below a folder, sorted, and the files that were left out: (file, why)."""

    files: tuple[Path, ...]
    left_out: tuple[tuple[Path, str], ...] = ()


def list_files(folder: Path, recursive: bool = False) -> Listing:
    """The image files of a folder; what samadapt wrote itself (runs, predictions, maps, studies) is not looked into."""
    files: list[Path] = []
    left_out: list[tuple[Path, str]] = []
    for place, hidden in _walk(folder, recursive):
        inside = []
        for entry in sorted(os.scandir(place), key=lambda e: e.name):
            path = Path(entry.path)
            if entry.name.lower() in _JUNK or os.path.isdir(entry):  # False for a link to itself
                continue
            if reason := _why_not(path, hidden):
                left_out.append((path, reason))
            else:
                inside.append(path)
        files += scans_among(inside)
        left_out += not_scans_among(inside)
    return Listing(tuple(sorted(files)), tuple(left_out))


def list_scans(folder: Path) -> Listing:
    """The image files right in a folder, and the scans of many files (DICOM series) in it at any depth."""
    right_in, below = list_files(folder), list_files(folder, recursive=True)
    files = dict.fromkeys([*right_in.files, *(path for path in below.files if is_found_by_content(path))])
    return Listing(
        tuple(sorted(files)), right_in.left_out if len(files) == len(right_in.files) else below.left_out
    )


def find_files(folder: Path, ending: str = "") -> list[Path]:
    """The image files of a folder, sorted.

    Args:
        ending: that of their names, as nnU-Net's `file_ending`; "": any.
    """
    return [path for path in list_files(folder).files if ending in ("", suffix_of(path))]


def find_folders(folder: Path) -> list[Path]:
    """The folders right in a folder, sorted; hidden ones and those that samadapt wrote are left out."""
    if not folder.is_dir():
        return []
    return sorted(Path(e.path) for e in os.scandir(folder) if os.path.isdir(e) and _counts(Path(e.path)))


def in_words(left_out: Sequence[tuple[Path, str]], root: Path) -> str:
    """Grouped by reason, with counts and the first names; "" where nothing was left out."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for path, reason in left_out:
        groups[reason].append(path)
    parts = []
    for reason, paths in groups.items():
        names = [_shown(p, root) for p in paths[:3]]
        cures = (
            {_UNREAD[p.suffix.lower()] for p in paths if p.suffix.lower() in _UNREAD}
            if reason == UNREAD
            else set()
        )
        more = ", ..." if len(paths) > len(names) else ""
        parts.append(
            f"{len(paths)} {reason} ({', '.join(names)}{more}{''.join(f': {c}' for c in sorted(cures))})"
        )
    return "; ".join(parts)


def _shown(path: Path, root: Path) -> str:
    """Below the root; of a DICOM file the name alone, because its folders may be called after the patient."""
    below = path.is_relative_to(root) and headers.kind_of(path) is None
    return str(path.relative_to(root)) if below else path.name


def cure(path: Path) -> str:
    """Advice for a file of a format that is not read; "" where there is none."""
    return _UNREAD.get(path.suffix.lower(), "")


def not_used(listing: Listing, used: Collection[Path]) -> tuple[tuple[Path, str], ...]:
    """The files that a data set leaves out: those that cannot be read, and images that belong to no case."""
    return (*listing.left_out, *((path, UNUSED) for path in listing.files if path not in used))


def _walk(folder: Path, recursive: bool) -> Iterator[tuple[Path, bool]]:
    """Folders to look into, and whether they are hidden; each once, whatever links say."""
    waiting, seen = [(folder, False)], set()
    while waiting:
        place, hidden = waiting.pop()
        real = os.path.realpath(place)
        if real in seen or not place.is_dir():
            continue
        seen.add(real)
        yield place, hidden
        if recursive:
            inner = [
                Path(e.path) for e in os.scandir(place) if os.path.isdir(e) and e.name.lower() not in _JUNK
            ]
            waiting += [(p, hidden or p.name.startswith(".")) for p in sorted(inner) if not _is_ours(p)]


def _why_not(path: Path, hidden: bool) -> str | None:
    if path.is_symlink() and not path.exists():
        return BROKEN
    if not path.is_file():
        return PIPE
    if suffix_of(path) and (hidden or path.name.startswith(".")):
        return HIDDEN
    if (
        path.suffix.lower() in _UNREAD
        and not hidden
        and not path.name.startswith(".")
        and not suffix_of(path)
    ):
        return UNREAD
    return None


def _counts(folder: Path) -> bool:
    return not folder.name.startswith(".") and folder.name.lower() not in _JUNK and not _is_ours(folder)


def _is_ours(folder: Path, depth: int = 3) -> bool:
    """Whether samadapt wrote the folder, or all that is in it."""
    if any(all((folder / name).is_file() for name in names) for names in _OURS):
        return True
    inner = list(os.scandir(folder)) if depth and folder.is_dir() else []
    return bool(inner) and all(os.path.isdir(e) and _is_ours(Path(e.path), depth - 1) for e in inner)
