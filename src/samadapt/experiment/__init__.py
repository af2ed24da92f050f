"""The few-label study: a grid of learners x labels x seeds, scored on the same patients."""

from samadapt.experiment.cells import Study, run_cell
from samadapt.experiment.executors import Executor, prepared, record_death
from samadapt.experiment.from_file import (
    encoder_note,
    make_study,
    preset_names,
    quick_settings,
    read_settings,
)
from samadapt.experiment.grid import Cell, Grid, encoder_of
from samadapt.experiment.methods import Method, TrainedMethod
from samadapt.experiment.registry import BaselineOptions, build_methods, known_methods
from samadapt.experiment.study import Outcome, run_experiment, run_part
