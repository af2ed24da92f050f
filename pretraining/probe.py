"""Do the features separate regions? Trained against random weights: `python -m pretraining.probe RUN`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pretraining.draw import Draw
from pretraining.generate import generate
from pretraining.objectives import Cells
from pretraining.train import Recipe, Trainer
from samadapt.encoders.nano import NanoBackbone, build_sam_nano

READ = ("stride4", "neck", "stride16")


def trained(run: Path) -> NanoBackbone:
    """The averaged weights of a run, or of an exported file."""
    net = NanoBackbone()
    if run.is_file():
        return build_sam_nano(run).image_encoder
    trainer = Trainer(Recipe(**json.loads((run / "recipe.json").read_text())))
    trainer.load(torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True))
    own = "backbone."
    state = {k.removeprefix(own): v for k, v in trainer.averaged().items() if k.startswith(own)}
    net.load_state_dict(state)
    return net


def untrained(seed: int = 0) -> NanoBackbone:
    """Random weights: the control."""
    return build_sam_nano("random", seed=seed).image_encoder


def stacked(features: dict[str, Tensor]) -> Tensor:
    """{tap: (B, C, h, w)} -> (B, C', h, w) on the finest grid."""
    size = features[READ[0]].shape[-2:]
    maps = [F.interpolate(features[tap], size=size, mode="bilinear", align_corners=False) for tap in READ]
    return torch.cat(maps, 1)


@torch.inference_mode()
def separation(net: NanoBackbone, maps: int = 48, side: int = 128, seed: int = 0) -> float:
    """How often a cell is nearest to the mean feature of its own region in the *other* look of its label map.

    A mean over the regions of maps that training never draws. Cosine, strides 4 to 16, each channel standardised.
    """
    found = []
    for part in range(0, maps, 12):
        draw = Draw("probe", seed, part)
        batch = generate(draw, 12, 2, side)
        cells = Cells.of(batch.labels, draw)
        x = stacked(net.eval()(batch.images)).flatten(2)[:, :, cells.at]  # (N, C, P)
        x = F.normalize((x - x.mean((0, 2), keepdim=True)) / (x.std((0, 2), keepdim=True) + 1e-6), dim=1)
        sums, sizes = cells.fine @ x.transpose(1, 2), cells.fine.sum(2)  # (N, R, C), (N, R)
        other, known = (t.unflatten(0, (-1, 2)).flip(1).flatten(0, 1) for t in (sums, sizes > 0.5))
        nearest = (F.normalize(other, dim=2) @ x).masked_fill(~known[:, :, None], -2.0).argmax(1)
        right = cells.fine.gather(1, nearest[:, None])  # (N, 1, P)
        asked = known & (sizes >= 4) & (known.sum(1, keepdim=True) > 1)
        found.append(((cells.fine * right).sum(2) / sizes.clamp(min=1))[asked])
    return float(torch.cat(found).mean())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pretraining.probe", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run, or an exported .safetensors file")
    args = parser.parse_args()
    print("share of cells nearest to their own region in another look:")
    for name, net in (("trained", trained(args.run)), ("random", untrained())):
        print(f"{name:8}{separation(net):.4f}")


if __name__ == "__main__":
    main()
