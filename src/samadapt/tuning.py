"""What of the encoder is trained with the head: a table. Nothing else in samadapt asks for a tuning's name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, final

from torch import Tensor, nn

from samadapt.encoders import Extractor
from samadapt.runs import load_state, save_state
from samadapt.types import SamAdaptError

_WEIGHTS = "encoder.safetensors"  # of a run whose encoder was tuned


class Tuning(ABC):
    """One way to train, or not to train, an encoder."""

    text: ClassVar[str]  # for people
    frozen: ClassVar[bool]  # whether the encoder's maps stay as they are, so that they can be stored
    #: Whether `save_to` leaves all of the network, so that its first weights are not needed.
    whole: ClassVar[bool] = False

    @abstractmethod
    def begin(self, extractor: Extractor) -> None:
        """Say which of the encoder's weights are trained; put in what is trained beside them."""

    @abstractmethod
    def tensors(self, extractor: Extractor) -> dict[str, Tensor]:
        """What the training changes of the encoder, by name: parameters, and buffers that go with them."""

    def save_to(self, extractor: Extractor, run: Path) -> None:
        """Leave what was trained in the run folder."""
        if not self.frozen:
            save_state(extractor.network, run / _WEIGHTS)

    def restore(self, extractor: Extractor, run: Path) -> None:
        """Put into a fresh encoder what `save_to` left."""
        if self.frozen:
            return
        if not (run / _WEIGHTS).is_file():
            raise SamAdaptError(
                f"{run} tuned its encoder, and its {_WEIGHTS} is missing; copy the whole run folder again"
            )
        load_state(extractor.network, run / _WEIGHTS)


@final
class Frozen(Tuning):
    """Only the head is trained."""

    text = "frozen"
    frozen = True

    def begin(self, extractor: Extractor) -> None:
        extractor.requires_grad_(False)

    def tensors(self, extractor: Extractor) -> dict[str, Tensor]:
        return {}


@final
class Whole(Tuning):
    """All of the encoder is trained, at its own learning rate."""

    text = "trained too"
    frozen = False
    whole = True

    def begin(self, extractor: Extractor) -> None:
        extractor.requires_grad_(True)

    def tensors(self, extractor: Extractor) -> dict[str, Tensor]:
        return trained_tensors(extractor.network)


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Name -> parameter that an optimiser moves, or buffer of the module."""
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return parameters | dict(module.named_buffers())


TUNINGS: dict[str, Tuning] = {"none": Frozen(), "all": Whole()}
