"""Classification from a table of labels: image folder + CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from samadapt import io
from samadapt.datasets.csvs import is_csv, read_rows
from samadapt.datasets.dataset import Entry, Part
from samadapt.datasets.masks import is_in_mask_folder
from samadapt.datasets.parsed import PARTS, ParsedLayout, part_folders
from samadapt.datasets.pictures import channel_names, unique_names
from samadapt.datasets.targets import Targets, read_targets
from samadapt.types import SamAdaptError

_IMAGE = ("path", "image", "image_id", "image_path", "file", "filename", "file_name", "image_name", "id")
_GROUP = ("group", "patient", "patient_id", "patientid", "subject", "subject_id")
_PART = ("split", "part", "subset", "partition")
_LABEL = ("label", "class", "target", "diagnosis", "dx")


@dataclass(frozen=True)
class LabelTable:
    """A CSV as it is: rows know their line."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]
    lines: tuple[int, ...]

    def named(self, names: Sequence[str]) -> str | None:
        """The column of one of these names, case apart."""
        return next((c for name in names for c in self.columns if c.lower() == name), None)

    def where(self, row: int) -> str:
        """For messages."""
        return f"{self.path}, line {self.lines[row]}"


def _csv_of(folder: Path) -> Path | None:
    files = sorted(folder.glob("*.csv"))
    if (folder / "labels.csv") in files:
        return folder / "labels.csv"
    return files[0] if len(files) == 1 else None


def _tables(path: Path) -> list[tuple[Part | None, Path]]:
    if path.is_file():
        return [(None, path)] if is_csv(path) else []
    if own := _csv_of(path):
        return [(None, own)]
    return [(part, file) for part, folder in part_folders(path).items() if (file := _csv_of(folder))]


def is_table(path: Path) -> bool:
    """A .csv, a folder with `labels.csv` (or one .csv), or train/, val/, test/ with one each."""
    return bool(_tables(path))


def read_table(path: Path, label_column: str | None) -> ParsedLayout:
    """A column of images (path, image, image_id, ...), label column(s), perhaps a patient and a split column."""
    entries: list[Entry] = []
    columns: dict[str, dict[str, str]] = {}
    tables = [(part, _read_csv(file)) for part, file in _tables(path)]
    names = _label_columns(tables[0][1], label_column)
    targets = read_targets(
        [(t.where(n), [row[c] for c in names]) for _, t in tables for n, row in enumerate(_having(t, names))],
        names,
    )
    group_column = tables[0][1].named(_GROUP)
    for part, table in tables:
        entries += _entries(table, part, group_column, targets, start=len(entries))
    entries = unique_names(entries, path if path.is_dir() else path.parent)
    rows = [row for _, table in tables for row in table.rows]
    for column in tables[0][1].columns:
        columns[column] = {e.id: row.get(column, "") for e, row in zip(entries, rows, strict=True)}
    first = entries[0].images[0]
    return ParsedLayout(
        entries=entries,
        classes=targets.classes,
        channel_names=channel_names(first),
        multilabel=targets.multilabel,
        columns=columns,
        group_rule=f"column {group_column!r}",
    )


def _read_csv(path: Path) -> LabelTable:
    (_, head), *body = read_rows(path) or [(1, [])]
    columns = tuple(head)
    if len(set(columns)) != len(columns):
        raise SamAdaptError(f"{path} has two columns of the same name: {', '.join(columns)}; rename one")
    for line, cells in body:
        if len(cells) != len(columns):
            raise SamAdaptError(
                f"{path}, line {line}: {len(cells)} cells; the header has {len(columns)} columns"
            )
    if not body:
        raise SamAdaptError(f"{path} has no rows; expected a header and one row for each image")
    rows = tuple(dict(zip(columns, cells, strict=True)) for _, cells in body)
    return LabelTable(path, columns, rows, tuple(line for line, _ in body))


def _having(table: LabelTable, names: Sequence[str]) -> tuple[Mapping[str, str], ...]:
    for name in names:
        if name not in table.columns:
            raise SamAdaptError(f"{table.path} has no column {name!r}; it has {', '.join(table.columns)}")
    return table.rows


def _label_columns(table: LabelTable, label_column: str | None) -> tuple[str, ...]:
    if label_column is not None:
        return tuple(name.strip() for name in label_column.split(","))
    if usual := table.named(_LABEL):
        return (usual,)
    others = [table.named(names) for names in (_IMAGE, _GROUP, _PART)]
    rest = tuple(column for column in table.columns if column not in others)
    if len(rest) == 1 or (rest and all(row[c] in _ZERO_ONE for row in table.rows for c in rest)):
        return rest
    raise SamAdaptError(
        f"{table.path}: which column is the label? It has {', '.join(table.columns)}; name it with --label-column "
        "(several, comma-separated, for one 0/1 column per class)"
    )


_ZERO_ONE = {"0", "1", "0.0", "1.0"}


def _entries(
    table: LabelTable, part: Part | None, group_column: str | None, targets: Targets, start: int
) -> list[Entry]:
    column = table.named(_IMAGE)
    if column is None:
        raise SamAdaptError(
            f"{table.path} has no column of images; expected one called {', '.join(_IMAGE[:3])}, it has "
            f"{', '.join(table.columns)}"
        )
    part_column = table.named(_PART)
    finder = _Finder(table.path.parent)
    seen: dict[Path, int] = {}
    entries = []
    for number, row in enumerate(table.rows):
        file = finder(row[column], table.where(number))
        target = targets.values[start + number]
        if file in seen:
            before = targets.values[start + seen[file]]
            what = "with two labels" if before != target else "with the same label"
            raise SamAdaptError(
                f"{table.where(number)}: {row[column]!r} is listed again {what} (first in line "
                f"{table.lines[seen[file]]}); expected each image once: remove one row"
            )
        seen[file] = number
        own = _part(row[part_column], table.where(number)) if part_column else part
        group = row.get(group_column, "") if group_column else None
        if group == "":
            raise SamAdaptError(
                f"{table.where(number)}: column {group_column!r} is empty; expected the patient"
            )
        entries.append(Entry(io.case_name(file), (file,), target=target, part=own, group=group))
    return entries


def _part(value: str, where: str) -> Part:
    if value.lower() not in PARTS:
        raise SamAdaptError(f"{where}: the split is {value!r}; expected train, val or test")
    return PARTS[value.lower()]


class _Finder:
    """Image names of a table -> files: a path from the table's folder, or a name anywhere below it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.by_name: dict[str, list[Path]] = {}
        for file in io.list_files(folder, recursive=True).files:
            if not is_in_mask_folder(file, folder):
                for name in {io.case_name(file), file.name}:
                    self.by_name.setdefault(name, []).append(file)

    def __call__(self, value: str, where: str) -> Path:
        if not value:
            raise SamAdaptError(f"{where}: the image is empty; expected a file name")
        for candidate in (self.folder / value, self.folder / "images" / value):
            if candidate.is_file():
                return candidate
        found = self.by_name.get(value, [])
        if len(found) != 1:
            what = "does not exist" if not found else f"could be {found[0]} or {found[1]}"
            raise SamAdaptError(f"{where}: image {value!r} {what}; expected one file below {self.folder}")
        return found[0]
