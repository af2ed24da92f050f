"""Every case is read once; what is kept of it is small, and is compared when all have been read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from samadapt.check.duplicates import duplicates
from samadapt.check.findings import Finding, in_order
from samadapt.check.labels import misplaced_labels
from samadapt.check.measures import Measures, measure
from samadapt.check.outliers import outliers
from samadapt.check.robust import FEWEST_CASES
from samadapt.check.single import check_case
from samadapt.check.whole import Seen, check_whole
from samadapt.datasets import Dataset
from samadapt.types import SamAdaptError


def check(
    data: Dataset, progress: Callable[[int], None] | None = None, encoder: str | None = None
) -> list[Finding]:
    """All findings, the most severe first. A data set without errors and warnings is sound.

    Args:
        progress: called with the number of cases read so far.
        encoder: its name; whether its training data include this data set is checked too.
    """
    findings: list[Finding] = []
    kept: list[Measures] = []
    seen = Seen()
    classes = len(data.classes) if data.task == "segmentation" else 0
    for number, case_id in enumerate(data.ids, start=1):
        try:
            case = data.case(case_id)
        except SamAdaptError as error:
            findings.append(Finding("error", "cannot be used", str(error), cases=(case_id,)))
            seen.unread.append(case_id)
        else:
            kept.append(measure(case, classes))
            findings += check_case(case, kept[-1])
            seen.add(case, data)
        if progress:
            progress(number)
    findings += duplicates(kept, data)
    findings += _comparisons(kept, data)
    findings += check_whole(data, seen, encoder)
    return in_order(findings)


def _comparisons(kept: Sequence[Measures], data: Dataset) -> Iterator[Finding]:
    if len(kept) < FEWEST_CASES:
        yield Finding(
            "note", "comparison",
            f"{len(kept)} cases are too few to call one of them unusual (at least {FEWEST_CASES} are needed): intensities, "
            "spacing, volumes and the fit of the labels were not compared",
        )  # fmt: skip
        return
    if data.task == "segmentation":
        yield from misplaced_labels(kept, data.classes)
    yield from outliers(kept, data.classes if data.task == "segmentation" else ())
