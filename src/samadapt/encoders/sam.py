"""SAM's ViT image encoders and MedSAM's: the entries of the table, and how their weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from samadapt.encoders.checkpoints import read_sam
from samadapt.encoders.entry import EncoderEntry
from samadapt.encoders.sam_network import VIT_B, VIT_H, VIT_L, Architecture, SamViT
from samadapt.types import SamAdaptError, Taps
from samadapt.weights import HubModel, State, fill

_KNOWN = {"vit_b": VIT_B, "vit_l": VIT_L, "vit_h": VIT_H}


@final
@dataclass(frozen=True, kw_only=True)
class Sam(EncoderEntry):
    """A SAM ViT as an encoder."""

    architecture: Architecture
    version = "sam-2"

    @property
    def step(self) -> int:
        return self.architecture.patch

    def taps(self, side: int) -> Taps:
        a, grid = self.architecture, side // self.architecture.patch
        names = ["patch", *(f"block{i}" for i in range(a.depth))]
        return {**dict.fromkeys(names, (a.width, grid, grid)), "neck": (a.neck, grid, grid)}

    def network(self, side: int) -> SamViT:
        return SamViT(self.architecture, side).draw()

    def read(self, path: Path) -> State:
        return read_sam(path)

    def loaded(self, state: State, side: int, source: str) -> SamViT:
        return _filled(self.architecture, side, state, source)


# ---------------------------------------------------------------- building


def _filled(architecture: Architecture, side: int, state: State, what: str) -> SamViT:
    """The network with the weights of `state` (original keys), its positions interpolated to another side."""
    _check_architecture(architecture, state, what)
    with torch.device("meta"):  # no memory, no initialisation: every parameter is assigned below
        network = SamViT(architecture, side)
    own, prefix = network.state_dict(), "image_encoder."
    weights = {
        key.removeprefix(prefix): value.float() for key, value in state.items() if key.startswith(prefix)
    }
    fitted = {k: _resize_positions(x, own[k].shape) if k in own else x for k, x in weights.items()}
    fill(network, fitted, f"the checkpoint {what}", assign=True)
    return network


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


def _sam(name: str, architecture: Architecture, hub: HubModel, text: str, prepare: str = "sam") -> Sam:
    return Sam(
        name=name, text=text, side=architecture.side, prepare=prepare, published=hub, architecture=architecture,
        tiny=Sam(name=f"tiny_{prepare}", side=128, prepare=prepare, published=hub, architecture=_TINY),
    )  # fmt: skip


#: Four blocks, of which the second and the last attend globally.
_TINY = Architecture(width=32, depth=4, heads=2, global_blocks=(1, 3), side=128, window=3, neck=32)
SAM_MODELS = (
    _sam("sam_vit_b", VIT_B, HubModel("facebook/sam-vit-base", "70c1a07f894ebb5b307fd9eaaee97b9dfc16068f"),
         "SAM's ViT-B, 90 M parameters, side 1024 (facebook/sam-vit-base)."),
    _sam("sam_vit_l", VIT_L, HubModel("facebook/sam-vit-large", "70009d56dac23ebb3265377257158b1d6ed4c802"),
         "SAM's ViT-L, 308 M parameters, side 1024 (facebook/sam-vit-large)."),
    _sam("sam_vit_h", VIT_H, HubModel("facebook/sam-vit-huge", "87aecf0df4ce6b30cd7de76e87673c49644bdf67"),
         "SAM's ViT-H, 637 M parameters, side 1024 (facebook/sam-vit-huge)."),
    _sam("medsam_vit_b", VIT_B, HubModel("wanglab/medsam-vit-base", "de8488bca37bb1d4fb190f612c516126d739ce3b"),
         "MedSAM: SAM's ViT-B tuned on medical images, side 1024 (wanglab/medsam-vit-base).", "medsam"),
)  # fmt: skip
