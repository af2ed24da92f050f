"""What is exported: a run, its model, and what was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from samadapt.postprocessing import Postprocessing
from samadapt.prediction import Classifier, Segmenter
from samadapt.settings import ExportOptions


@dataclass(frozen=True)
class Job:
    """One export."""

    run: Path
    predictor: Segmenter | Classifier
    postprocessing: Postprocessing  # what becomes of its answers
    options: ExportOptions
