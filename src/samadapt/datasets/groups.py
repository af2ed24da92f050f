"""Which cases are one patient. The rule that was used is always told."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from samadapt.datasets.dataset import Entry
from samadapt.datasets.found import Found
from samadapt.types import SamAdaptError

_BIDS = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)")
# A number, then words that say "the same patient at another moment or place".
_REPEATED = re.compile(
    r"^(.*?\d[^_-]*?)"
    r"(?:[_-](?:(?:frame|slice|visit|timepoint|time|phase|session|ses|scan|view|volume)[_-]?\d+|ED|ES))+$",
    re.IGNORECASE,
)


def assign_groups(found: Found, root: Path, group: str | Path | None) -> tuple[tuple[Entry, ...], str]:
    """The entries with their patients, and the rule in words.

    Args:
        group: a regular expression with one group, searched in the case name and else in the path; a CSV
            file of case and patient; or the name of a column. None: what the layout says, BIDS `sub-`,
            `patient012_frame01`, else each case for itself.
    """
    entries = found.entries
    if group is not None:
        told, rule = _told(entries, root, str(group), found.columns)
        return _replaced(entries, told), rule
    if all(entry.group is not None for entry in entries):
        return tuple(entries), found.group_rule
    bids = {e.id: _BIDS.search(_relative(e, root)) for e in entries}
    if all(bids.values()):
        return _replaced(entries, {i: m.group(1) for i, m in bids.items() if m}), "the BIDS name sub-..."
    repeated = {e.id: m.group(1) for e in entries if (m := _REPEATED.match(e.id))}
    if repeated:
        example = next(iter(repeated))
        rule = f"the case name up to its frame, slice or visit: {example!r} is patient {repeated[example]!r}"
        return _replaced(entries, repeated), rule
    return _replaced(entries, {}), "each case is a patient of its own (tell them apart with --group)"


def _replaced(entries: Sequence[Entry], found: Mapping[str, str]) -> tuple[Entry, ...]:
    return tuple(dataclasses.replace(e, group=found.get(e.id, e.id)) for e in entries)


def _relative(entry: Entry, root: Path) -> str:
    path = entry.images[0]
    return f"{path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name}/{entry.id}"


def _told(
    entries: Sequence[Entry], root: Path, group: str, columns: Mapping[str, Mapping[str, str]]
) -> tuple[dict[str, str], str]:
    if group in columns:
        found, rule = dict(columns[group]), f"column {group!r}"
    elif group.lower().endswith(".csv"):
        found, rule = _from_csv(Path(group)), f"the table {Path(group).name}"
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
    return found, rule


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


def _from_csv(path: Path) -> dict[str, str]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if row]
    except OSError as error:
        raise SamAdaptError(f"group table {path} cannot be read ({error.strerror})") from error
    if not rows or min(len(row) for row in rows) < 2:
        raise SamAdaptError(f"group table {path} needs a header and two columns: case, patient")
    return {row[0].strip(): row[1].strip() for row in rows[1:]}
