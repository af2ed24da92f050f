"""Study folders with simulated scores: what `samadapt experiment` leaves, without any training."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np

CLASSES = ["background", "LV", "MYO", "RV"]
SPECS = {
    "unet": {"kind": "trained", "head": "unet", "encoder": "pixels"},
    "simclr": {"kind": "simclr", "head": "unet", "encoder": "pixels"},
    "nnunet": {"kind": "nnunet", "trainer": "nnUNetTrainer", "configuration": "2d"},
    "random": {"kind": "trained", "head": "fused", "encoder": "sam_nano", "checkpoint": "random"},
    "scratch": {
        "kind": "trained",
        "head": "fused",
        "encoder": "sam_nano",
        "checkpoint": "random",
        "train": {"tune": "all"},
    },
    "zero_shot": {"kind": "zero_shot", "prompt": "box"},
    "plain": {"kind": "trained", "head": "plain", "encoder": "sam_nano"},
    "shuffled": {"kind": "trained", "head": "slca", "encoder": "sam_nano", "options": {"shuffle": True}},
    "own": {"kind": "trained", "head": "slca", "encoder": "sam_nano", "options": {"source": "own"}},
}

ROLES = dict.fromkeys(["unet", "simclr", "nnunet", "scratch", "plain"], "baseline")
ROLES |= dict.fromkeys(["random", "shuffled", "own"], "control") | {"zero_shot": "oracle"}


def make_study(
    folder: Path,
    quality: dict[str, float],
    labels: tuple = (1, 2, 5),
    seeds: tuple = (0, 1, 2),
    patients: int = 8,
    **options,
) -> Path:
    """A segmentation study; `quality`: learner -> its mean Dice at 5 labelled patients."""
    rng = np.random.default_rng(options.get("seed", 0))
    cases = [f"p{p:02d}_{t}" for p in range(patients) for t in ("ED", "ES")]
    hard = dict(zip(cases, np.repeat(rng.normal(0, 0.05, patients), 2), strict=True))
    draws = {(n, s): rng.normal(0, options.get("seed_sd", 0.008)) for n in labels for s in seeds}

    def score(learner: str, n: int | None, seed: int) -> list[tuple]:
        rows = []
        fewer = 0.0 if n is None else 0.09 * np.log2(5 / n) * options.get("slope", 1.0)
        for case in cases:
            for k, target in enumerate(CLASSES[1:]):
                dice = quality[learner] - fewer + hard[case] + draws.get((n, seed), 0) - 0.04 * k
                dice = float(np.clip(dice + rng.normal(0, 0.03), 0.02, 0.98))
                distance = 20 * (1 - dice)
                if (case, target) == (cases[3], "RV"):  # missed by all
                    rows += [(case, target, "dsc", 0.0), (case, target, "hd95_mm", float("nan"))]
                    rows += [(case, target, "volume_difference_ml", -9.5)]
                    continue
                rows += [(case, target, "dsc", dice), (case, target, "hd95_mm", distance)]
                rows += [(case, target, "volume_difference_ml", float(rng.normal(0, 3)))]
        return rows

    note = _note(folder, quality, cases, "segmentation", CLASSES, labels, seeds, score)
    _write_slices(folder, note, cases)
    return folder


def make_classification_study(
    folder: Path, quality: dict[str, float], classes: int = 3, cases: int = 60, **options
) -> Path:
    """`quality`: learner -> how far the right class stands out."""
    rng = np.random.default_rng(0)
    ids = [f"eye{i:03d}" for i in range(cases)]
    truth = rng.integers(0, classes, cases)
    names = [f"grade {k}" for k in range(classes)]

    def score(learner: str, n: int | None, seed: int) -> list[tuple]:
        logits = rng.normal(0, 1, (cases, classes))
        logits[np.arange(cases), truth] += quality[learner] + 0.1 * (n or 0)
        p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        return [
            (case, name, metric, float(value))
            for i, case in enumerate(ids)
            for k, name in enumerate(names)
            for metric, value in (("probability", p[i, k]), ("truth", truth[i] == k))
        ]

    labels, seeds = options.get("labels", (5, 10)), options.get("seeds", (0, 1, 2))
    _note(folder, quality, ids, "classification", names, labels, seeds, score)
    return folder


def keep_saliency(
    folder: Path, learner: str, cases: list[str], maps: list[str], drawn: int, flat: bool = False
) -> None:
    """What the cells of a classifier keep of where it looked; volumes of three slices."""
    rng = np.random.default_rng(0)
    arrays = {"cases": np.array(cases), "drawn": np.array(drawn)}
    for n in range(len(cases)):
        arrays |= {
            f"{n}.image": rng.integers(0, 256, (20, 24), dtype=np.uint8),
            f"{n}.slice": np.array([2, 3]),
            f"{n}.titles": np.array([f"{name}\n0.2 to 0.9" for name in maps]),
            f"{n}.maps": rng.integers(0, 1 if flat else 256, (len(maps), 20, 24), dtype=np.uint8),
        }
    for digest, cell in json.loads((folder / "experiment.json").read_text())["cells"].items():
        if cell["learner"] == learner:
            np.savez_compressed(folder / digest / "attention.npz", **arrays)


def _note(folder, quality, cases, task, classes, labels, seeds, score):
    cells = {}
    folder.mkdir(parents=True, exist_ok=True)
    for learner in quality:
        learns = learner != "zero_shot"
        for n in labels if learns else [0]:
            for seed in seeds if learns else [0]:
                digest = hashlib.sha256(f"{learner} {n} {seed}".encode()).hexdigest()[:16]
                count = 0 if not learns else 30 if n is None else n
                cells[digest] = {
                    "learner": learner, "labels": n, "seed": seed,
                    "patients": [f"t{i}" for i in range(count)], "rule": "",
                }  # fmt: skip
                write_cell(folder / digest, score(learner, count if learns else None, seed), learner, n, seed)
    note = {
        "format": 1, "version": "0.1.0",
        "data": {
            "name": "Simulated", "hash": "5e1f" * 16, "task": task, "classes": classes, "multilabel": False,
            "window": "percentile", "group_rule": "patient: the name up to _", "cases": 60,
        },
        "protocol": {"select": 0, "fold": 0, "stacked": False, "steps": 1000, "batch_size": 8, "lr": 0.001},
        "learners": {
            name: {
                "spec": SPECS.get(name, {"kind": "trained", "head": name, "encoder": "sam_nano"}),
                "role": ROLES.get(name, "contender"), "learns": name != "zero_shot",
            }
            for name in quality
        },
        "environment": {"python": "3.11", "platform": "Linux", "packages": {"torch": "2.13"}, "gpu": None},
        "commands": [["/home/me/bin/samadapt", "experiment", "my data", "--heads", "cnn", "--out", "e"]],
        "cells": cells, "threads": 1,
        "scored": {case: case.split("_")[0] for case in cases},
    }  # fmt: skip
    (folder / "experiment.json").write_text(json.dumps(note))
    (folder / "encoding.json").write_text(json.dumps({"slices": 900, "bytes": 5e7, "seconds": 40.2}))
    return note


def write_cell(place: Path, rows: list[tuple], learner: str, labels: object, seed: int) -> None:
    """scores.csv with its hash in cost.json."""
    place.mkdir(parents=True, exist_ok=True)
    with open(place / "scores.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["case", "target", "metric", "value"])
        writer.writerows((*row[:3], repr(float(row[3]))) for row in rows)
    cost = {
        "learner": learner, "labels": labels, "seed": seed, "parameters": 1_234_567,
        "training": {"wall_s": 61.2 + seed, "cpu_s": 118.0, "peak_rss_mib": 912.0},
        "prediction": {"wall_s": 3.2, "cpu_s": 5.0, "peak_rss_mib": 700.0, "cases": 16}, "threads": 1,
        "steps": 1000, "batch_size": 8, 
        "selection": "no checkpoint selection: the averaged final weights are used",
        "augmentation": "default, 6 stored views of a slice", "device": "cpu",
        "scores_sha256": hashlib.sha256((place / "scores.csv").read_bytes()).hexdigest(),
    }  # fmt: skip
    (place / "cost.json").write_text(json.dumps(cost))


def fail(folder: Path, learner: str, labels: int, seed: int, message: str) -> str:
    """Turn a cell into a failed one; returns its digest."""
    note = json.loads((folder / "experiment.json").read_text())
    digest = next(
        d
        for d, c in note["cells"].items()
        if (c["learner"], c["labels"], c["seed"]) == (learner, labels, seed)
    )
    (folder / digest / "scores.csv").unlink()
    (folder / digest / "failed.json").write_text(json.dumps({"message": message, "traceback": "..."}))
    return digest


def _write_slices(folder: Path, note: dict, cases: list[str], side: int = 96) -> None:
    """Rings and discs; every learner's answer is the truth, shifted a little."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:side, :side]
    (folder / "cases").mkdir()
    answers: dict[str, dict[str, np.ndarray]] = {digest: {} for digest in note["cells"]}
    for case in cases:
        far = np.hypot(y - side / 2, x - side / 2)
        truth = np.select([far < 12, far < 19, np.hypot(y - 48, x - 22) < 9], [1, 2, 3], 0).astype(np.uint8)
        image = np.clip(70 + 50 * (truth == 1) - 30 * (truth == 2) + rng.normal(0, 12, truth.shape), 0, 255)
        np.savez_compressed(
            folder / "cases" / f"{case}.npz", image=image.astype(np.uint8)[None], truth=truth[None],
            slices=np.array([4]),
        )  # fmt: skip
        for digest in answers:
            answers[digest][case] = np.roll(truth, int(rng.integers(0, 6)), axis=1)[None]
    for digest, of_case in answers.items():
        np.savez_compressed(folder / digest / "slices.npz", **of_case)
