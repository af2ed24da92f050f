"""Do the features separate regions? On pictures never drawn in training, or read from one patient of a data set.

    python -m pretraining.probe RUN                       # synthetic pictures: trained against random
    python -m pretraining.probe RUN --data FOLDER --labels 1 --score 8

Evaluation only: nothing here is ever trained on, and of a data set only the training part of its first fold is
read, so that looking often at these numbers does not wear out the patients of the final table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from pretraining.draw import Draw
from pretraining.generate import generate
from pretraining.objectives import Cells, ridge_readout
from pretraining.train import Recipe, Trainer
from samadapt.datasets import Dataset, open_dataset
from samadapt.encoders.nano import NanoBackbone, NanoEncoder, build_sam_nano
from samadapt.transforms import Window, apply_window, place_label
from samadapt.types import IGNORED, Case

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
    """{tap: (B, C, h, w)} -> (B, C', h, w) on the finest grid, with a channel of ones."""
    size = features[READ[0]].shape[-2:]
    maps = [F.interpolate(features[tap], size=size, mode="bilinear", align_corners=False) for tap in READ]
    return torch.cat([*maps, torch.ones_like(maps[0][:, :1])], 1)


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
        x = stacked(net.eval()(batch.images))[:, :-1].flatten(2)[:, :, cells.at]  # (N, C, P)
        x = F.normalize((x - x.mean((0, 2), keepdim=True)) / (x.std((0, 2), keepdim=True) + 1e-6), dim=1)
        sums, sizes = cells.fine @ x.transpose(1, 2), cells.fine.sum(2)  # (N, R, C), (N, R)
        other, known = (t.unflatten(0, (-1, 2)).flip(1).flatten(0, 1) for t in (sums, sizes > 0.5))
        nearest = (F.normalize(other, dim=2) @ x).masked_fill(~known[:, :, None], -2.0).argmax(1)
        right = cells.fine.gather(1, nearest[:, None])  # (N, 1, P)
        asked = known & (sizes >= 4) & (known.sum(1, keepdim=True) > 1)
        found.append(((cells.fine * right).sum(2) / sizes.clamp(min=1))[asked])
    return float(torch.cat(found).mean())


def _maps(encoder: NanoEncoder, case: Case, window: str) -> tuple[Tensor, Tensor]:
    """-> (D, C', h, w) features and (D, 256, 256) labels."""
    assert case.label is not None
    limits = Window.parse(window).fit(case.image)
    prepared = [encoder.prepare(apply_window(case.image[:, d], limits)) for d in range(case.image.shape[1])]
    features = stacked(encoder(torch.stack([x for x, _ in prepared])))
    labels = [place_label(label, frame) for label, (_, frame) in zip(case.label, prepared, strict=True)]
    return features, torch.stack(labels)


@torch.inference_mode()
def real(net: NanoBackbone, data: Dataset, labels: int, score: int) -> dict[str, float]:
    """Dice of each class with a readout from `labels` patients on `score` other ones."""
    encoder = NanoEncoder()
    encoder.image_encoder = net.eval()
    allowed = data.folds[0][0] if data.folds else data.labelled_ids
    groups = sorted({data.groups[i] for i in allowed})
    support = [i for i in allowed if data.groups[i] in groups[:labels]]
    others = [i for i in allowed if data.groups[i] in groups[labels : labels + score]]
    k = len(data.classes)
    xs, ys = [], []
    for case_id in support:
        x, y = _maps(encoder, data[case_id], data.window)
        y = y[:, 2::4, 2::4].long()
        xs.append(x.flatten(2).transpose(1, 2).flatten(0, 1))
        ys.append((F.one_hot(y.clamp(max=k), k + 1)[..., :k] * (y != IGNORED)[..., None]).flatten(0, 2))
    readout = ridge_readout(torch.cat(xs)[None], torch.cat(ys)[None].float(), ridge=1e-3)[0]
    dice = []
    for case_id in others:
        x, y = _maps(encoder, data[case_id], data.window)
        logits = torch.einsum("dchw,ck->dkhw", x, readout)
        answer = F.interpolate(logits, size=y.shape[-2:], mode="bilinear", align_corners=False).argmax(1)
        seen = y != IGNORED
        hits = [((answer == c) & (y == c) & seen).sum() for c in range(1, k)]
        sizes = [((answer == c) & seen).sum() + (y == c).sum() for c in range(1, k)]
        dice.append([2 * float(h) / max(1.0, float(s)) for h, s in zip(hits, sizes, strict=True)])
    means = torch.tensor(dice).mean(0)
    return {name: round(float(v), 4) for name, v in zip(data.classes[1:], means, strict=True)} | {
        "mean": round(float(means.mean()), 4)
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pretraining.probe", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run, or an exported .safetensors file")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--labels", type=int, default=1, help="patients to fit on")
    parser.add_argument("--score", type=int, default=8, help="patients to score on")
    args = parser.parse_args()
    data = open_dataset(args.data) if args.data else None
    for name, net in (("trained", trained(args.run)), ("random", untrained())):
        found = (
            real(net, data, args.labels, args.score)
            if data
            else {"cells nearest to their own region in another look": round(separation(net), 4)}
        )
        print(name, found)


if __name__ == "__main__":
    main()
