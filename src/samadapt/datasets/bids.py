"""BIDS: `sub-*/[ses-*/]anat/*_T1w.nii.gz` with label maps below `derivatives/`, `*_dseg.nii.gz`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from samadapt import io
from samadapt.datasets.csvs import read_rows
from samadapt.datasets.dataset import Entry
from samadapt.datasets.masks import classes_from_values
from samadapt.datasets.parsed import ParsedLayout
from samadapt.types import SamAdaptError

_LABEL = "dseg"
#: Parts of a name that a derivative adds to that of its image.
_ADDED = ("desc", "space", "res", "den", "atlas", "seg", "label")


def is_bids(path: Path) -> bool:
    """Folders `sub-*`, and a `*_dseg.nii.gz` somewhere."""
    subjects = [folder for folder in io.find_folders(path) if folder.name.startswith("sub-")]
    return bool(subjects) and any(_suffix(file) == _LABEL for file in _files(path))


def read_bids(path: Path, label_column: str | None) -> ParsedLayout:
    """One case for each subject, session, run, ...; its modalities (T1w, FLAIR) are its channels.

    Where several label maps belong to a case, or one belongs to none, that is an error by name. The patient is `sub-`.
    """
    labels, images = dict[str, tuple[Path]](), defaultdict[str, dict[str, Path]](dict)
    for file in _files(path):
        case = _case(file)
        if _suffix(file) == _LABEL:
            if case in labels:
                raise SamAdaptError(
                    f"{labels[case][0]} and {file} are label maps of the same case {case!r}; expected one: keep the one to learn"
                )
            labels[case] = (file,)
        elif "derivatives" not in file.relative_to(path).parts:
            if _suffix(file) in images[case]:
                raise SamAdaptError(
                    f"{images[case][_suffix(file)]} and {file} are the same image of case {case!r}; rename one"
                )
            images[case][_suffix(file)] = file
    alone = sorted(set(labels) - set(images))
    if alone:
        raise SamAdaptError(
            f"{labels[alone[0]][0]} has no image; expected {alone[0]}_T1w.nii.gz or alike below {path}"
        )
    modalities = _modalities(images, list(labels))
    entries = [
        Entry(case, tuple(found[m] for m in modalities), labels.get(case, ()), group=case.split("_")[0])
        for case, found in sorted(images.items())
        if set(modalities) <= set(found)
    ]
    classes, values, declared = _classes(path, [file for (file,) in labels.values()])
    return ParsedLayout(
        entries, classes, classes_declared=declared, channel_names=tuple(modalities), label_values=values,
        group_rule="the BIDS name sub-...",
    )  # fmt: skip


def _files(path: Path) -> list[Path]:
    return [file for file in io.list_files(path, recursive=True).files if file.name.startswith("sub-")]


def _suffix(file: Path) -> str:
    return io.case_name(file).rsplit("_", 1)[-1]


def _case(file: Path) -> str:
    """The name without its last word and without what derivatives add."""
    parts = io.case_name(file).split("_")[:-1]
    return "_".join(part for part in parts if part.split("-")[0] not in _ADDED)


def _modalities(images: Mapping[str, Mapping[str, Path]], labelled: Sequence[str]) -> list[str]:
    """The modalities that every labelled case has."""
    common = set.intersection(*(set(images[case]) for case in labelled))
    if not common:
        raise SamAdaptError(
            f"the labelled cases have no modality in common; {labelled[0]!r} has {', '.join(sorted(images[labelled[0]]))}"
        )
    return sorted(common)


def _classes(path: Path, labels: Sequence[Path]) -> tuple[tuple[str, ...], dict[int, int], bool]:
    """From `*_dseg.tsv` (index, name) where there is one, else from the values."""
    tables = sorted(path.rglob(f"*_{_LABEL}.tsv")) or sorted(path.rglob(f"{_LABEL}.tsv"))
    if not tables:
        return *classes_from_values(labels, path), False
    (_, head), *rows = read_rows(tables[0])
    columns = [name.lower() for name in head]
    if "index" not in columns or "name" not in columns:
        raise SamAdaptError(f"{tables[0]} has the columns {', '.join(head)}; expected index and name")
    names = {row[columns.index("index")]: row[columns.index("name")] for _, row in rows}
    if not all(index.isdigit() and int(index) < 255 for index in names):
        raise SamAdaptError(f"{tables[0]}: an index is no number from 0 to 254; correct it")
    numbers = sorted({0, *map(int, names)})
    classes = tuple(names.get(str(n), "background") if n else "background" for n in numbers)
    return classes, {n: place for place, n in enumerate(numbers)}, True
