"""DINOv3's ViTs, through transformers' `DINOv3ViTModel`: trained on web pictures without labels or masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from samadapt.encoders.hub import HubEncoder
from samadapt.types import Taps
from samadapt.weights import HubModel

_DEPTHS = 4  # evenly spaced, the last block's in: there the map is normalised and called `neck`


@final
@dataclass(frozen=True, kw_only=True)
class DinoV3(HubEncoder):
    """A ViT whose positions are rotations. Taps: `block2`, `block5` and `block8` of twelve (outputs), and `neck`.

    `neck` is the last block's output, normalised, under the name that every head knows. Only patches make maps: the
    class token and the registers are left out. Positions are shares of the picture, so that any multiple of a patch fits.

    Args:
        width: channels.
        heads: of its attention.
        depth: blocks.
        registers: tokens beside the class token and the patches.
    """

    width: int
    heads: int
    depth: int = 12
    registers: int = 4
    side: int = 512

    version = "dinov3-1"
    model_types = ("dinov3_vit",)
    prefix = "model."
    unused = frozenset({"embeddings.mask_token"})

    @property
    def step(self) -> int:
        return 16  # a patch

    @property
    def _blocks(self) -> list[int]:
        return [self.depth * (k + 1) // _DEPTHS - 1 for k in range(_DEPTHS - 1)]

    def taps(self, side: int) -> Taps:
        names = [*(f"block{i}" for i in self._blocks), "neck"]
        return dict.fromkeys(names, (self.width, side // self.step, side // self.step))

    def build(self) -> nn.Module:
        from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTModel  # slow to load

        model = DINOv3ViTModel(self.config())
        model.embeddings.register_parameter("mask_token", None)  # of the training only
        return model

    def config(self):
        """The network's settings, as transformers' `DINOv3ViTConfig`."""
        from transformers.models.dinov3_vit.configuration_dinov3_vit import DINOv3ViTConfig

        return DINOv3ViTConfig(
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_hidden_layers=self.depth,
            num_attention_heads=self.heads,
            num_register_tokens=self.registers,
            patch_size=self.step,
        )

    def maps(self, network: nn.Module, x: Tensor) -> dict[str, Tensor]:
        found = network(x, output_hidden_states=True)
        tokens = {f"block{i}": found.hidden_states[i + 1] for i in self._blocks}  # the first are the patches
        tokens["neck"] = found.last_hidden_state
        return {tap: self._to_map(y, x.shape[-2] // self.step) for tap, y in tokens.items()}

    def _to_map(self, tokens: Tensor, rows: int) -> Tensor:
        """(B, 1 + registers + h * w, C) -> (B, C, h, w)."""
        return tokens[:, 1 + self.registers :].unflatten(1, (rows, -1)).permute(0, 3, 1, 2)


_VIT_S = HubModel(
    "facebook/dinov3-vits16-pretrain-lvd1689m", "114c1379950215c8b35dfcd4e90a5c251dde0d32", gated=True
)
_TINY = DinoV3(name="tiny_dinov3", side=64, width=16, heads=2, depth=4, registers=3, published=_VIT_S)
DINOV3_MODELS = (
    DinoV3(name="dinov3_vits16", width=384, heads=6, tiny=_TINY,
           published=_VIT_S,
           text="DINOv3's ViT-S/16, 22 M parameters, side 512 (facebook/dinov3-vits16-pretrain-lvd1689m; accept its licence there first)."),
    DinoV3(name="dinov3_vitb16", width=768, heads=12, tiny=_TINY,
           published=HubModel("facebook/dinov3-vitb16-pretrain-lvd1689m", "5931719e67bbdb9737e363e781fb0c67687896bc", gated=True),
           text="DINOv3's ViT-B/16, 86 M parameters, side 512 (facebook/dinov3-vitb16-pretrain-lvd1689m; accept its licence there first)."),
)  # fmt: skip
