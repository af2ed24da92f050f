"""The result of reading a layout, and the small readers that layouts share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

from samadapt import io
from samadapt.datasets.dataset import Entry, Part
from samadapt.types import SamAdaptError

#: Folder and column names of the official parts.
PARTS: dict[str, Part] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
ORDER: tuple[Part, ...] = ("train", "val", "test")


@dataclass(frozen=True)
class ParsedLayout:
    """The result of reading a layout, from which `open_dataset` makes the `Dataset`."""

    entries: Sequence[Entry]
    classes: tuple[str, ...]
    _: KW_ONLY  # a new field must not move the meaning of another
    classes_declared: bool = True  # by the data set; False where they were made from the values in the masks
    name: str | None = None
    channel_names: tuple[str, ...] = ("image",)
    channels: tuple[int, ...] | None = None
    multilabel: bool = False
    window: str | None = None  # of the intensities; None: by the channels and the first image
    depth: str | None = None  # the type of the numbers in its pictures; None: as the first file says
    label_values: Mapping[int, int] = field(default_factory=dict)
    #: Of labels that name their structures, as SEG and RTSTRUCT do: file -> the names in it.
    structures: Mapping[Path, tuple[str, ...]] = field(default_factory=dict)
    folds: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ()
    #: Of the table: column -> {case: value}.
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    group_rule: str = "as the data set says"  # where the entries have groups
    classes_once_numbered: bool = False  # earlier versions called them 0, 1, ...


def read_json(path: Path) -> Any:
    """The content of a JSON file; a broken file is an error that names it."""
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=_each_key_once)  # UTF-8 or UTF-16
    except (OSError, ValueError, RecursionError) as error:
        raise SamAdaptError(f"{path} cannot be read as JSON ({error}); correct it") from error


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key that is there twice; Python would silently keep the last."""
    keys = [key for key, _ in pairs]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise ValueError(f"the key {twice!r} is there twice")
    return dict(pairs)


def part_folders(path: Path) -> dict[Part, Path]:
    """The folders called train, val, test (or alike) in a folder, in this order."""
    found: dict[Part, Path] = {}
    for folder in (f for f in io.find_folders(path) if f.name.lower() in PARTS):
        part = PARTS[folder.name.lower()]
        if part in found:
            raise SamAdaptError(
                f"{found[part]} and {folder} are both the {part} part; expected one: rename one"
            )
        found[part] = folder
    return {part: found[part] for part in ORDER if part in found}
