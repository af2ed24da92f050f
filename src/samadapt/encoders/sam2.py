"""SAM 2.1's Hiera image encoders, through transformers' `Sam2VisionModel`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor, nn

from samadapt.encoders.hub import Architecture, hub_encoder
from samadapt.weights import HubModel

_STRIDES = {"stride4": 4, "stride8": 8, "neck": 16}  # of the pyramid's maps, the finest first
_STAGES = 4  # of a Hiera; each one doubles the width and the number of heads


@final
@dataclass(frozen=True)
class Sam2(Architecture):
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
        side: S unless another one is asked for.
    """

    width: int
    heads: int
    blocks: tuple[int, int, int, int]
    global_blocks: tuple[int, ...]
    background: int
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)
    neck: int = 256
    side: int = 1024

    family: ClassVar[str] = "sam2"
    model_types: ClassVar[tuple[str, ...]] = ("sam2_video", "sam2", "sam2_vision_model")
    prefix: ClassVar[str] = "vision_encoder."
    step: ClassVar[int] = (
        32  # the coarsest stride, and a window of learned positions: eight cells of four pixels
    )

    def taps(self, side: int) -> dict[str, tuple[int, int, int]]:
        return {tap: (self.neck, side // stride, side // stride) for tap, stride in _STRIDES.items()}

    def network(self) -> nn.Module:
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


# As facebookresearch/sam2 has them: sam2/configs/sam2.1/*.yaml, and the defaults of modeling/backbones/hieradet.py.
TINY = Sam2(96, 1, (1, 2, 7, 2), (5, 7, 9), background=7)
SMALL = Sam2(96, 1, (1, 2, 11, 2), (7, 10, 13), background=7)
BASE_PLUS = Sam2(112, 2, (2, 3, 16, 3), (12, 16, 20), background=14)

#: Five blocks, of which the fourth attends globally; windows that do not divide the grid of side 64.
_SMALLEST = Sam2(8, 1, (1, 1, 2, 1), (3,), background=7, windows=(8, 4, 6, 3), neck=16, side=128)

SAM2_MODELS = (
    hub_encoder("sam2_tiny", TINY, _SMALLEST, HubModel("facebook/sam2.1-hiera-tiny", "de431c4043854a71d8101e17995dfe596bf101a5"),
                "SAM 2.1's Hiera-T, 27 M parameters, side 1024, maps at strides 4 to 16 (facebook/sam2.1-hiera-tiny)."),
    hub_encoder("sam2_small", SMALL, _SMALLEST, HubModel("facebook/sam2.1-hiera-small", "ee5bba1d82bb8749febdf90f45e84b687142ba03"),
                "SAM 2.1's Hiera-S, 34 M parameters, side 1024, maps at strides 4 to 16 (facebook/sam2.1-hiera-small)."),
    hub_encoder("sam2_base_plus", BASE_PLUS, _SMALLEST, HubModel("facebook/sam2.1-hiera-base-plus", "b7320756a13354e7530a63935656d35b2f91a290"),
                "SAM 2.1's Hiera-B+, 69 M parameters, side 1024, maps at strides 4 to 16 (facebook/sam2.1-hiera-base-plus)."),
)  # fmt: skip
