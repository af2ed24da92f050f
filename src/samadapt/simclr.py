"""SimCLR: the U-Net's contracting path learns from unlabelled slices that two views of one slice belong together.

After Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations" (2020), as AutoSAM's
baseline uses it (METHODS A.6: NT-Xent, temperature 0.5, cosine similarity, Adam 3e-4, projection head dropped).
Unlike there, the two views are drawn independently, each from the slice itself.

    <folder>/state.ckpt               # while it runs; continued after a kill
    <folder>/cost.json                # steps, slices, time, loss
    <folder>/contracting.safetensors  # last: it exists = finished
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samadapt.files import replacing, write_json
from samadapt.heads.unet import UNet
from samadapt.runs import load_state, save_state
from samadapt.settings import SimclrConfig
from samadapt.transforms import (
    Window,
    apply_window,
    build_augmentation,
    fit_longest,
    resize,
    seeded,
)
from samadapt.types import PIXELS, Case, Encoder, Head, SamAdaptError

#: The modules of MONAI's BasicUNet before its bottleneck's end, in the order in which an image passes them.
CONTRACTING = ("conv_0", "down_1", "down_2", "down_3", "down_4")


def nt_xent(a: Tensor, b: Tensor, temperature: float = 0.5) -> Tensor:
    """The normalised temperature-scaled cross-entropy: of all other views, which is mine?

    Args:
        a, b: (B, C) two views of the same B slices, row by row; compared by cosine.
    """
    z = F.normalize(torch.cat([a, b]).float(), dim=1)
    similarity = (z @ z.T / temperature).fill_diagonal_(-torch.inf)  # (2B, 2B), nobody with itself
    other = torch.arange(len(z), device=z.device).roll(len(a))
    return F.cross_entropy(similarity, other)


def contracting_path(head: Head) -> nn.Module:
    """The U-Net's contracting path: the modules of the head themselves, not copies."""
    if not isinstance(head, UNet):
        raise SamAdaptError(
            f"SimCLR pre-trains the contracting path of the head 'unet', not of {head.spec['name']!r}"
        )
    return nn.Sequential(*(head.net.get_submodule(name) for name in CONTRACTING))


def is_finished(folder: Path) -> bool:
    """Whether `pretrain` has done its work there."""
    return (folder / "contracting.safetensors").is_file()


def read_cost(folder: Path) -> dict[str, Any]:
    """What a finished pre-training cost."""
    return json.loads((folder / "cost.json").read_text())


def load_contracting(head: Head, folder: Path) -> None:
    """Start a U-Net from a finished pre-training."""
    load_state(contracting_path(head), folder / "contracting.safetensors")


def gather_slices(cases: Iterable[Case], window: str, side: int, most_per_case: int) -> list[Tensor]:
    """Slices (C, H, W) uint8 of these cases, no larger than `side`; labels are not looked at.

    Args:
        most_per_case: where a case has more slices, evenly spaced ones; bounds the memory.
    """
    slices = []
    for case in cases:
        limits, depth = Window.parse(window).fit(case.image), case.image.shape[1]
        step = max(1.0, depth / most_per_case)
        for index in range(min(depth, most_per_case)):
            slice_ = apply_window(case.image[:, int(index * step)], limits)
            if max(slice_.shape[-2:]) > side:
                slice_ = resize(slice_, fit_longest((slice_.shape[-2], slice_.shape[-1]), side))
            slices.append(slice_.round().clamp(0, 255).to(torch.uint8))
    return slices


def two_views(slice_: Tensor, augment: str, key: tuple[object, ...], side: int) -> tuple[Tensor, Tensor]:
    """Two views of a slice (C, H, W), each drawn by itself from the slice; the same key gives the same two."""
    augmentation = build_augmentation(augment)
    assert augmentation is not None
    one, two = (augmentation(slice_.float(), None, seeded("simclr view", *key, n), side)[0] for n in (0, 1))
    return one, two


def draw_slices(total: int, size: int, seed: int, step: int) -> list[int]:
    """The slices of one batch, all different: every round goes through all slices in a new order."""
    round_, place = divmod(step, total // size)
    order = torch.randperm(total, generator=seeded("simclr order", seed, round_))
    return order[place * size : (place + 1) * size].tolist()


# ---------------------------------------------------------------- training


@dataclass
class _Progress:
    """What a checkpoint remembers beside the weights."""

    step: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    losses: list[float] = field(default_factory=list)


class _Contrast(nn.Module):
    """The contracting path, the mean over its deepest map, and a projection of two layers."""

    def __init__(self, path: nn.Module, channels: int, projection: int) -> None:
        super().__init__()
        self.path = path
        self.project = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, projection)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.path(x).mean((-2, -1)))


def pretrain(
    head: Head,
    encoder: Encoder,
    slices: Sequence[Tensor],
    config: SimclrConfig,
    folder: Path,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Pre-train a U-Net's contracting path and leave it in a folder; returns what it cost.

    A finished folder is left as it is, an unfinished one continued.

    Args:
        head: a `UNet`; its contracting path is trained in place.
        encoder: whose `prepare` makes the head's pixels of a slice.
        slices: (C, H, W) uint8, as `gather_slices` gives them.
        seed: draws the order, the views and the projection.
    """
    if is_finished(folder):
        return read_cost(folder)
    size = min(config.batch_size, len(slices))
    if size < 2:
        raise SamAdaptError(f"SimCLR was given {len(slices)} slices; it needs at least 2 to tell apart")
    folder.mkdir(parents=True, exist_ok=True)
    path = contracting_path(head)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeded("simclr projection", seed).initial_seed())
        channels = int(path(torch.zeros(1, *encoder.taps[PIXELS])).shape[1])
        model = _Contrast(path, channels, config.projection).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr)
    progress = _resume(folder, model, optimizer)
    for step in range(progress.step, config.steps):
        wall, cpu = time.monotonic(), sum(os.times()[:4])
        indices = draw_slices(len(slices), size, seed, step)
        loss = _step(model, optimizer, _batch(slices, indices, encoder, config, (seed, step)), config)
        progress.step = step + 1
        progress.losses.append(loss)
        progress.wall_s += time.monotonic() - wall
        progress.cpu_s += sum(os.times()[:4]) - cpu
        if progress.step % config.check_every == 0:
            _save(folder, model, optimizer, progress)
    cost = {
        "steps": config.steps,
        "batch_size": size,
        "slices": len(slices),
        "augmentation": f"{config.augment}, two new views of a slice in every step",
        "parameters": sum(p.numel() for p in path.parameters()),
        "wall_s": round(progress.wall_s, 3),
        "cpu_s": round(progress.cpu_s, 3),
        "loss_first": progress.losses[0],
        "loss_last": sum(progress.losses[-10:]) / len(progress.losses[-10:]),
    }
    write_json(folder / "cost.json", cost)
    save_state(path, folder / "contracting.safetensors")
    (folder / "state.ckpt").unlink(missing_ok=True)
    return cost


def _batch(
    slices: Sequence[Tensor], indices: Sequence[int], encoder: Encoder, config: SimclrConfig, key: tuple
) -> tuple[Tensor, Tensor]:
    """Two views of each slice as the head's pixels: 2 x (B, 3, S, S)."""
    pairs = [two_views(slices[i], config.augment, (*key, n), encoder.side) for n, i in enumerate(indices)]
    one, two = (
        torch.stack([encoder.prepare(view)[0] for view in views]) for views in zip(*pairs, strict=True)
    )
    return one, two


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, views: tuple[Tensor, Tensor], config: SimclrConfig
) -> float:
    device = next(model.parameters()).device
    answers = model(torch.cat(views).to(device))
    one, two = answers.chunk(2)
    loss = nt_xent(one, two, config.temperature)
    if not torch.isfinite(loss):
        raise SamAdaptError(f"SimCLR's loss is {loss.item()}; lower its lr (now {config.lr})")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def _save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: _Progress) -> None:
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "progress": vars(progress)}
    with replacing(folder / "state.ckpt") as temporary:
        torch.save(state, temporary)


def _resume(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> _Progress:
    file = folder / "state.ckpt"
    if not file.is_file():
        return _Progress()
    state = torch.load(file, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return _Progress(**state["progress"])
