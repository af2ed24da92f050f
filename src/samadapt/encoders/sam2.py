"""SAM 2.1's Hiera image encoders, through transformers' `Sam2VisionModel`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from samadapt.encoders.hub import HubEncoder
from samadapt.types import Taps
from samadapt.weights import HubModel

_STRIDES = {"stride4": 4, "stride8": 8, "neck": 16}  # of the pyramid's maps, the finest first
_STAGES = 4  # of a Hiera; each one doubles the width and the number of heads


@final
@dataclass(frozen=True, kw_only=True)
class Sam2(HubEncoder):
    """A Hiera and its feature pyramid. Taps: the pyramid's maps `stride4`, `stride8` and, at stride 16, `neck`.

    What SAM 2 adds to `neck` for a picture without a memory of others is one vector for all cells; it is left out.

    Args:
        width: channels of the first stage.
        heads: of its attention.
        blocks: of each stage.
        global_blocks: those that attend to the whole picture, counted through all stages.
        background: the positions are learned for so many cells along a side, and interpolated to any other number.
        windows: cells along the side of a window in each stage.
        neck: channels of the pyramid's maps.
    """

    width: int
    heads: int
    blocks: tuple[int, int, int, int]
    global_blocks: tuple[int, ...]
    background: int
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)
    neck: int = 256
    side: int = 1024

    version = "sam2-1"
    model_types = ("sam2_video", "sam2", "sam2_vision_model")
    prefix = "vision_encoder."

    @property
    def step(self) -> int:
        return 32  # the coarsest stride, and a window of learned positions: eight cells of four pixels

    def taps(self, side: int) -> Taps:
        return {tap: (self.neck, side // stride, side // stride) for tap, stride in _STRIDES.items()}

    def build(self) -> nn.Module:
        from transformers.models.sam2.modeling_sam2 import Sam2VisionModel  # slow to load

        model = Sam2VisionModel(self.config())
        for positions in (model.backbone.pos_embed, model.backbone.pos_embed_window):
            nn.init.normal_(positions, std=0.02)  # transformers leaves them zero
        return model

    def config(self):
        """The network's settings, as transformers' `Sam2VisionConfig`."""
        from transformers.models.sam2.configuration_sam2 import Sam2HieraDetConfig, Sam2VisionConfig

        widths = [self.width << stage for stage in range(_STAGES)]
        backbone = Sam2HieraDetConfig(
            hidden_size=self.width,
            num_attention_heads=self.heads,
            window_positional_embedding_background_size=[self.background, self.background],
            blocks_per_stage=list(self.blocks),
            embed_dim_per_stage=widths,
            num_attention_heads_per_stage=[self.heads << stage for stage in range(_STAGES)],
            window_size_per_stage=list(self.windows),
            global_attention_blocks=list(self.global_blocks),
        )
        return Sam2VisionConfig(
            backbone_config=backbone, backbone_channel_list=widths[::-1], fpn_hidden_size=self.neck
        )

    def maps(self, network: nn.Module, x: Tensor) -> dict[str, Tensor]:
        return dict(zip(_STRIDES, network(x).fpn_hidden_states, strict=True))


_HIERA_T = HubModel("facebook/sam2.1-hiera-tiny", "de431c4043854a71d8101e17995dfe596bf101a5")
#: Five blocks, of which the fourth attends globally; windows that do not divide the grid of side 64.
_TINY = Sam2(
    name="tiny_sam2", side=128, width=8, heads=1, blocks=(1, 1, 2, 1), global_blocks=(3,), background=7,
    windows=(8, 4, 6, 3), neck=16, published=_HIERA_T,
)  # fmt: skip
# As facebookresearch/sam2 has them: sam2/configs/sam2.1/*.yaml, and the defaults of modeling/backbones/hieradet.py.
SAM2_MODELS = (
    Sam2(name="sam2_tiny", width=96, heads=1, blocks=(1, 2, 7, 2), global_blocks=(5, 7, 9), background=7, tiny=_TINY,
         published=_HIERA_T,
         text="SAM 2.1's Hiera-T, 27 M parameters, side 1024, maps at strides 4 to 16 (facebook/sam2.1-hiera-tiny)."),
    Sam2(name="sam2_small", width=96, heads=1, blocks=(1, 2, 11, 2), global_blocks=(7, 10, 13), background=7, tiny=_TINY,
         published=HubModel("facebook/sam2.1-hiera-small", "ee5bba1d82bb8749febdf90f45e84b687142ba03"),
         text="SAM 2.1's Hiera-S, 34 M parameters, side 1024, maps at strides 4 to 16 (facebook/sam2.1-hiera-small)."),
    Sam2(name="sam2_base_plus", width=112, heads=2, blocks=(2, 3, 16, 3), global_blocks=(12, 16, 20), background=14, tiny=_TINY,
         published=HubModel("facebook/sam2.1-hiera-base-plus", "b7320756a13354e7530a63935656d35b2f91a290"),
         text="SAM 2.1's Hiera-B+, 69 M parameters, side 1024, maps at strides 4 to 16 (facebook/sam2.1-hiera-base-plus)."),
)  # fmt: skip
