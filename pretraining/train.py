"""Pre-train `sam_nano` on synthetic pictures: `python -m pretraining.train --minutes 90 --out RUN`.

Bounded by minutes or steps, resumable (`--resume`), the same on a CPU and on a GPU. A batch depends on the seed and
the step alone, and the learning rate of the first steps on the step alone: the same seed gives the same first losses.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, Dataset

from pretraining.draw import Draw
from pretraining.generate import Batch, generate
from pretraining.objectives import Agreement, Cells, promptable
from samadapt.encoders.nano import DECODER, TAPS, NanoBackbone
from samadapt.heads.mask_decoder import PromptedDecoder
from samadapt.training.steps import StepLoop

#: (side, label maps, views) of a batch and how often it comes: about the same number of pixels in each.
SIZES = ((128, 24, 2), (192, 11, 2), (256, 6, 2))
SIZE_WEIGHTS = (0.7, 0.15, 0.15)
FIRST = (64, 12, 2)  # of the first `Recipe.small` steps
_UNSEEN = 1 << 20  # added to the seed
_STATISTICS = 24  # batches
COLUMNS = ("loss", "agreement", "prompts")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, but for the clock when the run is bounded by minutes."""

    seed: int = 0
    steps: int | None = None
    minutes: float | None = None
    lr: float = 2e-3
    decoder_lr: float = 0.3  # of lr: transformers bear less than convolutions
    weight_decay: float = 0.02
    warmup: int = 50
    small: int = 600  # steps on small pictures first: the agreement stands still for hundreds of steps
    ema: float = 0.998
    agreement: float = 1.0  # weights of the objectives; 0 leaves one out
    prompts: float = 1.0
    prompts_every: int = 4  # steps: decoding costs more than it teaches the encoder
    asked_images: int = 6  # pictures that are prompted, and masks asked of each
    asked_masks: int = 3
    scale: float = 1.0  # of the number of label maps in a batch; smaller for tests
    bf16: bool = True


class Net(nn.Module):
    """What is trained: the encoder, the decoder behind it, and the projections that only pre-training needs."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = NanoBackbone()
        self.decoder = PromptedDecoder(**DECODER)
        self.agreement = Agreement({tap: TAPS[tap][0] for tap in ("stride4", "neck", "stride16")})

    def losses(self, batch: Batch, draw: Draw, recipe: Recipe, step: int = 0) -> dict[str, Tensor]:
        """The objectives on one batch, those with weight 0 left out."""
        features = self.backbone(batch.images)
        found = {}
        if recipe.agreement:
            found["agreement"] = self.agreement(features, Cells.of(batch.labels, draw), batch.views)
        if recipe.prompts and step % recipe.prompts_every == 0:
            images = min(recipe.asked_images, len(batch.images))
            found["prompts"] = promptable(
                self.decoder, features["neck"], batch, draw, images, recipe.asked_masks
            )
        return found


def batch_at(recipe: Recipe, step: int, device: str = "cpu") -> Batch:
    """The batch of a step."""
    draw = Draw("batch", recipe.seed, step, device=device)
    size = SIZES[int(draw.choice(SIZE_WEIGHTS, 1))]
    side, maps, views = FIRST if step < recipe.small else size
    return generate(draw, max(2, round(maps * recipe.scale)), views, side)


class _Steps(Dataset):
    """The batches by step, for a loader that makes them in another process."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, int]:
        batch = batch_at(self.recipe, step)
        return (
            batch.images.to(torch.bfloat16 if self.recipe.bf16 else torch.float32),
            batch.labels.byte(),
            batch.views,
        )


def batches(recipe: Recipe, first: int, device: str, workers: int) -> Iterator[Batch]:
    """All batches from a step on: on a GPU made there, on a CPU by one process beside the training."""
    if workers == 0:
        step = first
        while True:
            yield batch_at(recipe, step, device)
            step += 1
    loader = DataLoader(
        _Steps(recipe),
        batch_size=None,
        sampler=range(first, 1 << 40),  # type: ignore[arg-type]
        num_workers=workers,
        prefetch_factor=4,
    )
    for images, labels, views in loader:
        yield Batch(images.to(device).float(), labels.to(device).long(), views)


class _Objective(nn.Module):
    """The weighted sum of the objectives on a batch; `found` keeps them one by one."""

    def __init__(self, net: Net, recipe: Recipe, device: str) -> None:
        super().__init__()
        self.net, self.recipe, self.device = net, recipe, device
        self.found: dict[str, Tensor] = {}

    def forward(self, images: Tensor, labels: Tensor, views: int, step: int) -> Tensor:
        draw = Draw("objectives", self.recipe.seed, step, device=self.device)
        self.found = self.net.losses(Batch(images, labels, views), draw, self.recipe, step)
        weights = asdict(self.recipe)
        return torch.stack([weights[name] * value for name, value in self.found.items()]).sum()


class Trainer:
    """The state of a run; everything in `state()` is what a resumed run needs."""

    def __init__(self, recipe: Recipe, device: str = "cpu") -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device = recipe, device
        self.net = Net().to(device, memory_format=torch.channels_last)
        self.average = [p.detach().clone() for p in self.net.parameters()]
        self.objective = _Objective(self.net, recipe, device)
        self.loop = StepLoop(self.objective, self._optimiser, device, recipe.bf16, skip=True)
        self.minutes = 0.0

    def _optimiser(self, objective: nn.Module) -> torch.optim.Optimizer:
        """Each part with its share of the learning rate."""
        parts = {self.net.backbone: 1.0, self.net.decoder: self.recipe.decoder_lr, self.net.agreement: 1.0}
        groups = [{"params": list(part.parameters()), "lr": share} for part, share in parts.items()]
        return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=self.recipe.weight_decay, fused=True)

    @property
    def step(self) -> int:
        """How many steps were made."""
        return self.loop.step

    def progress(self) -> float:
        """0 at the start, 1 at the end, whichever bound is nearer."""
        parts = [0.0]
        if self.recipe.steps:
            parts.append(self.step / self.recipe.steps)
        if self.recipe.minutes:
            parts.append(self.minutes / self.recipe.minutes)
        return min(1.0, max(parts))

    def rate(self) -> float:
        """Linear warm-up by steps, then a cosine over what is left."""
        if self.step < self.recipe.warmup:
            return self.recipe.lr * (self.step + 1) / self.recipe.warmup
        return self.recipe.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.progress())))

    def update(self, batch: Batch) -> dict[str, float]:
        """One step; returns the losses."""
        step, images = self.step, batch.images.contiguous(memory_format=torch.channels_last)
        loss = self.loop.update(images, batch.labels, batch.views, step, rates=self.rate())
        decay = min(self.recipe.ema, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.net.parameters()], 1 - decay)
        return {"loss": float(loss), **{k: float(v.detach()) for k, v in self.objective.found.items()}}

    def state(self) -> dict[str, object]:
        """Everything a resumed run needs."""
        return {
            "net": self.net.state_dict(),
            "average": self.average,
            "minutes": self.minutes,
            **self.loop.state(),
        }

    def load(self, state: dict) -> None:
        """The opposite of `state`."""
        self.net.load_state_dict(state["net"])
        with torch.no_grad():
            for mine, theirs in zip(self.average, state["average"], strict=True):
                mine.copy_(theirs)
        self.loop.load_state(state)
        self.minutes = state["minutes"]

    def averaged(self) -> dict[str, Tensor]:
        """The averaged weights, by name, with batch statistics measured anew for them on batches never trained on."""
        net = copy.deepcopy(self.net)
        with torch.no_grad():
            for mine, average in zip(net.parameters(), self.average, strict=True):
                mine.copy_(average)
        unseen = replace(self.recipe, seed=self.recipe.seed + _UNSEEN)
        steps = range(unseen.small, unseen.small + _STATISTICS)
        pictures = (batch_at(unseen, step, self.device).images for step in steps)
        update_bn(pictures, net.backbone)
        return net.state_dict()


def save(trainer: Trainer, out: Path) -> None:
    """Write `checkpoint.pt` whole or not at all."""
    part = out / "checkpoint.pt.part"
    torch.save(trainer.state(), part)
    os.replace(part, out / "checkpoint.pt")


@dataclass
class Clock:
    """Minutes of training and of checkpoints."""

    every: float = 3.0
    last: float = 0.0
    saved: float = 0.0

    def tick(self, trainer: Trainer) -> bool:
        """Add the time since the last tick; True when a checkpoint is due."""
        now = time.monotonic()
        trainer.minutes += (now - self.last) / 60
        self.last = now
        due = now - self.saved > 60 * self.every
        if due:
            self.saved = now
        return due


def run(
    recipe: Recipe, out: Path | None, device: str = "cpu", workers: int = 0, resume: bool = False
) -> list[float]:
    """Train until the recipe's bound; returns the losses of this call's steps."""
    trainer = Trainer(recipe, device)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        if resume and (out / "checkpoint.pt").exists():
            trainer.load(torch.load(out / "checkpoint.pt", map_location=device, weights_only=True))
        (out / "recipe.json").write_text(json.dumps(asdict(recipe), indent=1))
    losses: list[float] = []
    clock = Clock(last=time.monotonic(), saved=time.monotonic())
    for batch in batches(recipe, trainer.step, device, workers):
        if trainer.progress() >= 1:
            break
        found = trainer.update(batch)
        losses.append(found["loss"])
        due = clock.tick(trainer)
        if out is not None:
            _log(out, trainer, batch, found)
            if due:
                save(trainer, out)
    if out is not None:
        save(trainer, out)
    return losses


def _log(out: Path, trainer: Trainer, batch: Batch, found: dict[str, float]) -> None:
    row = {
        "step": trainer.step,
        "minutes": round(trainer.minutes, 3),
        "side": batch.labels.shape[-1],
        "lr": f"{trainer.rate():.2e}",
        **{name: round(found[name], 5) if name in found else "" for name in COLUMNS},
    }
    path = out / "losses.csv"
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pretraining.train", description=__doc__)
    bound = parser.add_mutually_exclusive_group(required=True)
    bound.add_argument("--minutes", type=float, help="length of the whole run, earlier parts included")
    bound.add_argument("--steps", type=int)
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda", "mps"])
    parser.add_argument("--lr", type=float, default=Recipe.lr)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--without", default="", help="objectives to leave out, e.g. prompts")
    parser.add_argument("--float32", action="store_true", help="no bf16")
    parser.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    left_out = {name: 0.0 for name in args.without.split(",") if name}
    recipe = Recipe(
        seed=args.seed, steps=args.steps, minutes=args.minutes, lr=args.lr, bf16=not args.float32, **left_out
    )
    workers = 1 if args.device == "cpu" else 0
    run(recipe, args.out, args.device, workers, args.resume)


if __name__ == "__main__":
    main()
