"""Small stand-ins that keep the contracts: a data set in memory, an encoder of one convolution, a head."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samadapt.adapted import AdaptedModel
from samadapt.encoders import EncoderEntry, EncoderSpec
from samadapt.features import MapSpec
from samadapt.opening import Opening
from samadapt.transforms import resize_and_pad
from samadapt.types import LABEL_GRID, Case, Head
from samadapt.weights import Published, State


def disc_case(number: int, depth: int = 3, size: tuple[int, int] = (40, 32)) -> Case:
    """A noisy volume with one bright disc, somewhere else in each case."""
    rng = torch.Generator().manual_seed(number)
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    centre = torch.rand(2, generator=rng) * 10 + 11
    disc = ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < 64).expand(depth, *size)
    image = 100 * disc + 20 * torch.rand(depth, *size, generator=rng)
    return Case(
        f"p{number}_a", image[None].float(), disc.to(torch.uint8), (5.0, 1.0, 1.0), None, f"p{number}"
    )


@dataclass
class FakeData:
    """What `Pairs` and `train` ask of a data set."""

    cases: dict[str, Case]
    opening: Opening = field(default_factory=lambda: Opening("segmentation", ("background", "disc")))
    name: str = "fake"
    hash: str = "0"
    loads: list[str] = field(default_factory=list)

    @property
    def window(self) -> str:
        return self.opening.window

    @property
    def classes(self) -> Sequence[str]:
        return self.opening.classes

    @property
    def ids(self) -> list[str]:
        return list(self.cases)

    def __len__(self) -> int:
        return len(self.cases)

    def demand_unchanged(self) -> None:
        """It has no files."""

    def case(self, case_id: str) -> Case:
        self.loads.append(case_id)
        return self.cases[case_id]


def fake_data(*numbers: int) -> FakeData:
    return FakeData({case.id: case for case in map(disc_case, numbers)})


def two_class_archive(path: Path) -> Path:
    """A MedMNIST archive of two classes, one brighter than the other."""
    rng, arrays = np.random.default_rng(0), {}
    for part, count in (("train", 12), ("val", 6), ("test", 10)):
        labels = np.arange(count) % 2
        images = rng.integers(0, 150, (count, 28, 28)) + 100 * labels[:, None, None]
        arrays |= {
            f"{part}_images": images.astype(np.uint8),
            f"{part}_labels": labels[:, None].astype(np.uint8),
        }
    np.savez(path, **arrays)
    return path


class TinyNetwork(nn.Module):
    """One strided convolution; counts how often it is built and how often it runs."""

    built: ClassVar[int] = 0
    calls: ClassVar[int] = 0

    def __init__(self, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.randn(self.conv.weight.shape, generator=generator))
        TinyNetwork.built += 1

    def forward(self, x: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        TinyNetwork.calls += 1
        return {tap: self.conv(x) for tap in wanted}


@dataclass(frozen=True)
class Nowhere:
    """Published weights that need no file."""

    identity: str = "fixed"

    def find(self) -> Path:
        return Path(__file__)

    def locate(self, option: str = "") -> Path:
        return Path(__file__)


@dataclass(frozen=True, kw_only=True)
class TinyEncoder(EncoderEntry):
    """One convolution on a square of 64 pixels; its own weights are drawn from a seed, so that no file is needed."""

    name: str = "tiny"
    side: int = 64
    prepare: str = "tiny"
    published: Published | None = Nowhere()
    kind: type[TinyNetwork] = TinyNetwork
    decoder: Mapping[str, Tensor] = field(default_factory=dict)
    version = "tiny-1"

    @property
    def least(self) -> int:
        return 8

    def taps(self, side: int) -> dict[str, tuple[int, int, int]]:
        return {"neck": (8, side // 4, side // 4)}

    def network(self, side: int) -> TinyNetwork:
        return self.kind()

    def read(self, path: Path) -> State:
        return dict(self.decoder)

    def loaded(self, state: State, side: int, source: str) -> TinyNetwork:
        return self.kind(torch.Generator().manual_seed(0))


def prepare_tiny(image: Tensor, side: int):
    """0..255 -> -0.5..0.5."""
    return resize_and_pad((image / 255.0 - 0.5).expand(3, -1, -1), side)


def tiny(seed: int | None = None, side: int = 64, name: str = "tiny") -> EncoderSpec:
    """The tiny encoder; a seed draws other weights. The test uses the fixture `tiny_encoder`."""
    return EncoderSpec(name, None if seed is None else "random", side, seed=seed or 0)


def maps_of(encoder: EncoderSpec, reads: Mapping[str, int], **options: Any) -> MapSpec:
    return MapSpec(encoder, reads, **options)


def tiny_model(head: Head, **options: Any) -> AdaptedModel:
    """A head on the tiny encoder."""
    return AdaptedModel(tiny(**options), head)


class TinyHead(Head):
    """1x1 convolution with dropout, so that a resumed run that lost its random state would show."""

    task = "segmentation"

    def __init__(self, channels: int = 8, n_classes: int = 2, tap: str = "neck") -> None:
        super().__init__()
        self.tap, self.reads = tap, {tap: 1}
        self.spec = {"name": "tiny", "n_classes": n_classes}
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Dropout2d(0.2), nn.Conv2d(channels, n_classes, 1))

    def forward(self, features):
        return self.net(features[self.tap])

    def loss(self, features, target):
        logits = F.interpolate(self(features), size=(LABEL_GRID, LABEL_GRID), mode="bilinear")
        return F.cross_entropy(logits, target)


def added_parameters(head: Head) -> int:
    """Of the blocks of a classifier: what it has more than the plain network."""
    return sum(p.numel() for p in head.blocks.parameters())
