"""Metrics: overlap and distances in mm, classification, summaries with intervals over patients. No torch in here."""

from samadapt.metrics.classification import (
    ALL,
    LabelledProbabilities,
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
from samadapt.metrics.study_files import (
    STUDY_FORMAT,
    check_cell_scores,
    find_study,
    read_cell_scores,
    write_cell_scores,
)
from samadapt.metrics.summaries import (
    MEAN,
    Summary,
    clip_interval,
    format_table,
    mean_contributions,
    mean_dice,
    score_matrix,
    summarise,
)
from samadapt.metrics.table import METRICS, NSD_TOLERANCE, Metric, metric_info, read_scores, write_scores
