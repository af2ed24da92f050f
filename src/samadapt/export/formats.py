"""The table of export formats: what each writes into a folder, and how the folder is asked again."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from samadapt.export import bundle, graph, hub, onnx_files, runner
from samadapt.export.comparing import Answer
from samadapt.export.description import note_check, write_about
from samadapt.export.job import Job
from samadapt.export.program import RUNNER, runner_text, write_program
from samadapt.files import write_text
from samadapt.postprocessing import read_postprocessing
from samadapt.prediction import Segmenter, load_run
from samadapt.types import Case


@dataclass(frozen=True)
class ExportFormat:
    """A line of `EXPORTS`."""

    text: str  # for people
    check: Callable[[Job], None]  # refuses before anything is computed
    write: Callable[[Job, Path], None]  # into an empty folder
    answer: Callable[[Path], Answer]  # the folder as its users run it
    #: Lays down the comparison, after which the folder is not changed.
    note: Callable[[Job, Path, dict[str, Any]], None]
    next: Callable[[Path], str]  # what to do with the folder
    push: Callable[[Path, str], str] | None = None  # uploads the folder, to a place that is called so


def _check_onnx(job: Job) -> None:
    onnx_files.demand_packages()
    graph.demand_exportable(job.predictor.model)
    if job.options.parts:
        graph.demand_parts(job.predictor.model)


def _check_graph(job: Job) -> None:
    graph.demand_exportable(job.predictor.model)


def _write_onnx(job: Job, folder: Path) -> None:
    write_beside(job, folder, onnx_files.write_onnx(job.predictor.model, folder, job.options.parts))


def _write_torch(job: Job, folder: Path) -> None:
    write_beside(job, folder, [write_program(job.predictor.model, folder / "model.pt2")])


def write_beside(job: Job, folder: Path, network: list[str]) -> None:
    """runner.py and model.json, which has the hash of every other file."""
    write_text(folder / RUNNER, runner_text())
    write_about(job, folder, network)


def run_runner(folder: Path, script: Path | None = None) -> Answer:
    """The runner of an exported folder (or this one), on files as far as it reads them."""
    model = load_module(script or folder / RUNNER).Model(folder)

    def answer(case: Case, paths: tuple[Path, ...]) -> np.ndarray:
        if paths and all(runner.suffix_of(path) for path in paths):
            return model.predict(paths)
        return model.predict_image(case.image.numpy())

    return answer


def load_module(path: Path) -> ModuleType:
    """A Python file outside of any package, run under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"exported_{abs(hash(path))}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # nothing is left beside the file
    sys.modules[spec.name] = module  # dataclasses look there for the module of their fields
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
        del sys.modules[spec.name]
    return module


def _next_runner(folder: Path) -> str:
    return f"python {folder / RUNNER} SCAN --out predictions"


def load_again(folder: Path) -> Answer:
    """The folder as samadapt itself loads it."""
    predictor = load_run(folder, "cpu")
    if isinstance(predictor, Segmenter):
        predictor = replace(predictor, postprocessing=read_postprocessing(folder, predictor.classes))
    return lambda case, _: predictor.predict(case)


def _run_bundle(folder: Path) -> Answer:
    return run_runner(folder / bundle.MODELS, folder / bundle.SCRIPTS / RUNNER)


EXPORTS: dict[str, ExportFormat] = {
    "hub": ExportFormat(
        "a folder for the Hugging Face hub, with a model card, that samadapt.load_run reads",
        hub.demand_name,
        hub.write_hub,
        load_again,
        hub.write_card,
        lambda folder: f"samadapt predict {folder} SCANS --out predictions",
        hub.push,
    ),
    "monai": ExportFormat(
        "a bundle that MONAI runs",
        _check_graph,
        bundle.write_bundle,
        _run_bundle,
        bundle.note_bundle,
        bundle.how_to_run,
    ),
    "onnx": ExportFormat(
        "ONNX with a runner that needs only numpy, onnxruntime and nibabel or Pillow",
        _check_onnx,
        _write_onnx,
        run_runner,
        note_check,
        _next_runner,
    ),
    "torch": ExportFormat(
        "a program of torch.export with the same runner",
        _check_graph,
        _write_torch,
        run_runner,
        note_check,
        _next_runner,
    ),
}
