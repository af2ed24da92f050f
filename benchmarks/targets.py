"""What the label grid costs: labels of pictures finer than the grid, there and back, and what a network learns of them.

    python benchmarks/targets.py            # about six minutes on one core

Three targets are compared, in one run: one value a cell by nearest neighbour (as until November 2026), the share of each
class in each cell (as now), and one value a cell on a grid twice as fine. First the ceiling (label -> grid -> back, no
network), then a U-Net from scratch on pictures of a disc whose edge is known to a fraction of a pixel.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import samadapt as sa
from samadapt import features
from samadapt.metrics import score_case
from samadapt.opening import Opening
from samadapt.prediction import build_predictor
from samadapt.transforms import place_label, resize_and_pad, to_original
from samadapt.types import IGNORED, Case, Frame


def nearest(label: Tensor, frame: Frame, n_classes: int, grid: int = 256) -> Tensor:
    """The pixel at the middle of each cell, rounded up where two share it."""
    size = tuple(max(1, round(n * grid / frame.side)) for n in frame.input_size)
    placed = torch.full((grid, grid), IGNORED)
    placed[: size[0], : size[1]] = F.interpolate(label[None, None].float(), size=size, mode="nearest-exact")[
        0, 0
    ].long()
    shares = F.one_hot(torch.where(placed == IGNORED, 0, placed), n_classes).movedim(-1, 0).float()
    return shares * (placed != IGNORED)


def finer(label: Tensor, frame: Frame, n_classes: int, grid: int = 512) -> Tensor:
    """The commonest class of each cell of a grid of 512."""
    shares = place_label(label, frame, n_classes, grid)
    known = shares.sum(0) > 0
    return F.one_hot(shares.argmax(0), n_classes).movedim(-1, 0).float() * known


TARGETS = {"nearest, 256": nearest, "shares, 256": place_label, "commonest, 512": finer}


def organs(seed: int, side: int, count: int = 12) -> Tensor:
    """Ellipses beside and over one another, some of them thin."""
    rng = np.random.default_rng(seed)
    y, x = np.indices((side, side)) / side
    label = np.zeros((side, side), np.uint8)
    for value in range(1, count + 1):
        cy, cx = rng.uniform(0.15, 0.85, 2)
        a, b = rng.uniform(0.02, 0.12, 2)
        angle = rng.uniform(0, np.pi)
        u = (y - cy) * np.cos(angle) + (x - cx) * np.sin(angle)
        v = (x - cx) * np.cos(angle) - (y - cy) * np.sin(angle)
        label[(u / a) ** 2 + (v / b) ** 2 < 1] = value
    return torch.from_numpy(label)


def ceiling() -> None:
    print("label -> grid -> back, 12 ellipses, mean Dice of 10 pictures")
    for side in (512, 768):
        row = []
        for make in TARGETS.values():
            dice = []
            for seed in range(10):
                label = organs(seed, side)
                _, frame = resize_and_pad(torch.zeros(1, side, side), 1024)
                back = to_original(make(label, frame, 13), frame).argmax(0)
                for value in label.unique()[1:]:
                    a, b = back == value, label == value
                    dice.append(float(2 * (a & b).sum() / (a.sum() + b.sum())))
            row.append(np.mean(dice))
        print(
            f"  {side} px: " + ", ".join(f"{n} {d:.3f}" for n, d in zip(TARGETS, row, strict=True)),
            flush=True,
        )


def disc(seed: int, side: int) -> Case:
    rng = np.random.default_rng(seed)
    y, x = np.indices((side, side)) + 0.5
    (cy, cx), radius = rng.uniform(0.3, 0.7, 2) * side, rng.uniform(0.08, 0.22) * side
    inside = np.clip(radius - np.hypot(y - cy, x - cx) + 0.5, 0, 1)  # its edge takes part of a pixel
    image = 70 + 110 * inside + rng.normal(0, 6, inside.shape)
    label = torch.from_numpy((inside > 0.5).astype(np.uint8))
    pixels = torch.from_numpy(image.clip(0, 255).astype(np.float32))
    return Case(f"disc{seed}", pixels[None, None], label[None], None, None, f"disc{seed}", axes=(2, 0, 1))


class Discs:
    name, hash, window = "discs", "0", "none"
    classes = ("background", "disc")
    opening = Opening("segmentation", classes, depth="uint8", window="none")

    def __init__(self, seeds: range, side: int) -> None:
        self.held = {case.id: case for case in (disc(seed, side) for seed in seeds)}
        self.ids = tuple(self.held)

    def __len__(self) -> int:
        return len(self.ids)

    def case(self, case_id: str) -> Case:
        return self.held[case_id]


def trained(side: int, steps: int, seeds: int) -> None:
    print(
        f"U-Net from scratch, input 256 px, {steps} steps, 30 pictures of {side} px, 20 others scored; {seeds} seeds"
    )
    scored = [disc(1000 + n, side) for n in range(20)]
    for name, make in TARGETS.items():
        dice, assd, seconds = [], [], []
        for seed in range(seeds):
            learner = sa.Learner("unet", "pixels", side=256, options={"width": 8}, augment="none")
            model = learner.build(2, seed)
            features.place_label = make
            pairs = sa.Pairs(Discs(range(30), side), learner.maps(model.head.reads, Discs.window, seed))
            with tempfile.TemporaryDirectory() as folder:
                start = time.process_time()
                config = sa.TrainConfig(steps=steps, batch_size=4, seed=seed, device="cpu")
                sa.train(model, pairs, config=config, out=Path(folder) / "run")
                seconds.append((time.process_time() - start) / steps)
            features.place_label = place_label
            segmenter = build_predictor(model, Discs.opening)
            for case in scored:
                assert case.label is not None
                found = score_case(case.id, segmenter.predict(case), case.label.numpy(), None, Discs.classes)
                dice += [s.value for s in found if s.metric == "dsc"]
                assd += [s.value for s in found if s.metric == "assd_px"]
        print(
            f"  {name}: Dice {np.mean(dice):.4f}, ASSD {np.nanmean(assd):.2f} px, {np.mean(seconds):.3f} s of a core a step",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ceiling()
    trained(512, options.steps, options.seeds)
