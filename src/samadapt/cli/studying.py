"""What `samadapt experiment` was asked for, as a study. torch is loaded with this module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samadapt import experiment as studies
from samadapt.cli.results import Result, command
from samadapt.cli.terminal import data_summary, say
from samadapt.datasets import Dataset
from samadapt.experiment import Grid, Outcome
from samadapt.report import results_rows, results_table
from samadapt.settings import TrainConfig
from samadapt.types import SamAdaptError


def demand_one_source(study: Mapping[str, Any], grid: str | None) -> None:
    """Refuse two studies in one command."""
    if study.get("quick") and grid:
        raise SamAdaptError(
            f"--quick is a study of its own, and --grid {grid} holds another one; leave out one of them"
        )


def choose_study(
    grid: str | None,
    study: dict[str, Any],
    methods: Sequence[str],
    typed: Mapping[str, dict[str, Any]],
    opened: Dataset,
    out: Path,
    quiet: bool,
) -> tuple[Grid, TrainConfig]:
    """The study of a file or a preset, with what was typed in place of what stands there; what was chosen is said.

    Args:
        study: typed settings of the study.
        typed: those of its tables.
        methods: those that were typed.
    """
    settings = studies.read_settings(grid) if grid else {}
    if study.get("quick"):
        settings = studies.quick_settings(opened.task, None if "labels" in study else opened)
    say(data_summary(opened), quiet)
    settings |= study | ({"learners": list(methods)} if methods else {})
    settings |= {table: settings.get(table, {}) | given for table, given in typed.items()}
    unnamed = not settings["encoder"].get("encoder")
    if unnamed and (begun := studies.encoder_of(out)):
        settings["encoder"]["encoder"] = begun
    chosen, config = studies.make_study(settings, opened.task, opened)
    if unnamed:
        say(studies.encoder_note(settings, chosen), quiet)
    return chosen, config


def cell_lines(outcome: Outcome) -> Result:
    """The list of the cells."""
    lines = [f"{each['digest']}  {each['state']:<7}  {each['cell']}" for each in outcome.cells]
    return Result(vars(outcome), "\n".join(lines))


def study_result(outcome: Outcome) -> Result:
    """The table of what was scored so far, by this command and others."""
    any_scores = bool(outcome.found or outcome.done)
    return Result(
        {**vars(outcome), "results": results_rows(outcome.out) if any_scores else []},
        results_table(outcome.out) if any_scores else "",
        command("report", outcome.out) if any_scores else "",
        bool(outcome.failed),
    )
