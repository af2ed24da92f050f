"""The grid of a study: learners x labels x seeds, and `experiment.json`, which holds a folder to one study.

experiments/<name>/experiment.json            # data hash, version, protocol, methods with their roles, scored cases, cells
experiments/<name>/cases/<case>.npz           # slices of the scored cases, for the report's pictures
experiments/<name>/<digest of the cell>/      # a run folder, cost.json, slices.npz, scores.csv (last)
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from samadapt.datasets import Dataset, Split
from samadapt.experiment.methods import Method, TrainedMethod
from samadapt.files import write_json
from samadapt.learner import Learner
from samadapt.metrics import STUDY_FORMAT, find_study
from samadapt.runs import environment
from samadapt.training import TrainConfig
from samadapt.types import SamAdaptError


@dataclass(frozen=True)
class Grid:
    """What is compared, and how."""

    learners: Mapping[str, Method | Learner]
    labels: tuple[int | float | None, ...]  # labelled patients, or a share of them; None: all
    seeds: tuple[int, ...] = (0, 1, 2)
    select: int = 0  # of the labelled patients, set aside to choose the best step
    fold: int = 0
    stacked: bool = False  # Dice of all scans of a patient as one, as AutoSAM's authors; not in mm
    encoder: str = ""  # that the learners read who name none of their own
    quick: bool = False  # a first look, and marked as one
    threads: int | None = None  # of a cell; changes the last digits, so a study keeps it. None: cores / jobs

    def __post_init__(self) -> None:
        for name in ("learners", "labels", "seeds"):
            values = list(getattr(self, name))
            if not values or len(set(values)) != len(values):
                raise SamAdaptError(f"{name} is {values}; expected at least one, each once")
        if self.threads is not None and self.threads < 1:
            raise SamAdaptError(f"threads is {self.threads}; expected at least 1")

    @property
    def methods(self) -> dict[str, Method]:
        return {n: TrainedMethod(x) if isinstance(x, Learner) else x for n, x in self.learners.items()}


@dataclass(frozen=True)
class Cell:
    """One learner, one number of labels, one seed."""

    learner: str
    method: Method
    labels: int | float | None  # 0 where the learner learns nothing
    seed: int
    split: Split
    config: TrainConfig
    stacked: bool = False
    digest: str = field(default="", compare=False)

    def __str__(self) -> str:
        if not self.method.learns:
            return self.learner
        return f"{self.learner}, {'all' if self.labels is None else self.labels} labelled, seed {self.seed}"


def make_cells(data: Dataset, grid: Grid, config: TrainConfig) -> list[Cell]:
    """Every cell, one draw at all numbers of labels before the next, so that a study cut short has whole curves.

    A grid that the data cannot fill (more labels than patients) is refused here, before anything runs.
    """
    cells: list[Cell] = []
    splits = {(n, s): data.split(n, s, grid.select, None, grid.fold) for s in grid.seeds for n in grid.labels}
    first = next(iter(splits.values()))
    if any(split.val != first.val for split in splits.values()):
        raise AssertionError("the scored cases differ between the splits of one fold")
    for number, ((labels, seed), split) in enumerate(splits.items()):
        for name, method in grid.methods.items():
            if not method.learns:
                if number == 0:
                    cells.append(_cell(data, grid, config, name, 0, 0, split))
                continue
            cells.append(_cell(data, grid, config, name, labels, seed, split))
    return cells


def _cell(
    data: Dataset, grid: Grid, config: TrainConfig, name: str, labels: int | float | None, seed: int, split: Split
) -> Cell:  # fmt: skip
    config = dataclasses.replace(config, seed=seed)
    return cell_of(data, (name, grid.methods[name]), labels, split, config, grid.stacked)


def cell_of(
    data: Dataset,
    method: tuple[str, Method],
    labels: int | float | None,
    split: Split,
    config: TrainConfig,
    stacked: bool = False,
) -> Cell:
    """The cell of a split; cells that learn the same from the same cases have one digest.

    Args:
        method: with its name in the study.
        labels: how many patients, as the split was asked for.
        config: with the cell's seed.
    """
    name, what = method
    identity = [
        STUDY_FORMAT, name, what.spec, labels, config.seed, _numbers(config), data.hash, split.hash, stacked,
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    return Cell(name, what, labels, config.seed, split, config, stacked, digest)


def _numbers(config: TrainConfig) -> dict[str, Any]:
    """The part of the configuration that changes the numbers, without the seed."""
    left_out = {*config.UNCHANGING, "seed", "devices"}  # a cell has one device
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in left_out}


# ---------------------------------------------------------------- experiment.json


def open_experiment(
    out: Path,
    data: Dataset,
    grid: Grid,
    config: TrainConfig,
    cells: list[Cell],
    jobs: int,
    shared: bool = False,
) -> int:
    """Begin a study in a folder, or find it there and add to it; returns the threads of a cell.

    More learners, labels and seeds may be added to a study. Another data set, version, or protocol, or
    another learner under a name that is there already, is refused: the table would mix them.

    Args:
        shared: whether several processes work on the study at once; one that has all these cells is then not written again.
    """
    note, before = _describe(data, grid, config), find_study(out)
    if before is None and out.is_dir() and any(out.iterdir()):
        raise SamAdaptError(f"{out} is not empty and not an experiment; choose another --out")
    threads = grid.threads or (before or {}).get("threads") or max(1, (os.cpu_count() or 1) // jobs)
    note["threads"] = threads
    if before is not None:
        _demand_same(out, before, note)
        if shared and {cell.digest for cell in cells} <= set(before.get("cells", {})):
            return threads
        note["learners"] = before["learners"] | note["learners"]
        note["encoders"] = before.get("encoders", {}) | note["encoders"]
        note["commands"] = [
            *before["commands"],
            *[c for c in note["commands"] if c not in before["commands"]],
        ]
    note["cells"] = (before or {}).get("cells", {}) | {
        cell.digest: {
            "learner": cell.learner, "labels": cell.labels, "seed": cell.seed,
            "patients": list(cell.split.patients) if cell.method.learns else [], "rule": cell.split.rule,
        }
        for cell in cells
    }  # fmt: skip
    note["scored"] = {case_id: data.groups[case_id] for case_id in cells[0].split.val}
    note["overlaps"] = (before or {}).get("overlaps", {}) | _overlaps(
        data, grid.methods, list(note["scored"])
    )
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "experiment.json", note)
    return threads


def _describe(data: Dataset, grid: Grid, config: TrainConfig) -> dict[str, Any]:
    return {
        "format": STUDY_FORMAT,
        "version": version("samadapt"),
        "data": {
            "name": data.name, "hash": data.hash, "task": data.task, "classes": list(data.classes),
            "multilabel": data.multilabel, "window": data.window, "group_rule": data.group_rule,
            "cases": len(data), "plane": dataclasses.asdict(data.opening.plane), "channels": data.channels,
        },
        "protocol": {
            "select": grid.select, "fold": grid.fold, "stacked": grid.stacked, **_numbers(config),
        },
        "learners": {
            name: {"spec": method.spec, "role": method.role, "learns": method.learns}
            for name, method in grid.methods.items()
        },
        "quick": grid.quick,
        "encoder": grid.encoder,
        "encoders": fingerprints(grid.methods),
        "environment": environment(),
        "commands": [sys.argv],
    }  # fmt: skip


def _overlaps(
    data: Dataset, methods: Mapping[str, Method], scored: list[str]
) -> dict[str, list[dict[str, Any]]]:
    """By method, what the training of its encoder has, or may have, seen of the scored cases."""
    starts = {name: method.starts_from for name, method in methods.items()}
    found = {
        name: [x.to_json() for x in learner.overlaps(data, scored) if x.warns]
        for name, learner in starts.items()
        if learner is not None
    }
    return {name: rows for name, rows in found.items() if rows}


def fingerprints(methods: Mapping[str, Method]) -> dict[str, str]:
    """The fingerprint of the weights that each method starts from, if any: a file may change under its name."""
    found = {}
    for name, method in methods.items():
        with contextlib.suppress(SamAdaptError):  # its cells will fail with it, each recorded
            if method.starts_from is not None and not method.seeded_encoder:
                found[name] = method.starts_from.spec().fingerprint
    return found


def encoder_of(out: Path) -> str | None:
    """The encoder that a study there was begun with; learners that are added to it read the same."""
    return (find_study(out) or {}).get("encoder") or None


def _demand_same(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    now = json.loads(json.dumps(now))
    pairs = [(key, before.get(key), now[key]) for key in ("format", "version")]
    # The rule for patients stands there in words, which may change; that it groups alike, the hash of the data tells.
    told = {key: value for key, value in now["data"].items() if key != "group_rule"}
    pairs += [(f"data {key}", before["data"].get(key), value) for key, value in told.items()]
    pairs += [(key, before["protocol"].get(key), value) for key, value in now["protocol"].items()]
    pairs += [("threads", before.get("threads"), now["threads"])]
    pairs += [("length (--quick)", before.get("quick", False), now["quick"])]
    shared = set(before["learners"]) & set(now["learners"])
    for name in sorted(shared):
        old, new = before["learners"][name], now["learners"][name]
        # A folder from before roles were written is given them.
        keys = ("spec", "learns", "role") if "role" in old else ("spec", "learns")
        pairs += [(f"{key} of learner {name!r}", old.get(key), new[key]) for key in keys]
    named = shared & set(before.get("encoders", {})) & set(now["encoders"])
    if not all("role" in method for method in before["learners"].values()):
        named = set()  # fingerprints had another form then, and cannot be compared
    pairs += [(f"encoder of {n!r}", before["encoders"][n], now["encoders"][n]) for n in sorted(named)]
    for what, old, new in pairs:
        if old != new:
            raise SamAdaptError(
                f"{out} holds a study with another {what}: {_short(old)} there, {_short(new)} now; give what "
                "it was begun with, choose another --out, or remove that folder"
            )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."
