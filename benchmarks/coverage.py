"""Calibration on held-out cases: how often the sets of `--calibrate` hold the class, and the calibration error with and without.

    python benchmarks/coverage.py ../shared/data/medmnist/retinamnist.npz --labels 200 --select 80 --draws 10

Each draw takes other labelled cases; a linear probe on stored maps is trained on what is not set aside. No step is chosen on the
selection cases here (the averaged last weights are kept), so that what is fitted on them was fitted on nothing before.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
import torch

from samadapt.calibration import fit_classes
from samadapt.datasets import open_dataset
from samadapt.features import FeatureStore
from samadapt.learner import Learner, fit
from samadapt.metrics import ALL, classification_metrics
from samadapt.prediction import Classifier, load_run
from samadapt.training import TrainConfig


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--labels", type=int, default=200)
    parser.add_argument("--select", type=int, default=80)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--encoder", default="imagenet_lite0")
    parser.add_argument("--side", type=int, default=64)
    asked = parser.parse_args()
    data = open_dataset(asked.data, task="classification")
    learner = Learner("linear_probe", asked.encoder, side=asked.side, views=2)
    rows = []
    print(
        f"{'draw':>4}  {'coverage':>8}  {'classes':>7}  {'temperature':>11}  {'ECE before':>10}  {'after':>6}"
    )
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureStore(Path(folder) / "store")
        for draw in range(asked.draws):
            split = data.split(asked.labels, draw, asked.select)
            aside = split.select
            # The selection cases calibrate and choose nothing else.
            blind = dataclasses.replace(split, select=())
            run = Path(folder) / f"run_{draw}"
            fit(learner, data, blind, TrainConfig(steps=asked.steps, seed=draw), run, store)
            row = measure(run, data, aside, split.val)
            rows.append(row)
            print(f"{draw:4d}  {row[0]:8.3f}  {row[1]:7.2f}  {row[2]:11.2f}  {row[3]:10.3f}  {row[4]:6.3f}")
    mean, spread = np.mean(rows, 0), np.std([row[0] for row in rows], ddof=1)
    print(
        f"mean  {mean[0]:8.3f}  {mean[1]:7.2f}  {mean[2]:11.2f}  {mean[3]:10.3f}  {mean[4]:6.3f}\n"
        f"standard deviation of the coverage between draws: {spread:.3f}; {len(split.val)} cases scored"
    )


def measure(run: Path, data, aside, scored) -> tuple[float, float, float, float, float]:
    """Coverage, classes in a set, temperature, calibration error without it and with it."""
    model = load_run(run, "cpu")
    assert isinstance(model, Classifier)

    def logits(ids) -> tuple[list[torch.Tensor], torch.Tensor]:
        cases = [data.case(i) for i in ids]
        found = model.all_logits((case, None) for case in cases)
        rows = [torch.stack([row for row, _ in of_case]) for _, of_case in found]
        return rows, torch.stack([case.label for case in cases])

    found = fit_classes(*logits(aside), aside)
    rows, target = logits(scored)
    errors, held, sizes = [], [], []
    for temperature in (1.0, found.temperature):
        p = torch.stack([(z / temperature).softmax(1).mean(0) for z in rows]).numpy()
        errors.append(classification_metrics(p, target.numpy(), data.classes)[ALL, "ece"])
    for values, label in zip(p, target.tolist(), strict=True):
        names = found.classes(dict(zip(data.classes, values.tolist(), strict=True)))
        held.append(data.classes[label] in names)
        sizes.append(len(names))
    return float(np.mean(held)), float(np.mean(sizes)), found.temperature, errors[0], errors[1]


if __name__ == "__main__":
    main()
