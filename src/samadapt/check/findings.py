"""What `check` says: one finding, and all of them as text or JSON."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from samadapt.datasets import Dataset

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

_NAMED = 3  # cases of one finding that the table names
_OF_ONE_KIND = 8  # findings of one kind that the table shows
_NARROWEST = 40


@dataclass(frozen=True)
class Finding:
    """One finding. Errors make a training fail or its scores wrong; warnings and notes are for the reader to judge."""

    severity: Severity
    kind: str
    found: str  # what was found
    advice: str = ""  # what to do
    cases: tuple[str, ...] = ()  # () where it is about the data set
    slice_index: int | None = None  # where it is best seen

    @property
    def named(self) -> str:
        """The first cases by name, the others by number."""
        more = len(self.cases) - _NAMED
        return ", ".join(self.cases[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """The most severe first; of one severity, those of a kind together."""
    found = list(findings)
    kinds = list(dict.fromkeys(f.kind for f in found))
    return sorted(found, key=lambda f: (SEVERITIES.index(f.severity), kinds.index(f.kind)))


def counts(findings: Sequence[Finding], cases: int) -> str:
    """ "100 cases read: 0 errors, 2 warnings, 3 notes"."""
    number = Counter(f.severity for f in findings)
    total = ", ".join(f"{number[s]} {s}{'s' * (number[s] != 1)}" for s in SEVERITIES)
    return f"{cases} cases read: {total}"


def summary(findings: Sequence[Finding], cases: int, width: int = 120) -> str:
    """The findings as a table, with the counts in the last line.

    Args:
        width: of the terminal, in characters.
    """
    shown, left = _first_of_each_kind(findings)
    columns = [("severity", "kind", "cases"), *((f.severity, f.kind, f.named) for f in shown)]
    widths = [min(max(len(row[i]) for row in columns), (8, 20, 30)[i]) for i in range(3)]
    lines = _row(columns[0], "what was found, and what to do", widths, width) if shown else []
    for finding, row in zip(shown, columns[1:], strict=True):
        lines += _row(row, finding.found, widths, width)
        if finding.advice:
            lines += _row(("", "", ""), f"-> {finding.advice}", widths, width)
        if finding in left:
            more = f"... and {left[finding]} more of this kind; --json and --html list them all"
            lines += _row(("", "", ""), more, widths, width)
    return "\n".join([*lines, counts(findings, cases)])


def _first_of_each_kind(findings: Sequence[Finding]) -> tuple[list[Finding], dict[Finding, int]]:
    """The findings that are shown, and after which of them how many are not."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        groups.setdefault((finding.severity, finding.kind), []).append(finding)
    shown = [f for group in groups.values() for f in group[:_OF_ONE_KIND]]
    left = {g[_OF_ONE_KIND - 1]: len(g) - _OF_ONE_KIND for g in groups.values() if len(g) > _OF_ONE_KIND}
    return shown, left


def _row(fields: Sequence[str], text: str, widths: Sequence[int], width: int) -> list[str]:
    """One row of the table, as many lines as its longest field takes."""
    rest = max(_NARROWEST, width - sum(widths) - 2 * len(widths))
    cells = [textwrap.wrap(f, w) or [""] for f, w in zip((*fields, text), (*widths, rest), strict=True)]
    height = max(map(len, cells))
    padded = [cell + [""] * (height - len(cell)) for cell in cells]
    return [
        "  ".join(part.ljust(w) for part, w in zip(line, (*widths, 0), strict=True)).rstrip()
        for line in zip(*padded, strict=True)
    ]


def to_json(findings: Sequence[Finding], data: Dataset) -> dict[str, Any]:
    """JSON-able: the data set, and each finding with the files of its cases."""
    return {
        "data": str(data.root),
        "layout": data.layout,
        "task": data.task,
        "cases": len(data),
        "findings": [
            {
                "severity": f.severity,
                "kind": f.kind,
                "cases": list(f.cases),
                "found": f.found,
                "advice": f.advice,
                "files": [str(path) for case in f.cases for path in files_of(data, case)],
            }
            for f in findings
        ],
    }


def files_of(data: Dataset, case: str) -> list[Any]:
    """The image files and label files of a case."""
    entry = data.entry(case)
    return [*entry.images, *entry.labels]
