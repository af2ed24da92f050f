"""The few-label study: a grid of learners x labels x seeds, scored on the same patients."""

from samadapt.experiment.catalogue import BaselineOptions, build_entrants, known_entrants
from samadapt.experiment.entrants import Entrant, Trained
from samadapt.experiment.grid import Grid, encoder_of
from samadapt.experiment.results import results_table
from samadapt.experiment.settings import encoder_note, make_study, preset_names, read_settings
from samadapt.experiment.study import Outcome, run_experiment

__all__ = [
    "BaselineOptions",
    "Entrant",
    "Grid",
    "Outcome",
    "Trained",
    "build_entrants",
    "encoder_note",
    "encoder_of",
    "known_entrants",
    "make_study",
    "preset_names",
    "read_settings",
    "results_table",
    "run_experiment",
]
