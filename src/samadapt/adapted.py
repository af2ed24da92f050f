"""AdaptedModel: an encoder and a head as one network. Training, prediction, export and server hold this and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from samadapt.encoders import EncoderSpec, Extractor
from samadapt.types import PIXELS, Head


@final
class AdaptedModel(nn.Module):
    """(B, 3, S, S) -> logits, (B, K, any, any) or (B, K); three channels for each of several encoders.

    The encoder's network is loaded when it is first needed: where all maps come from a store, it never is.

    Args:
        spec: the encoder whose maps the head reads.
        head: the trainable part.
    """

    def __init__(self, spec: EncoderSpec, head: Head) -> None:
        super().__init__()
        self.spec, self.head = spec, head
        self.extractor: Extractor | None = None
        self.encoder_trained = 0  # parameters of the encoder that a finished training changed

    @property
    def device(self) -> torch.device:
        """Where the head is."""
        return next((p.device for p in self.head.parameters()), torch.device("cpu"))

    def load(self, drawn: bool = False) -> Extractor:
        """The encoder's network with what the head reads of it, loaded once, on the head's device; in evaluation mode.

        Args:
            drawn: with untrained weights, since others will be put in.
        """
        if self.extractor is None:
            self.extractor = self.spec.load(self.head.reads, self.device, drawn)
        return self.extractor

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.features({PIXELS: pixels}))

    def features(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the head reads: as it is given, and from the encoder where it is not.

        Args:
            given: {tap: (B, C, h, w)}; stored maps are pooled already. Without all of them, `pixels` at least.
        """
        if set(self.head.reads) <= set(given):
            return dict(given)
        extractor = self.load()
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_encoder):
            return {**extractor(given[PIXELS]), **given}

    @property
    def trains_encoder(self) -> bool:
        """Whether any weight of the encoder is trained."""
        return self.extractor is not None and any(p.requires_grad for p in self.extractor.parameters())

    def train(self, mode: bool = True) -> AdaptedModel:
        """A pretrained encoder keeps its batch statistics, tuned or not: those of a few patients tell of these alone.

        One patient of ACDC, `sam_nano` tuned, others of the label pool scored: Dice 0.55 with them kept, 0.51 without.
        """
        super().train(mode)
        if self.extractor is not None and (self.spec.pretrained or not self.trains_encoder):
            self.extractor.eval()
        return self
