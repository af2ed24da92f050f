"""Which cases belong to one patient, by their names: words that mean "patient", words that mean "the same one again"."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

EACH = "each case is a patient of its own"
_HINT = "assign patients with --group"

# ---------------------------------------------------------------- the words, small letters

#: One of several pictures within a scan.
_WITHIN = "frame|slice|slc|patch|tile|crop|cut|stack|roi|lesion|nodule|echo|level|z"
#: The patient at another moment.
_AGAIN = "visit|timepoint|time|tp|phase|session|ses|day|week|month|followup|fu|run|t"
#: A whole file; also what a case of its own may be called.
_FILE = "scan|view|volume|vol|image|img|series|exam|acq"
#: A side, a moment, a direction or a sequence, without a number.
_ALONE = (
    "ed|es|baseline|base|bl|followup|follow-up|pre|post|before|after|left|right|l|r|lt|rt|od|os|cc|mlo|lcc|lmlo|rcc|rmlo|"
    "axial|sagittal|coronal|ax|sag|cor|sax|lax|[234]ch|t1|t1w|t1c|t1ce|t1gd|t1n|t2|t2w|t2f|flair|dwi|adc|pd|pdw|ct|mr|mri|pet"
)
_DATE = r"(?:19|20)\d\d[-.]?[01]\d[-.]?[0-3]\d"
#: Where patients are numbered anew: patient 3 of site 1 is not patient 3 of site 2.
_PLACE = "site|center|centre|hospital|clinic|cohort"
#: What is numbered as patients are, and is none.
_NO_ONE = rf"{_PLACE}|scanner|vendor|device|batch|fold|set|group|dataset|part|year|release|version|v"

_GAP = r"[\s_.-]"  # between words of a name
_AGAIN_NUMBER = rf"(?:{_WITHIN}|{_AGAIN}|{_FILE}){_GAP}*\d+"
_REPEAT = rf"(?:{_AGAIN_NUMBER}|(?:{_ALONE})|{_DATE})"

#: A name is of the patient that the first of these finds: archives with a form of their own, then the word itself.
_SURE = (
    re.compile(r"(?:^|(?<=[/_\s]))(sub-[a-z0-9]+)", re.IGNORECASE),  # BIDS
    re.compile(r"(?<![a-z0-9])(TCGA-[a-z0-9]{2}-[a-z0-9]{4})", re.IGNORECASE),
    re.compile(r"(?<![a-z0-9])(LIDC-IDRI-\d{4})", re.IGNORECASE),
    re.compile(r"(?<![a-z0-9])(BraTS-[a-z]+-\d{5})(?=-\d{3})", re.IGNORECASE),
    re.compile(r"(?<![a-z0-9])(UPENN-GBM-\d{5})", re.IGNORECASE),
    re.compile(r"(?<![a-z0-9])(OAS\d_\d{4})(?!\d)", re.IGNORECASE),  # OASIS
    re.compile(r"(?<![a-z0-9])(\d{3}_S_\d{4,5})(?!\d)"),  # ADNI
    re.compile(
        rf"(?<![a-z])((?:patient|participant|person|subject|subj|sub|proband|volunteer|pat|pt)(?:{_GAP}*(?:id|no|nr))?"
        rf"(?:{_GAP}*|{_GAP}+(?!{_REPEAT}(?![a-z0-9]))[a-z]{{1,4}}{_GAP}?)\d[a-z0-9]*?)"
        rf"(?=[^a-z0-9]|$|{_REPEAT}(?![a-z0-9]))",
        re.IGNORECASE,
    ),
)
_END = re.compile(rf"^(.*?)(?:{_GAP}+{_REPEAT}|(?<=\d)(?=[a-z]{{2}}){_REPEAT})$", re.IGNORECASE)
_START = re.compile(rf"^(?:(?:{_AGAIN}){_GAP}*\d+|(?:{_ALONE})){_GAP}+(.*\d.*)$", re.IGNORECASE)
_NOBODY = re.compile(rf"^(?:\D*|(?:{_WITHIN}|{_AGAIN}){_GAP}*\d+|{_DATE})$", re.IGNORECASE)
_NO_PATIENT = re.compile(rf"^(?:(?:.*{_GAP})?(?:{_NO_ONE}){_GAP}*\d+|(?:19|20)\d\d)$", re.IGNORECASE)
_IN_PLACE = re.compile(rf"(?<![a-z0-9])((?:{_PLACE}){_GAP}*\d+)(?=[^a-z0-9])", re.IGNORECASE)
_FILE_NUMBER = re.compile(rf"{_GAP}(?:{_FILE}){_GAP}*\d+$", re.IGNORECASE)

_UID = re.compile(r"^\d+(?:\.\d+){4,}$")  # DICOM's identifiers: a part of one that looks like a date is none
_MANY_SCANS = 6  # a patient on average: more are rarely whole scans of one
_ALIKE = re.compile(rf"^(.*\d.*?)(?:{_GAP}+\(?[a-z0-9]+\)?|(?<=\d)[a-z]+)$", re.IGNORECASE)


@dataclass(frozen=True)
class NamedPatients:
    """Case -> patient for the cases whose name gives it, and the rule in words."""

    patients: Mapping[str, str]
    rule: str


def patients_by_name(paths: Mapping[str, str]) -> NamedPatients:
    """What is certain: a word as patient012 or sub-01. Else the name up to its frame, visit or side, where that is plausible.

    Args:
        paths: case -> its folders within the data set and its name, separated by `/`.
    """
    sure = {case: found for case, path in paths.items() if (found := _sure(case, path))}
    sure = _spelled_once(sure)
    rest = [case for case in paths if case not in sure]
    likely = {case: found for case in rest if (found := _up_to(case))}
    likely |= _after([case for case in rest if case not in likely])
    doubt = _doubt(likely)
    if doubt or len(set(likely.values())) == len(likely):  # nobody is there twice
        likely = {}
    parts = []
    if sure:
        parts.append(f"the patient's ID in the name of the case or its folder{_count(sure)}{_example(sure)}")
    if likely:
        parts.append(
            f"the case name up to its frame, slice, visit or side{_count(likely)}{_example(likely)}; "
            "if that is wrong, give --group"
        )
    if len(parts) == 0:
        return NamedPatients({}, f"{EACH} {doubt}" if doubt else f"{EACH} ({_HINT})")
    alone = len(paths) - len(sure) - len(likely)
    if alone:
        cases = f"case{'s' * (alone != 1)}"
        parts.append(
            f"for the other {alone} {cases}, each a patient of its own{' ' + doubt if doubt else ''}"
        )
    return NamedPatients({**sure, **likely}, "; ".join(parts))


def _count(found: Mapping[str, str]) -> str:
    patients = len(set(found.values()))
    return f" ({len(found)} cases of {patients} patient{'s' * (patients != 1)})"


def _example(found: Mapping[str, str]) -> str:
    case = next((c for c, patient in found.items() if c != patient), None)
    return f": {case!r} is patient {found[case]!r}" if case else ""


# ---------------------------------------------------------------- certain


def _sure(case: str, path: str) -> str | None:
    """The patient in the name, else in the innermost folder that has one, with the hospital where numbers begin anew."""
    for part in [case, *reversed(path.split("/"))]:
        for pattern in _SURE:
            if match := pattern.search(part):
                before = path[: path.rindex(part)] + part[: match.start()]
                return "_".join([*_IN_PLACE.findall(before), match.group(1)])
    return None


def _spelled_once(found: Mapping[str, str]) -> dict[str, str]:
    """The same patients with one spelling each: Patient_01 and patient01 are one."""
    first: dict[str, str] = {}
    return {case: first.setdefault(re.sub(_GAP, "", text.lower()), text) for case, text in found.items()}


# ---------------------------------------------------------------- likely


def _up_to(case: str) -> str | None:
    """The name without the words at its end that say "again"; None where no such word is there, or nobody is left."""
    left = "" if _UID.match(case) else case
    while (match := _END.match(left)) and not _NOBODY.match(match.group(1)):
        left = match.group(1)
    return left if left not in ("", case) else None


def _after(cases: list[str]) -> dict[str, str]:
    """left_001 and right_001: the name without such words at its start, where several cases share it."""
    found = {case: match.group(1) for case in cases if (match := _START.match(case))}
    shared = Counter(found.values())
    return {case: patient for case, patient in found.items() if shared[patient] > 1}


def _doubt(likely: Mapping[str, str]) -> str:
    """Why these cases are rather patients of their own, "" where they are not.

    That is so where the common part is a hospital, or where whole scans are many in few groups, or are numbered through
    across the groups: then the number is the patient's.
    """
    if not likely:
        return ""
    groups = Counter(likely.values())
    if len(groups) == len(likely):
        return ""
    scans = [case for case in likely if _FILE_NUMBER.search(case)]
    ends = [re.findall(r"\d+", case)[-1] for case in scans]
    crowded = len(likely) > _MANY_SCANS * len(groups)
    numbered = len(groups) > 1 and len(likely) >= 4 * len(groups) and len(set(ends)) == len(ends)
    places = all(_NO_PATIENT.match(patient) for patient in groups)
    if not places and not (len(scans) == len(likely) and (crowded or numbered)):
        return ""
    case, patient = next(iter(likely.items()))
    are = "patient" if len(groups) == 1 else "patients"
    return (
        f"(by their names {len(likely)} would be {len(groups)} {are}, {case!r} of {patient!r}, which looks like a place "
        f"or a series and not like a patient; if it is one, give --group '{pattern_of(patient)}')"
    )


def pattern_of(patient: str) -> str:
    """The --group pattern that finds such patients: `(p\\d+)` for p3."""
    return "(" + re.sub(r"\d+", lambda _: r"\d+", re.escape(patient).replace(r"\ ", " ")) + ")"


# ---------------------------------------------------------------- for `check`


def alike(case: str) -> str | None:
    """What a case shares with others of perhaps the same patient: p3 of p3_a and p3b; None where nothing hints at it."""
    match = _ALIKE.match(case)
    if match is None or _NO_PATIENT.match(match.group(1)) or _NOBODY.match(match.group(1)):
        return None
    return match.group(1).rstrip("_.- (")
