"""What is measured: every metric's unit, range and meaning; and scores on disk."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from samadapt.files import write_csv
from samadapt.records import SamAdaptError, Score

#: How far a surface may lie from the other and still count as right: mm, or pixels where there are no mm.
NSD_TOLERANCE = 2.0


@dataclass(frozen=True)
class Metric:
    """One metric, as `samadapt list metrics`, the tables and the report name it."""

    title: str  # short, for headings; with its unit
    text: str
    low: float = 0.0
    high: float = math.inf
    digits: int = 3
    task: str = "segmentation"


_NSD = f"normalised surface Dice, share of both surfaces within {NSD_TOLERANCE:g} {{}} of the other"
_HD95 = "95th percentile Hausdorff distance, the larger of the two directions"
_ASSD = "average distance between the surfaces, both directions pooled"
_VOLUME = "predicted minus true volume"
_AUC = "area under the ROC curve; over classes the unweighted mean of one-vs-rest"
_ECE = "expected calibration error of the answer's probability, 15 bins"
_CLASSES = "classification"
_BRIER = "squared error of the probabilities (multi-class: summed over classes)"

#: Distances need a spacing. Pictures without one get the `_px` names, so the two are never averaged.
METRICS: dict[str, Metric] = {
    "dsc": Metric("Dice", "Dice similarity coefficient", high=1.0),
    "nsd": Metric(f"Normalised surface Dice ({NSD_TOLERANCE:g} mm)", _NSD.format("mm"), high=1.0),
    "hd95_mm": Metric("Hausdorff distance, 95th percentile (mm)", _HD95, digits=2),
    "assd_mm": Metric("Average surface distance (mm)", _ASSD, digits=2),
    "volume_difference_ml": Metric("Predicted minus true volume (ml)", _VOLUME, low=-math.inf, digits=2),
    "nsd_px": Metric(f"Normalised surface Dice ({NSD_TOLERANCE:g} px)", _NSD.format("px"), high=1.0),
    "hd95_px": Metric("Hausdorff distance, 95th percentile (px)", _HD95, digits=2),
    "assd_px": Metric("Average surface distance (px)", _ASSD, digits=2),
    "volume_difference_px": Metric("Predicted minus true volume (px)", _VOLUME, low=-math.inf, digits=0),
    "auc": Metric("AUC", _AUC, high=1.0, task=_CLASSES),
    "acc": Metric(
        "Accuracy",
        "accuracy: highest probability, or above 0.5 (binary, multi-label)",
        high=1.0,
        task=_CLASSES,
    ),
    "balanced_accuracy": Metric(
        "Balanced accuracy", "mean sensitivity of the classes", high=1.0, task=_CLASSES
    ),
    "f1": Metric("F1 score", "F1 score; over classes the unweighted mean", high=1.0, task=_CLASSES),
    "auprc": Metric(
        "Average precision", "average precision; over classes the unweighted mean", high=1.0, task=_CLASSES
    ),
    "ece": Metric("Calibration error", _ECE, high=1.0, task=_CLASSES),
    "brier": Metric("Brier score", _BRIER, high=2.0, task=_CLASSES),
    "sensitivity": Metric("Sensitivity", "share of the class that was found", high=1.0, task=_CLASSES),
    "specificity": Metric("Specificity", "share of the rest that was left alone", high=1.0, task=_CLASSES),
}

_COLUMNS = ["case", "target", "metric", "value"]


def metric_info(name: str) -> Metric:
    """The entry of `METRICS`; a name that is not in it is its own title and has no limits."""
    return METRICS.get(name, Metric(name, name, low=-math.inf))


def write_scores(path: str | Path, scores: Iterable[Score]) -> None:
    """A tidy CSV, one score a line, under a temporary name and then renamed. Undefined is `nan`."""
    path = Path(path)
    write_csv(path, _COLUMNS, [(x.case, x.target, x.metric, repr(float(x.value))) for x in scores])


def read_scores(path: str | Path) -> list[Score]:
    """The inverse of `write_scores`, to the last digit. A truncated or broken file is an error."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise SamAdaptError(
            f"{path} is not a scores file ({error}); give the --out of `samadapt evaluate`"
        ) from None
    rows = list(csv.reader(text.splitlines()))
    if not rows or rows[0] != _COLUMNS:
        found = ",".join(rows[0])[:80] if rows else "nothing"
        raise SamAdaptError(f"{path} begins with {found!r}; a scores file begins with {','.join(_COLUMNS)!r}")
    if not text.endswith("\n"):
        raise SamAdaptError(f"{path} ends in the middle of line {len(rows)}: it is truncated; evaluate again")
    return _unique([_parse(path, number, row) for number, row in enumerate(rows[1:], start=2)], str(path))


def _parse(path: Path, line: int, row: Sequence[str]) -> Score:
    try:
        case, target, metric, value = row
        return Score(case, target, metric, float(value))
    except ValueError:
        raise SamAdaptError(
            f"{path} line {line} is {','.join(row)!r}; expected case,target,metric,number; evaluate again"
        ) from None


def _unique(scores: list[Score], where: str) -> list[Score]:
    """The scores, once it is certain that no case was scored twice."""
    seen: set[tuple[str, str, str]] = set()
    for score in scores:
        key = (score.case, score.target, score.metric)
        if key in seen:
            raise SamAdaptError(f"{where} has {' '.join(key)} twice; each case is scored once: remove one")
        seen.add(key)
    return scores
