"""SLCA beside its controls: data sets x networks x heads x label shares x seeds, one table.

    python benchmarks/classification.py --data DATA --out results/classification            # everything: a GPU's work
    python benchmarks/classification.py --data DATA --out results/quick --quick             # minutes on a CPU
    python benchmarks/classification.py --data DATA --out results/classification --report   # the table of what is there

DATA holds `medmnist/breastmnist.npz`, `medmnist/retinamnist.npz` and `ISIC2017/`; what is absent is left out.
A cell is a folder; a finished one (`cell.json`) is never run again, so that a killed run goes on where it was.

What is kept equal: the prepared pixels (all heads see them through the same encoder), the augmented views (drawn
anew in every step from the seed; no head uses a store of few views), the start of the network, the steps, the labels.
Selection: the official validation part where all labels are used (the protocol of MedMNIST), otherwise none.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import samadapt as sa
from samadapt.datasets import Dataset
from samadapt.heads.classification import Classifier, share_inside
from samadapt.metrics import ALL, classification_metrics
from samadapt.transforms import Window, apply_window, pool_taps, to_original

DATASETS = {
    "breastmnist": ("medmnist/breastmnist.npz", None),
    "retinamnist": ("medmnist/retinamnist.npz", None),
    "isic2017": ("ISIC2017", "classification"),
}
#: Row of the table -> (head, its options, the encoder's checkpoint).
HEADS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "plain": ("plain", {}, None),
    "se": ("se", {}, None),
    "cbam": ("cbam", {}, None),
    "slca": ("slca", {}, None),
    "slca, random encoder": ("slca", {}, "random"),
    "slca, shuffled": ("slca", {"shuffle": True}, None),
    "slca, matched": ("slca", {"source": "matched"}, None),
    "linear probe": ("linear_probe", {}, None),
    "attentive probe": ("attentive_probe", {}, None),
}
ONE_SEED = " **One seed: the intervals hold the chance of the scored cases, not that of the training.**"
PROBES = ("linear probe", "attentive probe")  # without a network of their own
REFERENCE = "MedMNIST's recipe"  # plain, at the pictures' own 28 px, not augmented
ROWS = (*HEADS, REFERENCE)  # of the table, in its order
#: AUC / ACC as published. METHODS C.1 (MedMNIST v2) says which were checked and which are recalled.
PUBLISHED = {
    "breastmnist": "MedMNIST v2: ResNet-18 (28) 0.901 / 0.863, ResNet-50 (28) 0.857 / 0.812 (recalled)",
    "retinamnist": "MedMNIST v2: ResNet-18 (28) 0.717 / 0.524, ResNet-50 (28) 0.726 / 0.528 (recalled)",
    "isic2017": "challenge, on its test part (not ours): mean AUC of the best 0.911 (recalled)",
}


@dataclass(frozen=True)
class Cell:
    """One training."""

    dataset: str
    backbone: str  # "-" for probes
    head: str
    share: float
    seed: int

    @property
    def folder(self) -> Path:
        name = f"{self.head.replace(', ', '_').replace(' ', '_').replace(chr(39), '')}_{self.backbone}"
        return Path(self.dataset) / f"labels{round(100 * self.share):03d}" / name / f"seed{self.seed}"


@dataclass(frozen=True)
class Plan:
    """What is trained, and how long."""

    datasets: tuple[str, ...] = tuple(DATASETS)
    backbones: tuple[str, ...] = ("resnet18", "resnet50")
    heads: tuple[str, ...] = ROWS
    shares: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)
    seeds: int = 5
    encoder: str = "sam_nano"
    checkpoint: str | None = None  # of the encoder; the random rows have none
    side: int = 256
    image_size: int = 224
    steps: int = 1000
    batch_size: int = 32
    lr: float = 3e-4
    device: str = "auto"
    precision: str = "auto"
    augment: str = "mirror"
    limit: int | None = None  # scored cases, for a trial

    def cells(self) -> Iterator[Cell]:
        """In the order in which they are run: every row of one seed before the next seed."""
        heads = [
            head for head in self.heads if head != REFERENCE
        ]  # which has a network and a share of its own
        for seed in range(self.seeds):
            for dataset in self.datasets:
                for share in self.shares:
                    for head in heads:
                        for backbone in ("-",) if head in PROBES else self.backbones:
                            yield Cell(dataset, backbone, head, share, seed)
                if REFERENCE in self.heads and dataset != "isic2017":
                    yield Cell(dataset, "resnet18", REFERENCE, 1.0, seed)

    def learner(self, cell: Cell) -> sa.Learner:
        if cell.head == REFERENCE:
            options = {"backbone": "resnet18", "small_input": True}
            return sa.Learner("plain", "pixels", side=32, options=options, augment="none")
        head, options, checkpoint = HEADS[cell.head]
        if cell.backbone != "-":
            options = {"backbone": cell.backbone, "image_size": self.image_size, **options}
        checkpoint = checkpoint or self.checkpoint
        return sa.Learner(head, self.encoder, checkpoint, self.side, options=options, augment=self.augment)

    def config(self, cell: Cell, images: int) -> sa.TrainConfig:
        """The same for all; `images` to learn from matter to the reference, which counts epochs."""
        config = sa.TrainConfig(
            steps=self.steps, batch_size=self.batch_size, lr=self.lr, seed=cell.seed, device=self.device,
            precision=self.precision,
        )  # fmt: skip
        if cell.head == REFERENCE:
            # 100 epochs, batch 128, Adam 1e-3; the schedule and the rhythm of selection are ours.
            epoch = -(-images // 128)
            same = {"batch_size": 128, "lr": 1e-3, "ema": 0.0, "weight_decay": 0.0}
            return replace(config, steps=100 * epoch, check_every=epoch, **same)  # type: ignore[arg-type]
        return config


# ---------------------------------------------------------------- one cell


def open_data(root: Path, name: str) -> Dataset | None:
    path, task = DATASETS[name]
    return sa.open_dataset(root / path, task=task) if (root / path).exists() else None


def run_cell(cell: Cell, plan: Plan, root: Path, data: Dataset, out: Path) -> None:
    """Train, predict the scored part, write `predictions.csv` and, last, `cell.json`."""
    split = data.split(labels=None if cell.share == 1 else cell.share, seed=cell.seed)
    start = time.monotonic()
    run = sa.fit(plan.learner(cell), data, split, plan.config(cell, len(split.train)), out / "run")  # resumes
    trained = time.monotonic() - start
    model = sa.load_run(run, plan.device)
    cases = [data.case(i) for i in split.val[: plan.limit]]
    probabilities = np.stack([model.predict(case) for case in cases])
    truth = np.stack([case.label.numpy() for case in cases])  # type: ignore[union-attr]
    with open(out / "predictions.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "truth", *(f"prob_{name}" for name in data.classes)])
        for case, y, row in zip(cases, truth, probabilities, strict=True):
            writer.writerow([case.id, "|".join(map(str, np.atleast_1d(y))), *(f"{p:.7g}" for p in row)])
    scores = classification_metrics(probabilities, truth, data.classes)
    network = isinstance(model.head, Classifier)
    note = {
        "cell": cell.__dict__,
        "rule": split.rule,
        "labels": len(split.train) + len(split.select),
        "auc": scores[ALL, "auc"],
        "acc": scores[ALL, "acc"],
        "auc_per_class": {name: scores[name, "auc"] for name in data.classes},
        "seconds": round(trained, 1),
        "parameters": sum(p.numel() for p in model.head.parameters()),
        "added": model.head.added_parameters if network else 0,
        "inside": looking(model, root, cell, cases) if network and cell.dataset == "isic2017" else {},
    }
    (out / "cell.json.tmp").write_text(json.dumps(note, indent=1))
    (run / "last.ckpt").unlink(missing_ok=True)  # four times the weights; hundreds of cells would fill a disk
    (out / "cell.json.tmp").replace(out / "cell.json")


def looking(model: Any, root: Path, cell: Cell, cases: list[sa.Case]) -> dict[str, float]:
    """Share of each stage's attention, and of Grad-CAM, inside the lesion; "area" is what chance gives."""
    masks = sa.open_dataset(root / DATASETS[cell.dataset][0], task="segmentation")
    found: dict[str, list[float]] = {}
    for case in cases:
        mask = masks.case(case.id).label
        assert mask is not None
        limits = Window.parse(model.window).fit(case.image)
        pixels, frame = model.encoder.prepare(apply_window(case.image[:, 0], limits))
        device = next(model.head.parameters()).device
        with torch.inference_mode():
            features = pool_taps(model.encoder(pixels[None].to(device)), model.head.reads)
            maps = model.head.attention(features) | {"grad_cam": model.head.grad_cam(features)}
        for name, attention in maps.items():
            placed = to_original(attention.cpu().float(), frame)[0]
            found.setdefault(name, []).append(share_inside(placed, mask[0]))
        found.setdefault("area", []).append(float((mask != 0).float().mean()))
    return {name: mean_of_defined(values) for name, values in found.items()}


# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class Result:
    """A finished cell."""

    cell: Cell
    note: Mapping[str, Any]
    truth: np.ndarray
    probabilities: np.ndarray

    def metric(self, name: str, rows: np.ndarray | None = None) -> float:
        """Of all scored cases, or of a resample of them."""
        rows = np.arange(len(self.truth)) if rows is None else rows
        return classification_metrics(self.probabilities[rows], self.truth[rows])[ALL, name]


def read_results(out: Path) -> list[Result]:
    results = []
    for path in sorted(out.rglob("cell.json")):
        note = json.loads(path.read_text())
        with open(path.with_name("predictions.csv"), newline="") as file:
            rows = list(csv.reader(file))[1:]
        truth = np.array([[float(t) for t in row[1].split("|")] for row in rows])
        truth = truth[:, 0].astype(int) if truth.shape[1] == 1 else truth
        probabilities = np.array([[float(p) for p in row[2:]] for row in rows])
        results.append(Result(Cell(**note["cell"]), note, truth, probabilities))
    return results


def difference(ours: Iterable[Result], plain: Mapping[int, Result], metric: str, draws: int = 300) -> str:
    """Mean over the common seeds of ours minus plain, with a 95 % interval over seeds and scored cases."""
    pairs = [(r, plain[r.cell.seed]) for r in ours if r.cell.seed in plain]
    if not pairs:
        return ""
    point = float(np.mean([a.metric(metric) - b.metric(metric) for a, b in pairs]))
    rng = np.random.default_rng(0)
    replicates = []
    for _ in range(draws):
        rows = rng.integers(0, len(pairs[0][0].truth), len(pairs[0][0].truth))
        chosen = [pairs[i] for i in rng.integers(0, len(pairs), len(pairs))]
        replicates.append(np.mean([a.metric(metric, rows) - b.metric(metric, rows) for a, b in chosen]))
    if np.isnan(replicates).all():  # one class only among the scored cases
        return "not defined"
    low, high = np.nanpercentile(replicates, [2.5, 97.5])
    return f"{point:+.3f} [{low:+.3f}, {high:+.3f}]"


def mean_of_defined(values: list[float]) -> float:
    """Without the nan of flat maps; nan where all are."""
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{np.mean(values):.3f}" + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def table(results: list[Result]) -> str:
    """Markdown: one block for each data set and label share."""
    lines: list[str] = []
    keys = sorted({(r.cell.dataset, r.cell.share) for r in results})
    for dataset, share in keys:
        here = [r for r in results if (r.cell.dataset, r.cell.share) == (dataset, share)]
        lines += [
            f"\n## {dataset}, {share:.0%} of the labels ({here[0].note['labels']}; {len(here[0].truth)} scored)",
            "",
            here[0].note["rule"] + "." + (ONE_SEED if len({r.cell.seed for r in here}) == 1 else ""),
            "",
            PUBLISHED.get(dataset, ""),
            "",
            "| network | head | seeds | AUC | ACC | AUC minus plain | ACC minus plain | parameters added | inside the lesion |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        lines += [
            _row([r for r in here if (r.cell.backbone, r.cell.head) == key], here) for key in _rows(here)
        ]
    return "\n".join(lines).strip() + "\n"


def _rows(results: list[Result]) -> list[tuple[str, str]]:
    return sorted({(r.cell.backbone, r.cell.head) for r in results}, key=lambda k: (k[0], ROWS.index(k[1])))


def _row(mine: list[Result], here: list[Result]) -> str:
    cell, note = mine[0].cell, mine[0].note
    plain = {r.cell.seed: r for r in here if r.cell.head == "plain" and r.cell.backbone == cell.backbone}
    compared = {} if cell.head in ("plain", REFERENCE) else plain
    inside = {k: mean_of_defined([r.note["inside"][k] for r in mine]) for k in note["inside"]}
    columns = [
        cell.backbone,
        cell.head,
        str(len(mine)),
        spread([r.note["auc"] for r in mine]),
        spread([r.note["acc"] for r in mine]),
        difference(mine, compared, "auc"),
        difference(mine, compared, "acc"),
        f"{note['added']:,}",
        ", ".join(f"{name} {value:.2f}" for name, value in inside.items()),
    ]
    return "| " + " | ".join(columns) + " |"


# ---------------------------------------------------------------- the command


def parts(text: str) -> tuple[str, ...]:
    """ "a;b" -> ("a", "b"): a row's name may have a comma."""
    return tuple(part.strip() for part in text.split(";"))


OPTIONS = {
    **dict.fromkeys(("datasets", "backbones", "heads", "shares"), parts),
    **dict.fromkeys(("encoder", "checkpoint", "device", "precision", "augment"), str),
    **dict.fromkeys(("seeds", "side", "image_size", "steps", "batch_size", "limit"), int),
    "lr": float,
}


def parse() -> tuple[argparse.Namespace, Plan]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, default=Path("results/classification"))
    parser.add_argument("--quick", action="store_true", help="one seed, ResNet-18 at 64 px, few steps")
    parser.add_argument("--report", action="store_true", help="only write the table of what is there")
    for name, kind in OPTIONS.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, help="several: a;b" if kind is parts else None
        )
    given = parser.parse_args()
    plan = Plan()
    if given.quick:
        plan = replace(plan, backbones=("resnet18",), shares=(0.25,), seeds=1, side=64, image_size=64,
                       heads=tuple(HEADS), steps=60, batch_size=16)  # fmt: skip
    changes = {name: getattr(given, name) for name in OPTIONS if getattr(given, name) is not None}
    if "shares" in changes:
        changes["shares"] = tuple(map(float, changes["shares"]))
    plan = replace(plan, **changes)
    unknown = (set(plan.heads) - set(ROWS)) | (set(plan.datasets) - set(DATASETS))
    if unknown:
        parser.error(f"unknown {sorted(unknown)}; heads: {'; '.join(ROWS)}; data sets: {'; '.join(DATASETS)}")
    return given, plan


def main() -> None:
    given, plan = parse()
    given.out.mkdir(parents=True, exist_ok=True)
    opened = {name: open_data(given.data, name) for name in plan.datasets}
    cells = [] if given.report else [c for c in plan.cells() if opened[c.dataset] is not None]
    for number, cell in enumerate(cells, start=1):
        out = given.out / cell.folder
        if (out / "cell.json").is_file():
            continue
        print(f"[{number}/{len(cells)}] {cell.folder}", flush=True)
        data = opened[cell.dataset]
        assert data is not None
        run_cell(cell, plan, given.data, data, out)
    text = table(read_results(given.out))
    (given.out / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
