"""Do the features separate regions? Trained against random weights: `python -m pretraining.probe RUN`."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretraining.draw import Draw
from pretraining.generate import generate
from pretraining.objectives import Cells
from pretraining.train import Recipe, Trainer
from samadapt.encoders import EncoderSpec
from samadapt.encoders.nano import NanoBackbone
from samadapt.weights import RANDOM

READ = ("stride4", "neck", "stride16")


def trained(run: Path | None) -> nn.Module:
    """The averaged weights of a run, or of an exported file; None: those of the package."""
    if run is None or run.is_file():
        return EncoderSpec("sam_nano", run and str(run)).load().network
    net = NanoBackbone()
    trainer = Trainer(Recipe(**json.loads((run / "recipe.json").read_text())))
    trainer.load(torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True))
    own = "backbone."
    state = {k.removeprefix(own): v for k, v in trainer.averaged().items() if k.startswith(own)}
    net.load_state_dict(state)
    return net


def untrained(seed: int = 0) -> nn.Module:
    """Random weights: the control."""
    return EncoderSpec("sam_nano", RANDOM, seed=seed).load().network


def stacked(features: dict[str, Tensor]) -> Tensor:
    """{tap: (B, C, h, w)} -> (B, C', h, w) on the finest grid."""
    size = features[READ[0]].shape[-2:]
    maps = [F.interpolate(features[tap], size=size, mode="bilinear", align_corners=False) for tap in READ]
    return torch.cat(maps, 1)


@torch.inference_mode()
def separation(net: nn.Module, maps: int = 48, side: int = 128, seed: int = 0) -> float:
    """How often a linear readout, fitted to the regions of one look of a label map, names them in the *other* look.

    The mean over regions of the share of their cells that are named rightly, on maps that training never draws. Ridge
    regression on the standardised channels of strides 4 to 16: what a head could read from one labelled picture.
    """
    found = []
    for part in range(0, maps, 12):
        draw = Draw("probe", seed, part)
        batch = generate(draw, 12, 2, side)
        cells = Cells.of(batch.labels, draw)
        x = stacked(net.eval()(batch.images, READ)).flatten(2)[:, :, cells.at]  # (N, C, P)
        x = ((x - x.mean((0, 2), keepdim=True)) / (x.std((0, 2), keepdim=True) + 1e-6)).transpose(1, 2)
        hot, sizes = cells.fine, cells.fine.sum(2)  # (N, R, P), (N, R)
        fitted, regions, known = (_other_look(t) for t in (x, hot, sizes > 0.5))
        centre = fitted.mean(1, keepdim=True)
        answers = _ridge(
            fitted - centre, (regions - regions.mean(2, keepdim=True)).transpose(1, 2), x - centre
        )
        named = answers.transpose(1, 2).masked_fill(~known[:, :, None], -math.inf).argmax(1)  # (N, P)
        right = hot.gather(1, named[:, None])  # (N, 1, P)
        asked = known & (sizes >= 4) & (known.sum(1, keepdim=True) > 1)
        found.append(((hot * right).sum(2) / sizes.clamp(min=1))[asked])
    return float(torch.cat(found).mean())


def _other_look(x: Tensor) -> Tensor:
    """(N, ...) in pairs of looks -> the same with each pair swapped."""
    return x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def _ridge(x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
    """Ridge regression of y (N, P, R) on x (N, P, C), answered for `asked` (N, Q, C); in the dual, penalty P."""
    cells = x.shape[1]
    weights = torch.linalg.solve(x @ x.transpose(1, 2) / cells + torch.eye(cells, device=x.device), y)
    return asked @ x.transpose(1, 2) / cells @ weights


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pretraining.probe", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run, or an exported .safetensors file")
    args = parser.parse_args()
    print("share of cells whose region is named rightly from another look:")
    for name, net in (("trained", trained(args.run)), ("random", untrained())):
        print(f"{name:8}{separation(net):.4f}")


if __name__ == "__main__":
    main()
