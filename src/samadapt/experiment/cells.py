"""One cell of the grid: learn, answer for the scored cases, score, and say what it cost."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import shutil
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from samadapt.datasets import Dataset
from samadapt.experiment.grid import Cell
from samadapt.experiment.methods import Fitted, Job
from samadapt.experiment.previews import PreviewWriter, keep_saliency
from samadapt.features import FeatureStore
from samadapt.files import write_json
from samadapt.metrics import check_cell_scores, score_case, score_predictions, write_cell_scores
from samadapt.scoring import score_labels, truth_of
from samadapt.transforms import seeded
from samadapt.types import Case, SamAdaptError, Score

T = TypeVar("T")


@dataclass(frozen=True)
class Study:
    """What all cells share."""

    data: Dataset
    out: Path
    store: FeatureStore
    threads: int = 1


def run_cell(study: Study, cell: Cell) -> str:
    """Run it, or find it done. Returns "done", or the message of what went wrong, which is recorded too."""
    out = study.out / cell.digest
    if (out / "scores.csv").is_file():
        check_cell_scores(out)
        return "done"
    _make_room(out)
    # Nothing that happens in a cell depends on what ran before it in this process.
    torch.manual_seed(seeded("cell", cell.digest).initial_seed())
    try:
        with _threads(study.threads):
            _run(study, cell, out)
    except Exception as error:
        message = str(error) if isinstance(error, SamAdaptError) else f"{type(error).__name__}: {error}"
        message = study.data.without_paths(message)
        out.mkdir(parents=True, exist_ok=True)
        trace = study.data.without_paths(traceback.format_exc())
        write_json(out / "failed.json", {"message": message, "traceback": trace})
        return message
    finally:
        gc.collect()  # a trainer and its maps hold each other; the next cell's memory is measured without them
    return "done"


def prepare_cell(study: Study, cell: Cell) -> str | None:
    """Make what a cell shares with others of its method and seed. Returns what was done, in words."""
    job = Job(study.data, cell.split, cell.config, study.out / cell.digest, study.store)
    with _threads(study.threads):
        return cell.method.prepare(job)


def _make_room(out: Path) -> None:
    """An unfinished run is resumed; anything less begins anew."""
    (out / "failed.json").unlink(missing_ok=True)
    if out.is_dir() and not (out / "config.json").is_file():
        shutil.rmtree(out)


def _run(study: Study, cell: Cell, out: Path) -> None:
    data = study.data
    with _metered() as training:
        fitted = cell.method.fit(Job(data, cell.split, cell.config, out, study.store))
    out.mkdir(parents=True, exist_ok=True)
    cases = (data.case(case_id) for case_id in cell.split.val)
    timed = _Timed(fitted)
    with _metered() as prediction:
        if data.task == "segmentation":
            keeper = PreviewWriter(study.out / "cases", data.window)
            scores = _score_segmentation(cell, timed, cases, data, keeper)
            keeper.write(out / "slices.npz")
        else:
            answers = _class_answers(timed, cases)
            scores = score_predictions(*answers, data.classes)
    if data.task == "classification" and fitted.saliency is not None:
        keep_saliency(out / "attention.npz", fitted.saliency, data.case, answers)
    cost = {
        "learner": cell.learner,
        "labels": cell.labels,
        "seed": cell.seed,
        "role": cell.method.role,
        "parameters": fitted.parameters,
        "training": training,
        "prediction": prediction | timed.spent,  # without loading and scoring
        "threads": study.threads,
        **fitted.notes,
    }
    (out / "last.ckpt").unlink(missing_ok=True)  # the finished weights are head.safetensors
    write_cell_scores(out, scores, cost)


# ---------------------------------------------------------------- scores


def _score_segmentation(
    cell: Cell, timed: _Timed, cases: Iterable[Case], data: Dataset, keeper: PreviewWriter
) -> list[Score]:
    answers = _kept(timed, cases, keeper)
    return (_score_stacked if cell.stacked else score_labels)(answers, data.classes)


def _kept(timed: _Timed, cases: Iterable[Case], keeper: PreviewWriter) -> Iterator[tuple[Case, np.ndarray]]:
    for case, label in timed.answers(cases):
        truth_of(case, label)  # refuses another shape before anything is kept of it
        keeper.keep(case, label)
        yield case, label


def _score_stacked(answers: Iterable[tuple[Case, np.ndarray]], classes: Sequence[str]) -> list[Score]:
    """Dice with all scans of a patient as one volume. Distances across scans would mean nothing."""
    patients: dict[str, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
    for case, label in answers:
        patients[case.group].append((label.ravel(), truth_of(case, label).ravel()))
    scores: list[Score] = []
    for patient, parts in patients.items():
        label, truth = (np.concatenate(side)[None, None] for side in zip(*parts, strict=True))
        every = score_case(patient, label, truth, None, classes)
        scores += [score for score in every if score.metric == "dsc"]
    return scores


def _class_answers(timed: _Timed, cases: Iterable[Case]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names, probabilities (N, K), and the truth (N,) or (N, K)."""
    ids, probabilities, truth = [], [], []
    for case, answer in timed.answers(cases):
        assert case.label is not None
        ids.append(case.id)
        probabilities.append(answer)
        truth.append(case.label.numpy())
    if not np.isfinite(probabilities).all():
        raise SamAdaptError("the method predicts probabilities that are not finite numbers; lower --lr")
    return ids, np.stack(probabilities), np.stack(truth)


# ---------------------------------------------------------------- cost


class _Timed:
    """A method's answers, and the time that they took."""

    def __init__(self, fitted: Fitted) -> None:
        self.fitted, self.wall, self.cpu, self.count = fitted, 0.0, 0.0, 0

    def answers(self, cases: Iterable[Case]) -> Iterator[tuple[Case, np.ndarray]]:
        """Each case with its answer; what it takes to get the cases does not count."""
        for answer in self._each(self.fitted.answers(self._each(cases, -1)), 1):
            self.count += 1
            yield answer

    def _each(self, items: Iterable[T], sign: int) -> Iterator[T]:
        """The same items; the time that each took is added, or taken off."""
        left = iter(items)
        while True:
            wall, cpu = time.monotonic(), sum(os.times()[:4])
            item = next(left, None)
            self.wall += sign * (time.monotonic() - wall)
            self.cpu += sign * (sum(os.times()[:4]) - cpu)
            if item is None:
                return
            yield item

    @property
    def spent(self) -> dict[str, float]:
        return {"wall_s": round(self.wall, 3), "cpu_s": round(self.cpu, 3), "cases": self.count}


@contextmanager
def _metered() -> Iterator[dict[str, float]]:
    """Wall time, CPU time of this process and its children, and the largest memory while the block ran."""
    spent: dict[str, float] = {}
    _reset_peak()
    wall, cpu = time.monotonic(), sum(os.times()[:4])
    yield spent
    spent["wall_s"] = round(time.monotonic() - wall, 3)
    spent["cpu_s"] = round(sum(os.times()[:4]) - cpu, 3)
    spent["peak_rss_mib"] = round(_peak_bytes() / 2**20, 1)
    if torch.cuda.is_available():
        spent["peak_gpu_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError):  # elsewhere than on Linux the peak is that of the process so far
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins again at what is used now


def _peak_bytes() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
