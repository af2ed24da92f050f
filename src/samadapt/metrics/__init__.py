"""Metrics: overlap and distances in mm, classification, summaries with intervals over patients."""

from samadapt.metrics.classification import (
    ALL,
    bootstrap_classification,
    classification_metrics,
    score_predictions,
)
from samadapt.metrics.segmentation import (
    MaskPair,
    assd,
    dsc,
    hd95,
    nsd,
    score_case,
    volume_difference,
)
from samadapt.metrics.summaries import MEAN, Comparison, Summary, compare, format_table, summarise
from samadapt.metrics.table import METRICS, NSD_TOLERANCE, Metric, metric_info, read_scores, write_scores
from samadapt.statistics import holm

__all__ = [
    "ALL",
    "MEAN",
    "METRICS",
    "NSD_TOLERANCE",
    "Comparison",
    "MaskPair",
    "Metric",
    "Summary",
    "assd",
    "bootstrap_classification",
    "classification_metrics",
    "compare",
    "dsc",
    "format_table",
    "hd95",
    "holm",
    "metric_info",
    "nsd",
    "read_scores",
    "score_case",
    "score_predictions",
    "summarise",
    "volume_difference",
    "write_scores",
]
