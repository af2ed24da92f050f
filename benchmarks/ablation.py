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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from samadapt.datasets import Dataset, open_dataset
from samadapt.ensemble import Agreement, answers_together
from samadapt.features import FeatureStore
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
    cases = [data.case(i) for i in split.val]

    def heads(learner: Learner, name: str, number: int, tune: str = "none") -> list[Segmenter]:
        store = FeatureStore(asked.out / "store") if learner.views else None
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
            note(together(heads(base, "head", asked.heads), cases, ""))
        if asked.slices and "three slices" not in scores:
            three = dataclasses.replace(base, slices=3)
            note(together(heads(three, "three_slices", asked.heads), cases, "three slices"))
        if asked.lora and "lora" not in scores:
            note({"new views": alone(heads(live, "new_views", 1)[0], cases)})
            note({"lora": alone(heads(live, "lora", 1, "lora")[0], cases)})
    return {row: scores[row] for row in ROWS if row in scores}


# ---------------------------------------------------------------- scores


def together(models: Sequence[Segmenter], cases: Sequence[Case], name: str) -> dict[str, float]:
    """Of several heads: each by itself (the mean of them), and all together."""

    def one_by_one(sigma: float, clean: bool) -> float:
        return float(
            np.mean([score(lambda c, m=m: m.answers(c), cases, m.classes, sigma, clean) for m in models])
        )  # type: ignore[misc]

    def all_at_once(sigma: float, clean: bool) -> float:
        classes = models[0].classes
        return score(
            lambda c: answers_together(models, c, False, Agreement(len(models), classes)), cases, classes, sigma, clean
        )  # fmt: skip

    if name:
        return {
            name: one_by_one(0, False), f"{name}, smoothed": one_by_one(1, False),
            f"{name}, ensemble, smoothed": all_at_once(1, False),
        }  # fmt: skip
    return {
        "one head": one_by_one(0, False), "smoothed": one_by_one(1, False), "clean-up": one_by_one(0, True),
        "ensemble": all_at_once(0, False), "ensemble, smoothed": all_at_once(1, False),
        "ensemble, smoothed, clean-up": all_at_once(1, True),
    }  # fmt: skip


def alone(model: Segmenter, cases: Sequence[Case]) -> float:
    """Of one head, as it answers."""
    return score(model.answers, cases, model.classes, 0, False)


def score(
    answers: Callable[[Case], Iterator[Tensor]],
    cases: Sequence[Case],
    classes: Sequence[str],
    sigma: float,
    clean: bool,
) -> float:
    """Mean Dice over classes and cases."""
    found = []
    for case in cases:
        assert case.label is not None
        label = np.stack([x.argmax(0).to(torch.uint8).numpy() for x in smoothed(answers(case), sigma)])
        if clean:
            label = keep_largest(label, range(1, len(classes)))
        truth = case.label.numpy()
        for value in range(1, len(classes)):
            pair = MaskPair.of(label == value, truth == value, ignored=truth == IGNORED)
            found.append(dsc(pair))
    return float(np.nanmean(found))


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
