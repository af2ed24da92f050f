"""SAM's ViT image encoders and MedSAM's, through transformers' `SamVisionModel`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samadapt.encoders.checkpoints import HubModel, original_key, read_checkpoint
from samadapt.encoders.network import RANDOM, NetworkEncoder, fitting_side
from samadapt.types import PIXELS, SamAdaptError
from samadapt.weights import State

if TYPE_CHECKING:
    from transformers.models.sam.modeling_sam import SamVisionModel

_VERSION = 1  # of the numbers: raise it when the same weights would give other maps


@dataclass(frozen=True)
class Architecture:
    """A SAM ViT. `side` is the one that the positions were trained for."""

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]
    side: int = 1024
    patch: int = 16
    window: int = 14
    neck: int = 256


VIT_B = Architecture(768, 12, 12, (2, 5, 8, 11))
VIT_L = Architecture(1024, 24, 16, (5, 11, 17, 23))
VIT_H = Architecture(1280, 32, 16, (7, 15, 23, 31))
_KNOWN = {"vit_b": VIT_B, "vit_l": VIT_L, "vit_h": VIT_H}


@dataclass(frozen=True)
class Model:
    """One entry of the table of encoders: how to build it and where its weights are."""

    name: str
    architecture: Architecture
    hub: HubModel
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
    ) -> SamEncoder:
        """Build the encoder; see `load_encoder`."""
        own, patch = self.architecture.side, self.architecture.patch
        examples = f", such as {own // 2} or {own}"
        side = fitting_side(f"encoder {self.name!r}", side or own, patch, 2 * patch, examples)
        prepare = prepare or self.prepare
        if checkpoint == RANDOM:
            return SamEncoder(_random(self.architecture, side), self.architecture, side, prepare)
        state = read_checkpoint(checkpoint, self.hub)
        vision = _vision(self.architecture, side, state, f"{checkpoint or self.hub.repo} for {self.name!r}")
        decoder = {k: v for k, v in state.items() if k.split(".")[0] in ("prompt_encoder", "mask_decoder")}
        return SamEncoder(vision, self.architecture, side, prepare, decoder)


@final
class SamEncoder(NetworkEncoder):
    """A SAM ViT. Taps: `patch` (embedded patches with their positions), `block0`.. (outputs), `neck`.

    Args:
        vision: the network.
        architecture: its widths.
        side: S, for which its positions are made.
        prepare: a name in `prepare.PREPARES`.
        decoder: weights of SAM's prompt encoder and mask decoder that came with it.
    """

    def __init__(
        self,
        vision: SamVisionModel,
        architecture: Architecture,
        side: int,
        prepare: str,
        decoder: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__(side, prepare)
        self.vision = vision.vision_encoder
        self._decoder = dict(decoder or {})
        self.hashed(f"sam-{_VERSION}", self.vision)
        grid = self.side // architecture.patch
        names = ["patch", *(f"block{i}" for i in range(architecture.depth))]
        self.taps = {
            PIXELS: (3, self.side, self.side),
            **dict.fromkeys(names, (architecture.width, grid, grid)),
            "neck": (architecture.neck, grid, grid),
        }
        self.requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = {PIXELS: x}
        tokens = self.vision.patch_embed(x) + self.vision.pos_embed  # (B, h, w, C)
        self._keep(found, "patch", tokens)
        for i, block in enumerate(self.vision.layers):
            tokens = block(tokens)
            self._keep(found, f"block{i}", tokens)
        if "neck" in self.taps:
            found["neck"] = self.vision.neck(tokens)
        return found

    def _keep(self, found: dict[str, Tensor], tap: str, tokens: Tensor) -> None:
        if tap in self.taps:
            found[tap] = tokens.permute(0, 3, 1, 2)

    def decoder_state(self) -> dict[str, Tensor]:
        return dict(self._decoder)

    def train(self, mode: bool = True) -> SamEncoder:
        """Stays in evaluation mode; to tune it, `requires_grad_(True)` is enough."""
        return super().train(False)


# ---------------------------------------------------------------- building


def _config(architecture: Architecture, side: int):
    from transformers.models.sam.configuration_sam import SamVisionConfig  # here: transformers takes seconds

    return SamVisionConfig(
        hidden_size=architecture.width,
        num_hidden_layers=architecture.depth,
        num_attention_heads=architecture.heads,
        global_attn_indexes=list(architecture.global_blocks),
        image_size=side,
        patch_size=architecture.patch,
        window_size=architecture.window,
        output_channels=architecture.neck,
        initializer_range=0.02,  # the default, 1e-10, gives a network that says nothing
    )


def _random(architecture: Architecture, side: int) -> SamVisionModel:
    """Untrained weights."""
    from transformers.models.sam.modeling_sam import SamVisionModel

    model = SamVisionModel(_config(architecture, side))
    positions = model.vision_encoder.pos_embed
    assert positions is not None
    nn.init.normal_(positions, std=0.02)  # transformers leaves them zero
    return model


def _vision(architecture: Architecture, side: int, state: State, what: str) -> SamVisionModel:
    """The network with the weights of `state` (original keys), its positions interpolated to another side."""
    from transformers.models.sam.modeling_sam import SamVisionModel

    _check_architecture(architecture, state, what)
    with torch.device("meta"):  # no memory, no initialisation: every parameter is assigned below
        model = SamVisionModel(_config(architecture, side))
    weights, wrong = {}, []
    for key, own in model.state_dict().items():
        value = state.get(original_key(key))
        if value is not None:
            value = _resize_positions(value.float(), own.shape)
        if value is None or value.shape != own.shape:
            wrong.append(original_key(key))
        else:
            weights[key] = value
    if wrong:
        raise SamAdaptError(
            f"the checkpoint {what} lacks {len(wrong)} of {len(model.state_dict())} weights of the image encoder, or "
            f"has them in another shape, such as {wrong[0]!r}; give a complete SAM checkpoint"
        )
    model.load_state_dict(weights, assign=True)
    return model


def _check_architecture(architecture: Architecture, state: State, what: str) -> None:
    if "image_encoder.pos_embed" not in state:
        raise SamAdaptError(
            f"the checkpoint {what} has no 'image_encoder.pos_embed', so it is not SAM's; "
            f"it begins with {sorted(state)[:3]}"
        )
    width = state["image_encoder.pos_embed"].shape[-1]
    blocks = {key.split(".")[2] for key in state if key.split(".")[:2] == ["image_encoder", "blocks"]}
    if (width, len(blocks)) == (architecture.width, architecture.depth):
        return
    known = [n for n, a in _KNOWN.items() if (a.width, a.depth) == (width, len(blocks))]
    raise SamAdaptError(
        f"the checkpoint {what} is {known[0] if known else 'no known SAM'} ({len(blocks)} blocks, {width} wide); "
        f"{architecture.depth} blocks, {architecture.width} wide are expected: choose the encoder that fits it"
    )


def _resize_positions(value: Tensor, shape: torch.Size) -> Tensor:
    """Absolute positions (1, h, w, C) bicubically, relative ones (2 h - 1, c) linearly, as SAM's own
    `get_rel_pos` does; everything else, and what fits already, is returned as it is."""
    if value.shape == shape:
        return value
    if value.dim() == 4 and shape[0] == value.shape[0] == 1 and shape[3] == value.shape[3]:
        resized = F.interpolate(
            value.permute(0, 3, 1, 2), size=shape[1:3], mode="bicubic", align_corners=False
        )
        return resized.permute(0, 2, 3, 1).contiguous()
    if value.dim() == 2 and len(shape) == 2 and shape[1] == value.shape[1]:
        return F.interpolate(value.T[None], size=shape[0], mode="linear", align_corners=False)[
            0
        ].T.contiguous()
    return value


SAM_MODELS: dict[str, Model] = {
    model.name: model
    for model in (
        Model("sam_vit_b", VIT_B, HubModel("facebook/sam-vit-base", "70c1a07f894ebb5b307fd9eaaee97b9dfc16068f"), "sam",
              "SAM's ViT-B, 90 M parameters, side 1024 (facebook/sam-vit-base)."),
        Model("sam_vit_l", VIT_L, HubModel("facebook/sam-vit-large", "70009d56dac23ebb3265377257158b1d6ed4c802"), "sam",
              "SAM's ViT-L, 308 M parameters, side 1024 (facebook/sam-vit-large)."),
        Model("sam_vit_h", VIT_H, HubModel("facebook/sam-vit-huge", "87aecf0df4ce6b30cd7de76e87673c49644bdf67"), "sam",
              "SAM's ViT-H, 637 M parameters, side 1024 (facebook/sam-vit-huge)."),
        Model("medsam_vit_b", VIT_B, HubModel("wanglab/medsam-vit-base", "de8488bca37bb1d4fb190f612c516126d739ce3b"), "medsam",
              "MedSAM: SAM's ViT-B tuned on medical images, side 1024 (wanglab/medsam-vit-base)."),
    )
}  # fmt: skip
