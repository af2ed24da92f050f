"""The table of encoders. A new family is a subclass of `EncoderEntry`; a new encoder is an instance of one in here."""

from __future__ import annotations

from samadapt.encoders.dinov3 import DINOV3_MODELS
from samadapt.encoders.entry import EncoderEntry
from samadapt.encoders.imagenet import IMAGENET_MODELS
from samadapt.encoders.nano import SAM_NANO
from samadapt.encoders.pixels import PIXELS_ENCODER
from samadapt.encoders.sam import SAM_MODELS
from samadapt.encoders.sam2 import SAM2_MODELS
from samadapt.encoders.tiny_vit import TINY_VITS

ENCODERS: dict[str, EncoderEntry] = {
    entry.name: entry
    for entry in (
        PIXELS_ENCODER,
        SAM_NANO,
        *IMAGENET_MODELS,
        *SAM_MODELS,
        *SAM2_MODELS,
        *DINOV3_MODELS,
        *TINY_VITS,
    )
}
