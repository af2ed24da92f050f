"""The table of export formats: what each writes into a folder, and how the folder is asked again."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from samadapt.export import graph, onnx_files, runner
from samadapt.export.comparing import Answer
from samadapt.export.description import NAME, describe_export, with_hashes
from samadapt.files import replacing, write_json, write_text
from samadapt.prediction import Classifier, Segmenter
from samadapt.runs import read_json
from samadapt.settings import ExportOptions
from samadapt.types import Case

RUNNER = "runner.py"


@dataclass(frozen=True)
class Job:
    """What is exported."""

    run: Path
    predictor: Segmenter | Classifier
    keep_largest: tuple[str, ...]
    options: ExportOptions


@dataclass(frozen=True)
class ExportFormat:
    """A line of `EXPORTS`."""

    text: str  # for people
    check: Callable[[Job], None]  # refuses before anything is computed
    write: Callable[[Job, Path], None]  # into an empty folder
    answer: Callable[[Path], Answer]  # the folder as its users run it
    #: Lays down the comparison, after which the folder is not changed.
    note: Callable[[Path, dict[str, Any]], None]
    next: Callable[[Path], str]  # what to do with the folder


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
    write_beside(job, folder, [write_program(job, folder / "model.pt2")])


def write_program(job: Job, path: Path) -> str:
    """The network as torch.export saves it; the name of the file."""
    program = graph.whole(job.predictor.model)
    with replacing(path) as temporary:
        torch.export.save(program, temporary)
    return path.name


def write_beside(job: Job, folder: Path, network: list[str]) -> None:
    """runner.py and model.json, which has the hash of every other file."""
    write_text(folder / RUNNER, Path(runner.__file__).read_text(encoding="utf-8"))
    about = describe_export(job.predictor, job.run, job.keep_largest, network)
    write_json(folder / NAME, with_hashes(about, folder))


def run_runner(folder: Path) -> Answer:
    """The runner of an exported folder, on files as far as it reads them."""
    model = load_module(folder / RUNNER).Model(folder)

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


def _note_check(folder: Path, comparison: dict[str, Any]) -> None:
    about = read_json(folder / NAME)
    write_json(folder / NAME, {**about, "check": comparison}, finished=True)


def _next_runner(folder: Path) -> str:
    return f"python {folder / RUNNER} SCAN --out predictions"


EXPORTS: dict[str, ExportFormat] = {
    "onnx": ExportFormat(
        "ONNX with a runner that needs only numpy, onnxruntime and nibabel or Pillow",
        _check_onnx,
        _write_onnx,
        run_runner,
        _note_check,
        _next_runner,
    ),
    "torch": ExportFormat(
        "a program of torch.export with the same runner",
        _check_graph,
        _write_torch,
        run_runner,
        _note_check,
        _next_runner,
    ),
}
