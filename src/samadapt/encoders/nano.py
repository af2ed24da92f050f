"""`sam_nano`: a small residual network with a feature pyramid, pre-trained on synthetic pictures only.

It has SAM's contract (a neck, a prompt encoder and a mask decoder behind it) at a thousandth of the cost, and its
weights travel with the package. How they were made: `pretraining/README.md`; what they can do: `weights/MODEL_CARD.md`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from samadapt.encoders.entry import EncoderEntry
from samadapt.types import SamAdaptError, Taps
from samadapt.weights import OwnFile, State, fill, read_weights

WEIGHTS = Path(__file__).parent / "weights" / "sam_nano.safetensors"
VERSION = 3  # of the architecture and of `prepare`; part of the fingerprint
COARSEST = 32  # sides are multiples of this stride
BACKBONE_KEY = "image_encoder"

NECK_WIDTH = 128
#: The decoder trained with the network; the arguments of `heads.mask_decoder.PromptedDecoder`.
DECODER = {"dim": NECK_WIDTH, "num_heads": 8, "mlp_dim": 256, "depth": 2}
#: tap -> (channels, stride)
TAPS = {
    "stride4": (48, 4),
    "neck": (NECK_WIDTH, 8),
    "stride16": (NECK_WIDTH, 16),
    "stride32": (NECK_WIDTH, 32),
}


def _norm(channels: int) -> nn.BatchNorm2d:
    """By statistics of all pictures, never of one: a tissue must look the same whatever else a picture shows.

    With group normalisation the same network, trained from scratch on one patient, scored 0.19 on others where this
    one scored 0.42 (`pretraining/README.md`).
    """
    return nn.BatchNorm2d(channels)


def _conv(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nn.Conv2d:
    # Repeated borders: zeros beyond them are seen from far within, and coarse maps then tell the place in the picture.
    pad: Literal["zeros", "replicate"] = "replicate" if size > 1 else "zeros"
    return nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False, padding_mode=pad)


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(inputs, outputs, stride=stride), _norm(outputs)
        self.conv2, self.norm2 = _conv(outputs, outputs), _norm(outputs)
        nn.init.zeros_(self.norm2.weight)  # starts as its shortcut: deep stacks train from the first step
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else _conv(inputs, outputs, size=1)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)), inplace=True)))
        if self.stride > 1:
            x = F.avg_pool2d(x, self.stride)
        return F.relu(y + self.shortcut(x))


class GlobalContext(nn.Module):
    """Adds to every cell what the whole picture's mean says."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        first, last = nn.Linear(channels, channels), nn.Linear(channels, channels)
        nn.init.zeros_(last.weight)
        self.mix = nn.Sequential(first, nn.ReLU(), last)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(x.mean((-2, -1)))[:, :, None, None]


class NanoBackbone(nn.Module):
    """(B, 3, S, S) -> {tap: (B, C, h, w)} for the taps of `TAPS`; S a multiple of 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 32, stride=2), _norm(32), nn.ReLU(inplace=True))
        self.stage4 = Residual(32, 64, stride=2)
        self.stage8 = nn.Sequential(Residual(64, 128, stride=2), Residual(128, 128))
        self.stage16 = nn.Sequential(Residual(128, 160, stride=2), Residual(160, 160), Residual(160, 160))
        self.stage32 = nn.Sequential(Residual(160, 192, stride=2), GlobalContext(192), Residual(192, 192))
        self.side4, self.side8 = _conv(64, 48, 1), _conv(128, NECK_WIDTH, 1)
        self.side16, self.side32 = _conv(160, NECK_WIDTH, 1), _conv(192, NECK_WIDTH, 1)
        self.narrow = _conv(NECK_WIDTH, 48, 1)
        self.out4, self.out8 = self._smooth(48), self._smooth(NECK_WIDTH)
        self.out16, self.out32 = self._smooth(NECK_WIDTH), self._smooth(NECK_WIDTH)
        for module in self.modules():
            # PyTorch's default loses two thirds of the variance at every convolution: coarse maps would start at nil.
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    @staticmethod
    def _smooth(channels: int) -> nn.Sequential:
        return nn.Sequential(_conv(channels, channels), _norm(channels))  # ends without an activation

    def forward(self, x: Tensor, wanted: Collection[str] = tuple(TAPS)) -> dict[str, Tensor]:
        c4 = self.stage4(self.stem(x))
        c8 = self.stage8(c4)
        c16 = self.stage16(c8)
        c32 = self.stage32(c16)
        p32 = self.out32(self.side32(c32))
        p16 = self.out16(self.side16(c16) + _twice(p32))
        p8 = self.out8(self.side8(c8) + _twice(F.relu(p16)))
        p4 = self.out4(self.side4(c4) + _twice(self.narrow(F.relu(p8))))
        found = {"stride4": p4, "neck": p8, "stride16": p16, "stride32": p32}
        return {tap: found[tap] for tap in found if tap in wanted}


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


@final
@dataclass(frozen=True, kw_only=True)
class SamNano(EncoderEntry):
    """`sam_nano` as an encoder; its sides are multiples of its coarsest stride."""

    version = f"sam_nano-{VERSION}"
    one_preparation = True
    cheap = True
    any_side = True

    @property
    def step(self) -> int:
        return COARSEST

    @property
    def least(self) -> int:
        return COARSEST

    def taps(self, side: int) -> Taps:
        return {tap: (channels, side // stride, side // stride) for tap, (channels, stride) in TAPS.items()}

    def network(self, side: int) -> NanoBackbone:
        # Convolutions of few channels on large maps are faster this way, on a CPU too.
        return NanoBackbone().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def read(self, path: Path) -> State:
        if path.is_dir():
            raise SamAdaptError(
                f"{path} is a folder; give a .safetensors file written by `python -m pretraining.export`"
            )
        state = read_weights(path)
        if (found := _version(path)) != VERSION:
            raise SamAdaptError(
                f"{str(path)!r} was written for version {found} of sam_nano's architecture, this is version {VERSION}; "
                "train it again (pretraining/README.md), or use the release of samadapt that wrote it"
            )
        return {name: value.float() for name, value in state.items()}

    def loaded(self, state: State, side: int, source: str) -> NanoBackbone:
        own = f"{BACKBONE_KEY}."
        network = self.network(side)
        weights = {k.removeprefix(own): v for k, v in state.items() if k.startswith(own)}
        fill(network, weights, source, "export it again with `python -m pretraining.export`")
        return network


def _version(path: Path) -> int | None:
    """Of the architecture that a file's weights are for; keys and shapes alone do not tell."""
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {}).get("samadapt", "{}"))
    except (SafetensorError, ValueError):  # the version is not told
        return None
    return told.get("version") if isinstance(told, dict) else None


SAM_NANO = SamNano(
    name="sam_nano",
    text="Our own small encoder, side 256, trained on synthetic pictures; its weights come with the package.",
    prepare="sam_nano",
    published=OwnFile(WEIGHTS),
)
