"""What each use of stored maps adds to one head: more heads, neighbouring slices, smoothing, clean-up, low-rank adapters.

    python benchmarks/ablation.py ../shared/data/Task04_Hippocampus --labels 1,5 --encoder sam_nano --draws 2 --out experiments/ablation

The held-out patients are scored; nothing is chosen on them: every option is as its own default (smoothing of one slice, the largest
component of every class). All rows of a cell are of one draw of labelled patients. Rerunning goes on where it stopped; --report prints the
table alone. `lora` trains the encoder's adapters in every step, without stored views, beside `new views`, the same head on the frozen encoder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from samadapt.datasets import Dataset, open_dataset
from samadapt.features import FeatureStore, MapSpec
from samadapt.files import write_json
from samadapt.learner import Learner, fit
from samadapt.metrics import MaskPair, dsc
from samadapt.postprocessing import keep_largest, smoothed
from samadapt.prediction import Segmenter, load_run
from samadapt.training import TrainConfig
from samadapt.types import IGNORED, Case

ROWS = (
    "one head", "smoothed", "clean-up", "ensemble", "ensemble, smoothed", "ensemble, smoothed, clean-up",
    "three slices", "three slices, smoothed", "three slices, ensemble, smoothed", "new views", "lora",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("--labels", default="1,5")
    parser.add_argument("--encoder", default="sam_nano")
    parser.add_argument("--draws", type=int, default=2)
    parser.add_argument("--heads", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--views", type=int, default=8)
    parser.add_argument("--slices", action="store_true", help="also heads that see three slices")
    parser.add_argument("--lora", action="store_true", help="also low-rank adapters")
    parser.add_argument("--scored", type=int, help="at most so many of the held-out cases, evenly spaced")
    parser.add_argument("--group")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--report", action="store_true", help="print what was measured, and measure nothing")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data = open_dataset(asked.data, group=asked.group)
    found: dict[int, list[dict[str, float]]] = {}
    for draw in range(asked.draws):
        for labels in map(int, asked.labels.split(",")):
            cell = _cell(asked, data, labels, draw)
            found.setdefault(labels, []).append(cell)
            print(
                f"{data.name} {asked.encoder}, {labels} labelled, draw {draw}: "
                + "; ".join(f"{row} {value:.3f}" for row, value in cell.items()),
                flush=True,
            )
    print(table(found))


def _cell(asked: argparse.Namespace, data: Dataset, labels: int, draw: int) -> dict[str, float]:
    """The scores of one draw, as far as they are asked for; each training is scored once."""
    cell = asked.out / f"{data.name}_{asked.encoder}_{labels}_{draw}"
    path = cell / "scores.json"
    scores: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    base = Learner("fused", asked.encoder, views=asked.views).suited_to(data)
    live = dataclasses.replace(base, views=0)
    split = data.split(labels, draw)
    scored = split.val[:: max(1, len(split.val) // (asked.scored or len(split.val)))][: asked.scored]
    cases, kept = [data.case(i) for i in scored], FeatureStore(asked.out / "store")

    def heads(learner: Learner, name: str, number: int, tune: str = "none") -> list[Segmenter]:
        store = kept if learner.views else None
        runs = [cell / f"{name}_{k}" for k in range(number)]
        for k, run in enumerate(runs):
            config = TrainConfig(steps=asked.steps, seed=draw + 1000 * k, device="cpu", tune=tune)
            fit(learner, data, split, config, run, store)
        return [model for run in runs if isinstance(model := load_run(run, "cpu"), Segmenter)]

    def note(of: dict[str, float]) -> None:
        scores.update(of)
        cell.mkdir(parents=True, exist_ok=True)
        write_json(path, scores)

    if not asked.report:
        if "ensemble" not in scores:
            note(together(heads(base, "head", asked.heads), cases, "", kept))
        if asked.slices and "three slices" not in scores:
            three = dataclasses.replace(base, slices=3)
            note(together(heads(three, "three_slices", asked.heads), cases, "three slices", kept))
        if asked.lora and "lora" not in scores:
            note({"new views": together(heads(live, "new_views", 1), cases, "")["one head"]})
            note({"lora": together(heads(live, "lora", 1, "lora"), cases, "")["one head"]})
    return {row: scores[row] for row in ROWS if row in scores}


# ---------------------------------------------------------------- scores


def together(
    models: Sequence[Segmenter], cases: Sequence[Case], name: str, store: FeatureStore | None = None
) -> dict[str, float]:
    """Mean Dice over cases and classes, of the heads by themselves (their mean) and of all together.

    Args:
        store: for the maps of a frozen encoder, which then runs once for all heads.
    """
    first = models[0]
    wanted = MapSpec(first.model.spec, first.head.reads, first.opening.window) if store else None
    found: dict[str, list[float]] = {}

    def note(row: str, values: Sequence[float]) -> None:
        found.setdefault(row, []).append(float(np.mean(values)))

    for case in cases:
        maps = None
        if store and wanted:
            store.encode([case], wanted)
            maps = store.read(case, wanted)[0]
        each = [torch.stack([x.softmax(0) for x in model.answers(case, maps)]).log() for model in models]
        mean = torch.stack([x.exp() for x in each]).mean(0).log()  # as `ensemble.answers_together`
        if name:
            note(name, [dice(x, case) for x in each])
            note(f"{name}, smoothed", [dice(x, case, 1) for x in each])
            note(f"{name}, ensemble, smoothed", [dice(mean, case, 1)])
            continue
        note("one head", [dice(x, case) for x in each])
        note("smoothed", [dice(x, case, 1) for x in each])
        note("clean-up", [dice(x, case, clean=True) for x in each])
        note("ensemble", [dice(mean, case)])
        note("ensemble, smoothed", [dice(mean, case, 1)])
        note("ensemble, smoothed, clean-up", [dice(mean, case, 1, clean=True)])
    return {row: float(np.nanmean(values)) for row, values in found.items()}


def dice(logits: Tensor, case: Case, sigma: float = 0, clean: bool = False) -> float:
    """Mean over the classes that are there, or were answered.

    Args:
        logits: (D, K, H, W).
    """
    assert case.label is not None
    label = np.stack([x.argmax(0).to(torch.uint8).numpy() for x in smoothed(iter(logits), sigma)])
    truth, classes = case.label.numpy(), range(1, logits.shape[1])
    if clean:
        label = keep_largest(label, classes)
    ignored = truth == IGNORED
    return float(np.nanmean([dsc(MaskPair.of(label == k, truth == k, ignored=ignored)) for k in classes]))


def table(found: dict[int, list[dict[str, float]]]) -> str:
    """Rows by numbers of labels: mean over the draws, and how many of them are ahead of one head."""
    lines = [
        "| | " + " | ".join(f"{labels} labelled" for labels in found) + " |",
        "|---" * (len(found) + 1) + "|",
    ]
    for row in ROWS:
        texts = []
        for cells in found.values():
            there = [cell for cell in cells if row in cell]
            if not there:
                texts.append("")
                continue
            against = "new views" if row == "lora" else "one head"
            ahead = sum(cell[row] > cell[against] for cell in there if against in cell)
            mean = f"{np.mean([cell[row] for cell in there]):.3f}"
            texts.append(
                mean if row in ("one head", "new views") else f"{mean} ({ahead} of {len(there)} draws ahead)"
            )
        lines += [f"| {row} | " + " | ".join(texts) + " |"] if any(texts) else []
    return "\n".join(lines)


if __name__ == "__main__":
    main()
