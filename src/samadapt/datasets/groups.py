"""Which cases are one patient: one rule for checking, training and evaluation, and it is always told."""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from samadapt.datasets.csvs import read_rows
from samadapt.datasets.dataset import Entry
from samadapt.datasets.found import Found
from samadapt.types import SamAdaptError

OWN = "each case is a patient of its own"
_TELL = "tell them apart with --group"

_BREAK = r"(?:^|(?<=[_\-. /(]))"  # where a word of a name begins
_END = r"(?=$|[_\-. /)])"
_BIDS = re.compile(r"(?:^|[/_])(sub-[A-Za-z0-9]+)")
#: A word that means a patient, and the number or code of one.
_SAYS_PATIENT = re.compile(
    _BREAK
    + r"((?:patient|patnr|pat|subject|subj|sub|participant|person|pt)(?:[_\- ]?id)?[_\- ]?[a-z]{0,3}\d+[a-z]?)"
    + _END,
    re.IGNORECASE,
)
#: A number that says where a scan comes from; the same patient's number may be another patient's elsewhere.
_PLACE = re.compile(
    _BREAK
    + r"((?:site|center|centre|hospital|clinic|vendor|scanner|cohort|dataset|batch|fold|task|part|split)[_\- ]?\d+)"
    + _END,
    re.IGNORECASE,
)
_UID = re.compile(r"^\d+(?:\.\d+){4,}$")
_COUNTED = (
    r"(?:frame|slice|visit|timepoint|time|tp|phase|session|ses|scan|view|volume|vol|series|run)[_\-. ]?\d+"
)
_NAMED = r"ED|ES|left|right|L|R|OD|OS|baseline|followup|pre|post|T1|T1w|T1c|T1gd|T2|T2w|FLAIR|DWI|ADC|PD|CT|MR|MRI|PET"
_DATE = r"(?:19|20)\d\d[.\-]?(?:0[1-9]|1[0-2])[.\-]?(?:0[1-9]|[12]\d|3[01])"
#: A beginning with a number, then words that say "the same patient at another moment, place or contrast".
_REPEATED = re.compile(rf"^(.*?\d[^_\-. ]*?)((?:[_\-. ](?:{_COUNTED}|{_NAMED}|{_DATE}))+)$", re.IGNORECASE)
#: So many scans of one patient, or more, are rather the scans of one place; slices and frames are many by nature.
_MANY_SCANS = 7
_MANY_BY_NATURE = re.compile(r"slice|frame|time|phase", re.IGNORECASE)


def assign_groups(found: Found, root: Path, group: str | Path | None) -> tuple[tuple[Entry, ...], str]:
    """The entries with their patients, and the rule in words.

    Args:
        group: a regular expression with one group, searched in the case name and else in the path; a CSV
            file of case and patient; or the name of a column. None: what the layout says, BIDS `sub-`,
            a word like `patient` with a number, `p012_frame01`, else each case for itself.
    """
    entries = found.entries
    if group is not None:
        told, rule = _told(entries, root, str(group), found.columns)
        return _replaced(entries, told), _counted(told, rule)
    if all(entry.group is not None for entry in entries):
        own = {e.id: e.group or e.id for e in entries}
        return tuple(entries), _counted(own, found.group_rule)
    patients, rule = group_names({e.id: _relative(e, root) for e in entries})
    return _replaced(entries, patients), rule


def group_names(names: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Case -> patient, as far as the names tell, and the rule in words.

    What is only likely is said with an example and how to correct it; where the names would make one patient of many
    scans, every case stays a patient of its own, and that is said too.

    Args:
        names: case -> its path and name, from the data set's folder on.
    """
    bids = {case: match.group(1) for case, path in names.items() if (match := _BIDS.search(path))}
    if len(bids) == len(names):
        return bids, _counted(bids, "the BIDS name sub-...")
    said = {case: patient for case in names if (patient := _said(case))}
    if len(said) == len(names):
        return said, _counted(said, "the word for a patient in the name")
    likely = said | {case: patient for case in names if case not in said and (patient := _likely(case))}
    patients = {case: likely.get(case, case) for case in names}
    if len(set(patients.values())) == len(names):
        return patients, f"{OWN} ({_TELL})"
    if crowd := _crowd(patients):
        return {case: case for case in names}, (
            f"{OWN}: by their names {len(crowd)} cases, {crowd[0]!r} and others, could be scans of one patient, "
            f"{patients[crowd[0]]!r}, which is more than is likely; if they are, {_TELL}"
        )
    return patients, f"{_counted(patients, 'the beginning of the name')}; if that is wrong, {_TELL}"


def _said(case: str) -> str | None:
    match = _SAYS_PATIENT.search(case)
    if match is None:
        return None
    places = [place for place in _PLACE.findall(case) if place not in match.group(1)]
    return "_".join([*places, match.group(1)])


def _likely(case: str) -> str | None:
    match = None if _UID.match(case) else _REPEATED.match(case)
    if match is None or not re.search(r"\d", _PLACE.sub("", match.group(1))):
        return None  # the number is that of a place
    return match.group(1)


def _crowd(patients: Mapping[str, str]) -> list[str]:
    """The cases of the largest patient, where patients have more scans than patients have."""
    sizes = Counter(patients.values())
    repeated = [size for size in sizes.values() if size > 1]
    if statistics.median(repeated) < _MANY_SCANS:
        return []
    largest = sizes.most_common(1)[0][0]
    cases = [case for case, patient in patients.items() if patient == largest]
    return [] if _MANY_BY_NATURE.search(cases[0].removeprefix(largest)) else cases


def _counted(patients: Mapping[str, str], rule: str) -> str:
    """The rule with what it made, and an example where a case is not its own patient."""
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


def _from_csv(path: Path) -> dict[str, str]:
    rows = [cells for _, cells in read_rows(path)]
    if not rows or min(len(row) for row in rows) < 2:
        raise SamAdaptError(f"group table {path} needs a header and two columns: case, patient")
    found: dict[str, str] = {}
    for case, patient, *_ in rows[1:]:
        if found.setdefault(case, patient) != patient:
            raise SamAdaptError(
                f"group table {path} gives case {case!r} two patients, {found[case]!r} and {patient!r}"
            )
    return found
