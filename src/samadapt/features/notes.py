"""Where the maps of a case stand in a store, and `frame.json`, which says which of them are there."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from samadapt.features.maps import MapSpec
from samadapt.files import write_json
from samadapt.types import Case, Frame

NOTE = "frame.json"
_STEM = re.compile(r"\w[\w.:+-]*@\d+")  # TAP@WINDOW, of `map_file`


def folder_of(root: Path, case: Case, digest: str) -> Path:
    """Under the folder of an encoder; both names: the case's seeds its views, and is not the only one of that name."""
    return root / f"{case.id}-{digest[:12]}"


def map_file(folder: Path, tap: str, window: int) -> Path:
    """Of one map."""
    return folder / f"{tap}@{window}.npy"


def read_note(folder: Path, digest: str) -> dict[str, Any]:
    """What stands in `frame.json`; nothing where it is missing, broken or about another image."""
    try:
        note = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    about = (
        isinstance(note, dict) and isinstance(note.get("maps"), dict) and isinstance(note.get("frame"), dict)
    )
    return note if about and note.get("image_sha256") == digest else {}


def write_note(folder: Path, digest: str, frame: Frame, sizes: dict[Path, int], views: int) -> None:
    """Add these maps, of so many bytes, to what another process may have written meanwhile."""
    stored = dict(read_note(folder, digest).get("maps", {}))
    stored |= {path.stem: {"views": views, "bytes": size} for path, size in sizes.items()}
    note = {"image_sha256": digest, "frame": dataclasses.asdict(frame), "maps": stored}
    write_json(folder / NOTE, note)


def missing_maps(folder: Path, digest: str, maps: MapSpec) -> dict[str, int]:
    """Tap -> window, of the maps that are not there with all their views and bytes."""
    stored = read_note(folder, digest).get("maps", {})

    def is_there(path: Path) -> bool:
        try:
            note = stored[path.stem]
            return bool(note["views"] >= maps.views and path.stat().st_size == note["bytes"])
        except (KeyError, TypeError, FileNotFoundError):  # it is missing, or the note is not as we write it
            return False

    return {tap: w for tap, w in maps.taps.items() if not is_there(map_file(folder, tap, w))}


def sound_note(text: bytes | None) -> dict[str, Any]:
    """A note from elsewhere, with those of its maps that are named as we name them; nothing where it is not as we write it."""
    try:
        note = json.loads(text or b"")
        note["maps"] = {
            stem: {"views": int(about["views"]), "bytes": int(about["bytes"])}
            for stem, about in note["maps"].items()
            if _STEM.fullmatch(stem)  # and leads to no other folder
        }
        return note if isinstance(note["frame"], dict) and isinstance(note["image_sha256"], str) else {}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
