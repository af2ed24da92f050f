"""MapSpec: which maps of a case are meant."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from samadapt.encoders import EncoderSpec
from samadapt.transforms import build_augmentation, pooled_size
from samadapt.types import SamAdaptError, by_encoder, encoder_taps
from samadapt.views import View

_FORMAT = 3  # change it when the meaning of the stored numbers changes


@dataclass(frozen=True)
class MapSpec:
    """Which maps of a case are meant: everything that decides their numbers except the image.

    Args:
        encoder: whose maps.
        reads: tap -> pooling window, as a head declares it; `pixels` is never stored, for it is computed from the
            image faster than it would be read.
        window: of the intensities.
        views: how many views of a slice are stored; view 0 is the image itself.
        augmentation: draws the other views; without a store, a new one every time.
    """

    encoder: EncoderSpec
    reads: Mapping[str, int]
    window: str = "percentile"
    views: int = 1
    augmentation: str = "none"

    def __post_init__(self) -> None:
        self.encoder.view(self.window, self.augmentation)  # refuses unknown names
        if self.views < 1:
            raise SamAdaptError(f"views is {self.views}; expected at least 1 (view 0 is the image itself)")
        if self.views > 1 and self.augmentation == "none":
            raise SamAdaptError(
                f"{self.views} views without augmentation are {self.views} times the same image"
            )
        unknown = sorted(set(self.taps) - set(self.encoder.taps))
        if unknown:
            raise SamAdaptError(f"the encoder does not give {unknown}; it gives {sorted(self.encoder.taps)}")

    @property
    def taps(self) -> dict[str, int]:
        """Those of `reads` that are stored."""
        return encoder_taps(self.reads)

    @property
    def parts(self) -> dict[str, MapSpec]:
        """What is read of each encoder, as a reader of this encoder alone would name it; see `EncoderSpec.parts`."""
        encoders = self.encoder.parts
        if len(encoders) == 1:
            return {"": self}
        return {
            name: dataclasses.replace(self, encoder=encoders[name], reads=reads)
            for name, reads in by_encoder(self.reads).items()
        }

    @property
    def view(self) -> View:
        """How its slices are seen."""
        return self.encoder.view(self.window, self.augmentation)

    @property
    def unaugmented(self) -> MapSpec:
        """View 0 alone, as for cases that are scored."""
        return dataclasses.replace(self, views=1, augmentation="none")

    @property
    def bytes_per_slice(self) -> int:
        """What all views of one slice take in a store."""
        cells = 0
        for tap, window in self.taps.items():
            channels, *size = self.encoder.taps[tap]
            rows, columns = pooled_size((size[0], size[1]), window)
            cells += channels * rows * columns
        return 2 * self.views * cells  # float16

    @property
    def key(self) -> str:
        """Names the folder of a store: whatever differs in the numbers differs in here. Of one encoder: see `parts`."""
        augmentation = repr(build_augmentation(self.augmentation if self.views > 1 else "none"))
        text = json.dumps([_FORMAT, self.encoder.fingerprint, self.window, augmentation])
        return hashlib.sha256(text.encode()).hexdigest()[:16]
