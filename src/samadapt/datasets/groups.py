"""Which cases belong to one patient: one rule for checking, training and evaluation, which is always printed."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

from samadapt import io
from samadapt.datasets.csvs import is_csv, read_rows
from samadapt.datasets.dataset import Entry
from samadapt.datasets.parsed import ParsedLayout
from samadapt.datasets.patient_names import patients_by_name
from samadapt.types import SamAdaptError

_CASES = ("case", "case_id", "image", "image_id", "file", "filename", "name", "id")
_HEADERS = "the PatientID of the DICOM headers"
_PATIENTS = ("patient", "patient_id", "patientid", "group", "subject", "subject_id")


def assign_groups(found: ParsedLayout, root: Path, group: str | Path | None) -> tuple[tuple[Entry, ...], str]:
    """The entries with their patients, and the rule in words.

    Args:
        group: a regular expression with one group, searched in the case name and else in the path; a CSV
            file of case and patient; or the name of a column. None: what the layout says, else what the names say.
    """
    entries = found.entries
    if group is not None:
        patients, rule = _as_given(entries, root, str(group), found.columns)
        return _replaced(entries, patients), _counted(patients, rule)
    if all(entry.group is not None for entry in entries):
        own = {e.id: e.group or e.id for e in entries}
        return tuple(entries), _counted(own, found.group_rule)
    if (told := _in_headers(entries)) is not None:
        return _replaced(entries, told), _counted(told, _HEADERS)
    named = patients_by_name({e.id: _folders_and_name(e, root) for e in entries})
    return _replaced(entries, named.patients), named.rule


def _in_headers(entries: Sequence[Entry]) -> dict[str, str] | None:
    """The patients as the headers of the images say them; None where none does. A case without is a patient of its own."""
    told = {e.id: io.patient_of(e.images[0]) for e in entries if e.row is None}
    if not any(told.values()):
        return None
    return {e.id: told.get(e.id) or e.id for e in entries}


def _counted(patients: Mapping[str, str], rule: str) -> str:
    """The rule, how many patients it gives, and an example of a case that is not a patient of its own."""
    example = next((case for case, patient in patients.items() if case != patient), None)
    if example is None:
        return rule
    count = len(set(patients.values()))
    return f"{len(patients)} cases of {count} patients, by {rule}: {example!r} is of patient {patients[example]!r}"


def _replaced(entries: Sequence[Entry], found: Mapping[str, str]) -> tuple[Entry, ...]:
    return tuple(dataclasses.replace(e, group=found.get(e.id, e.id)) for e in entries)


def _relative(entry: Entry, root: Path) -> str:
    path = entry.images[0]
    return f"{path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name}/{entry.id}"


def _folders_and_name(entry: Entry, root: Path) -> str:
    """The path within the data set; folders outside of it say nothing about patients."""
    folder = entry.images[0].parent
    return "/".join((*(folder.relative_to(root).parts if folder.is_relative_to(root) else ()), entry.id))


def _as_given(
    entries: Sequence[Entry], root: Path, group: str, columns: Mapping[str, Mapping[str, str]]
) -> tuple[dict[str, str], str]:
    if group in columns:
        found, rule = dict(columns[group]), f"column {group!r}"
    elif is_csv(group):
        found, rule = from_csv(Path(group), entries), f"the table {Path(group).name}"
    elif "(" in group:
        found, rule = _from_pattern(entries, root, group), f"the pattern {group!r}"
    else:
        known = f"; the data set's columns are {', '.join(sorted(columns))}" if columns else ""
        raise SamAdaptError(
            f"group is {group!r}; expected a regular expression with one group, e.g. '(patient\\d+)', a .csv file of "
            f"case and patient, or a column of the data set's table{known}"
        )
    missing = [e.id for e in entries if not found.get(e.id)]
    if missing:
        raise SamAdaptError(
            f"{rule} gives no patient for {len(missing)} of {len(entries)} cases, the first is {missing[0]!r}; "
            "every case needs one"
        )
    return {e.id: found[e.id] for e in entries}, rule


def _from_pattern(entries: Sequence[Entry], root: Path, pattern: str) -> dict[str, str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise SamAdaptError(f"group {pattern!r} is not a regular expression ({error})") from error
    if compiled.groups != 1:
        raise SamAdaptError(f"group {pattern!r} has {compiled.groups} groups; expected one pair of brackets")
    found = {}
    for entry in entries:
        if match := compiled.search(entry.id) or compiled.search(_relative(entry, root)):
            found[entry.id] = match.group(1)
    return found


def from_csv(path: Path, entries: Sequence[Entry]) -> dict[str, str]:
    """Case -> patient from a table, which may name the file instead of the case, in any form of Unicode."""
    (_, head), *rows = read_rows(path) or [(1, [])]
    if len(head) < 2 or any(len(row) < 2 for _, row in rows):
        raise SamAdaptError(f"group table {path} needs a header and two columns: case, patient")
    columns = [name.lower() for name in head]
    case = next((columns.index(name) for name in _CASES if name in columns), 0)
    patient = next((columns.index(name) for name in _PATIENTS if name in columns), int(case == 0))
    ids = {_normal(e.id): e.id for e in entries}
    if _normal(head[case]) in ids:
        raise SamAdaptError(
            f"group table {path} begins with the case {head[case]!r}; expected a header first: case,patient"
        )
    patients: dict[str, str] = {}
    for line, row in rows:
        name = _normal(row[case])
        spellings = (name, io.case_name(Path(name)), io.case_name(Path(name), channels=True))
        own = next((ids[n] for n in spellings if n in ids), name)
        if patients.setdefault(own, row[patient]) != row[patient]:
            raise SamAdaptError(
                f"group table {path}, line {line}, gives case {own!r} two patients, {patients[own]!r} and {row[patient]!r}; correct "
                "a row"
            )
    return patients


def _normal(name: str) -> str:
    return unicodedata.normalize("NFC", name)
