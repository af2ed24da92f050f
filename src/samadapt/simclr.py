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
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samadapt.adapted import AdaptedModel
from samadapt.files import replacing, write_json
from samadapt.heads.unet import UNet
from samadapt.runs import load_state, save_state
from samadapt.settings import SimclrConfig
from samadapt.training.steps import StepLoop
from samadapt.transforms import build_augmentation, fit_longest, resize, seeded
from samadapt.types import PIXELS, Case, Head, SamAdaptError
from samadapt.views import View

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


def gather_slices(cases: Iterable[Case], view: View, most_per_case: int) -> list[Tensor]:
    """Slices (C, H, W) uint8 of these cases, no larger than the view's side; labels are not looked at.

    Args:
        most_per_case: where a case has more slices, evenly spaced ones; bounds the memory.
    """
    slices = []
    for case in cases:
        seen, depth = view.of(case), case.image.shape[1]
        step = max(1.0, depth / most_per_case)
        for index in range(min(depth, most_per_case)):
            slice_ = seen.seen(int(index * step))
            if max(slice_.shape[-2:]) > view.side:
                slice_ = resize(slice_, fit_longest((slice_.shape[-2], slice_.shape[-1]), view.side))
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


@final
class _Contrast(nn.Module):
    """The loss of two views: the contracting path, the mean over its deepest map, a projection of two layers, NT-Xent."""

    def __init__(self, path: nn.Module, channels: int, config: SimclrConfig) -> None:
        super().__init__()
        self.path, self.temperature = path, config.temperature
        self.project = nn.Sequential(
            nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, config.projection)
        )

    def forward(self, views: Tensor) -> Tensor:
        """(2B, 3, S, S), all first views before all second ones."""
        one, two = self.project(self.path(views).mean((-2, -1))).chunk(2)
        return nt_xent(one, two, self.temperature)


def pretrain(
    model: AdaptedModel,
    slices: Sequence[Tensor],
    config: SimclrConfig,
    folder: Path,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Pre-train a U-Net's contracting path and leave it in a folder; returns what it cost.

    A finished folder is left as it is, an unfinished one continued.

    Args:
        model: its head is a `UNet`, whose contracting path is trained in place.
        slices: (C, H, W) uint8, as `gather_slices` gives them.
        seed: draws the order, the views and the projection.
    """
    if is_finished(folder):
        return read_cost(folder)
    size = min(config.batch_size, len(slices))
    if size < 2:
        raise SamAdaptError(f"SimCLR was given {len(slices)} slices; it needs at least 2 to tell apart")
    path = contracting_path(model.head)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeded("simclr projection", seed).initial_seed())
        channels = int(path(torch.zeros(1, *model.spec.taps[PIXELS])).shape[1])
        contrast = _Contrast(path, channels, config).to(device)
    loop = StepLoop(
        contrast,
        lambda m: torch.optim.Adam(m.parameters(), lr=config.lr),
        str(torch.device(device).type),
        clip=None,
    )
    spent = _resume(folder, contrast, loop)
    view = model.spec.view("none")
    while loop.step < config.steps:
        wall, cpu = time.monotonic(), sum(os.times()[:4])
        chosen = draw_slices(len(slices), size, seed, loop.step)
        loss = loop.update(_batch([slices[i] for i in chosen], view, config, (seed, loop.step)))
        spent["losses"].append(loss.item())
        spent["wall_s"] += time.monotonic() - wall
        spent["cpu_s"] += sum(os.times()[:4]) - cpu
        if loop.step % config.check_every == 0:
            state = {"tensors": contrast.state_dict(), **loop.state(), "spent": spent}
            with replacing(folder / "state.ckpt", cure="make room, then rerun the same command") as temporary:
                torch.save(state, temporary)
    cost = _cost(config, size, len(slices), spent)
    cost["parameters"] = sum(p.numel() for p in path.parameters())
    write_json(folder / "cost.json", cost)
    save_state(path, folder / "contracting.safetensors")
    (folder / "state.ckpt").unlink(missing_ok=True)
    return cost


def _cost(config: SimclrConfig, batch_size: int, slices: int, spent: dict[str, Any]) -> dict[str, Any]:
    last = spent["losses"][-10:]
    return {
        "steps": config.steps,
        "batch_size": batch_size,
        "slices": slices,
        "augmentation": f"{config.augment}, two new views of a slice in every step",
        "wall_s": round(spent["wall_s"], 3),
        "cpu_s": round(spent["cpu_s"], 3),
        "loss_first": spent["losses"][0],
        "loss_last": sum(last) / len(last),
    }


def _batch(slices: Sequence[Tensor], view: View, config: SimclrConfig, key: tuple) -> Tensor:
    """Two views of each slice as the head's pixels: (2B, 3, S, S), all first ones before all second ones."""
    pairs = [two_views(x, config.augment, (*key, n), view.side) for n, x in enumerate(slices)]
    return torch.stack(
        [view.preprocess(one)[0] for one, _ in pairs] + [view.preprocess(two)[0] for _, two in pairs]
    )


def _resume(folder: Path, contrast: nn.Module, loop: StepLoop) -> dict[str, Any]:
    """What was spent so far; the network and the loop go on from a checkpoint, if there is one."""
    file = folder / "state.ckpt"
    if not file.is_file():
        return {"wall_s": 0.0, "cpu_s": 0.0, "losses": []}
    state = torch.load(file, map_location="cpu", weights_only=True)
    contrast.load_state_dict(state["tensors"])
    loop.load_state(state)
    return state["spent"]
