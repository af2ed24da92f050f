"""From a run folder to an exported one."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from samadapt.export.comparing import (
    MOST_PROBABILITY,
    MOST_VOXELS,
    Comparison,
    cases_of,
    compare,
    phantom_case,
)
from samadapt.export.formats import EXPORTS, ExportFormat
from samadapt.export.job import Job
from samadapt.files import demand_writable, replacing
from samadapt.postprocessing import Postprocessing, read_postprocessing
from samadapt.prediction import Classifier, Segmenter, load_run
from samadapt.runs import find_run
from samadapt.settings import ExportOptions
from samadapt.types import SamAdaptError

Progress = Callable[[str], None]
#: A folder with one of these is an export, which --overwrite may delete.
_MARKS = ("model.json", "model.safetensors", "configs/metadata.json")


@dataclass(frozen=True)
class ExportReport:
    """What was exported, and how it compares."""

    out: Path
    format: str
    files: tuple[str, ...]
    comparison: Comparison
    next: str
    pushed: str = ""  # OWNER/NAME@REVISION


def export_run(
    run: str | Path,
    out: str | Path,
    *,
    checkpoint: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> ExportReport:
    """Export a finished run, and compare the export with it on whole cases.

    The comparison runs on the processor, where both are deterministic. The folder appears when the comparison holds.

    Args:
        checkpoint: where the encoder's weights are, as for `load_run`.
        progress: given the name of each compared case.
        options: fields of `ExportOptions`.

    Raises:
        SamAdaptError: the model cannot be exported in this format, or the export answers otherwise than the run. Nothing
            is left behind.
    """
    run, out, chosen = find_run(run), Path(out), ExportOptions(**options)
    format = EXPORTS[chosen.format]
    _demand_place(out, overwrite)
    predictor = load_run(run, "cpu", checkpoint)
    done = (
        read_postprocessing(run, predictor.classes) if isinstance(predictor, Segmenter) else Postprocessing()
    )
    if isinstance(predictor, Segmenter):
        predictor = replace(predictor, postprocessing=done)
    if isinstance(predictor, Classifier) and predictor.calibration is not None:
        raise SamAdaptError(
            f"{run} was calibrated, and an export gives the probabilities of the head, not divided by the temperature "
            f"{predictor.calibration.temperature:.2f}; move its calibration.json away to export them as they are"
        )
    job = Job(run, predictor, done, chosen)
    format.check(job)
    with replacing(out) as temporary:
        temporary.mkdir(parents=True)
        format.write(job, temporary)
        comparison = _compared(job, format, temporary, progress)
        _demand_equal(comparison)
        format.note(job, temporary, comparison.to_json())
        if out.exists():  # empty, or an export that --overwrite replaces
            shutil.rmtree(out)
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    pushed = format.push(out, chosen.push) if chosen.push and format.push else ""
    return ExportReport(out, chosen.format, tuple(files), comparison, format.next(out), pushed)


def _demand_place(out: Path, overwrite: bool) -> None:
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise SamAdaptError(f"{out} is not empty; choose another --out or give --overwrite")
        if not any((out / mark).is_file() for mark in _MARKS) or (out / "head.safetensors").is_file():
            raise SamAdaptError(f"{out} is no exported model; --overwrite deletes exported models only")
    demand_writable(out, "--out")


def _compared(job: Job, format: ExportFormat, folder: Path, progress: Progress | None) -> Comparison:
    answer, opening = format.answer(folder), job.predictor.opening
    if job.options.check is not None:
        given = Path(job.options.check)
        return compare(job.predictor, answer, cases_of(given, job.run, opening), given.name, progress)
    with tempfile.TemporaryDirectory() as place:
        cases = [phantom_case(opening, Path(place))]
        return compare(
            job.predictor, answer, cases, "a generated phantom; --check SCANS compares yours", progress
        )


def _demand_equal(comparison: Comparison) -> None:
    if not comparison.holds:
        bound = (
            f"a share of {MOST_VOXELS:g} of the voxels"
            if comparison.segments
            else f"a difference of {MOST_PROBABILITY:g} in probabilities, and none of the class"
        )
        raise SamAdaptError(
            f"the exported model does not answer as the run: {comparison.text}; at most {bound} is accepted, so nothing was "
            "exported: report this with the run's config.json"
        )
