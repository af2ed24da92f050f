"""`samadapt demo`: everything end to end on phantom data, without a network."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from samadapt import io
from samadapt.datasets import Dataset, open_dataset
from samadapt.evaluation import evaluate_folder
from samadapt.features import FeatureStore
from samadapt.figures import overlay_figure, save_figure, telling_slices
from samadapt.files import demand_writable
from samadapt.folders import predict_folder
from samadapt.learner import Learner, default_encoder, default_note, fit
from samadapt.metrics import format_table, write_scores
from samadapt.phantom import make_phantom
from samadapt.training import TrainConfig
from samadapt.types import SamAdaptError


def _learners() -> dict[str, Learner]:
    """The product's own method on this machine's default encoder, and the baseline."""
    # The phantom has 128 pixels: a larger square would only slow the U-Net down.
    unet = Learner("unet", encoder="pixels", side=128, options={"width": 16})
    fused = Learner("fused")
    return {f"{fused.encoder} + fused": fused, "U-Net": unet}


def run_demo(out: Path, steps: int = 200, seed: int = 0, overwrite: bool = False) -> None:
    """Make a phantom data set, train on two labelled patients, score the others, leave pictures."""
    if out.is_dir() and any(out.iterdir()):
        if not overwrite:
            raise SamAdaptError(f"{out} is not empty; choose another --out or give --overwrite")
        if not (out / "data" / "dataset.json").is_file():
            raise SamAdaptError(f"{out} is no demo of ours; --overwrite deletes demo folders only")
        shutil.rmtree(out)
    demand_writable(out, "--out")
    print(f"1. phantom cardiac scans, generated: {out / 'data'}", flush=True)
    make_phantom(out / "data", seed=seed)
    data = open_dataset(out / "data")
    split = data.split(labels=2, seed=seed)
    print(f"2. training on {len(split.train)} scans of 2 patients, {steps} steps each", flush=True)
    store, config = FeatureStore(out / "features"), TrainConfig(steps=steps, batch_size=4, seed=seed)
    learners = _learners()
    print(f"   {default_note(default_encoder('fused'), 'fused')}", flush=True)
    for name, learner in learners.items():
        folder = out / "runs" / learner.head
        fit(learner, data, split, config, folder, store)
        predict_folder(folder, out / "data", out / "predictions" / learner.head)
        evaluation = evaluate_folder(out / "predictions" / learner.head, out / "data")
        write_scores(folder / "scores.csv", evaluation.scores)
        print(f"\n3. {name}, {len(split.val)} scans of patients never trained on")
        print(format_table(evaluation.summary), flush=True)
    pictures = [_overlay(out, data, case_id, learners) for case_id in split.val[:3]]
    print("\n4. pictures: " + ", ".join(str(p) for p in pictures))
    example = out / "predictions" / "fused" / f"{split.val[0]}.nii.gz"
    print(f"   open {data.case(split.val[0]).source} with {example} over it, in 3D Slicer or ITK-SNAP")


def _overlay(out: Path, data: Dataset, case_id: str, learners: Mapping[str, Learner]) -> Path:
    case = data.case(case_id)
    assert case.label is not None
    columns = {"truth": case.label.numpy()}
    for name, learner in learners.items():
        columns[name] = io.read_label(out / "predictions" / learner.head / f"{case_id}.nii.gz", case).numpy()
    figure = overlay_figure(case.image.numpy(), columns, data.classes, telling_slices(columns["truth"]))
    (out / "pictures").mkdir(exist_ok=True)
    return save_figure(figure, out / "pictures" / f"{case_id}.png")
