"""DINOv3's ViTs, through transformers' `DINOv3ViTModel`: trained on web pictures without labels or masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor, nn

from samadapt.encoders.hub import Architecture, hub_encoder
from samadapt.weights import HubModel

_DEPTHS = 4  # evenly spaced, the last block's in: there the map is normalised and called `neck`


@final
@dataclass(frozen=True)
class DinoV3(Architecture):
    """A ViT whose positions are rotations. Taps: `block2`, `block5` and `block8` of twelve (outputs), and `neck`.

    `neck` is the last block's output, normalised, under the name that every head knows. Only patches make maps: the
    class token and the registers are left out.

    Args:
        width: channels.
        heads: of its attention.
        depth: blocks.
        registers: tokens beside the class token and the patches.
        side: S unless another one is asked for; positions are shares of the picture, so that any multiple of a patch fits.
    """

    width: int
    heads: int
    depth: int = 12
    registers: int = 4
    side: int = 512

    family: ClassVar[str] = "dinov3"
    model_types: ClassVar[tuple[str, ...]] = ("dinov3_vit",)
    prefix: ClassVar[str] = "model."
    unused: ClassVar[frozenset[str]] = frozenset({"embeddings.mask_token"})
    step: ClassVar[int] = 16  # a patch

    @property
    def _blocks(self) -> list[int]:
        return [self.depth * (k + 1) // _DEPTHS - 1 for k in range(_DEPTHS - 1)]

    def taps(self, side: int) -> dict[str, tuple[int, int, int]]:
        names = [*(f"block{i}" for i in self._blocks), "neck"]
        return dict.fromkeys(names, (self.width, side // self.step, side // self.step))

    def network(self) -> nn.Module:
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


_SMALLEST = DinoV3(16, 2, depth=4, registers=3, side=64)

DINOV3_MODELS = (
    hub_encoder("dinov3_vits16", DinoV3(384, 6), _SMALLEST,
                HubModel("facebook/dinov3-vits16-pretrain-lvd1689m", "114c1379950215c8b35dfcd4e90a5c251dde0d32", gated=True),
                "DINOv3's ViT-S/16, 22 M parameters, side 512 (facebook/dinov3-vits16-pretrain-lvd1689m; accept its licence there first)."),
    hub_encoder("dinov3_vitb16", DinoV3(768, 12), _SMALLEST,
                HubModel("facebook/dinov3-vitb16-pretrain-lvd1689m", "5931719e67bbdb9737e363e781fb0c67687896bc", gated=True),
                "DINOv3's ViT-B/16, 86 M parameters, side 512 (facebook/dinov3-vitb16-pretrain-lvd1689m; accept its licence there first)."),
)  # fmt: skip
