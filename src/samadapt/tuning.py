"""What of the encoder is trained with the head: a table. Nothing else in samadapt asks for a tuning's name."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from samadapt.encoders import Extractor
from samadapt.runs import load_state, save_tensors, weights_file
from samadapt.types import SamAdaptError


class Tuning(ABC):
    """One way to train, or not to train, an encoder."""

    text: ClassVar[str]  # for people
    rate: ClassVar[float] = 1.0  # by which `--encoder-lr` is multiplied for what it trains
    file: ClassVar[str] = "encoder.safetensors"  # in the run folder, where the encoder is not frozen
    frozen: ClassVar[bool]  # whether the encoder's maps stay as they are, so that they can be stored
    #: Whether `save_to` leaves all of the network, so that its first weights are not needed.
    whole: ClassVar[bool] = False

    @abstractmethod
    def begin(self, extractor: Extractor) -> None:
        """Say which of the encoder's weights are trained; put in what is trained beside them."""

    def merge(self, extractor: Extractor) -> None:
        """Once it is trained: frozen again, and what was put in beside the weights a part of them, at no cost in time."""
        extractor.requires_grad_(False)

    @abstractmethod
    def tensors(self, extractor: Extractor) -> dict[str, Tensor]:
        """What the training changes of the encoder, by name: parameters, and buffers that go with them."""

    def kept(self, extractor: Extractor) -> Mapping[str, Tensor]:
        """What a run folder needs to have of the encoder, by name."""
        return extractor.network.state_dict()

    def save_to(self, extractor: Extractor, run: Path) -> None:
        """Leave what was trained in the run folder."""
        if not self.frozen:
            save_tensors(self.kept(extractor), run / self.file)

    def demand_saved(self, run: Path) -> None:
        """Whether what `save_to` left is still there."""
        if not self.frozen and not weights_file(run, self.file).is_file():
            raise SamAdaptError(
                f"{run} trained its encoder, and its {self.file} is missing; copy the whole run folder again"
            )

    def restore(self, extractor: Extractor, run: Path) -> None:
        """Put into a fresh encoder what `save_to` left."""
        self.demand_saved(run)
        if not self.frozen:
            load_state(extractor.network, run / self.file, self.kept(extractor).keys())


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


class LowRank(nn.Module):
    """A weight (O, ...) plus a product of two thin matrices, zero at first: the adapters of LoRA (arXiv 2106.09685)."""

    def __init__(self, weight: Tensor, rank: int, seed: int) -> None:
        super().__init__()
        outputs, inputs = weight.shape[0], weight[0].numel()
        drawn = torch.randn(rank, inputs, generator=torch.Generator().manual_seed(seed)) * inputs**-0.5
        self.down = nn.Parameter(drawn.to(weight))
        self.up = nn.Parameter(weight.new_zeros(outputs, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


@final
class Lora(Tuning):
    """The encoder's weights stay, and each large one gets a trained difference of low rank.

    Adapted are all linear layers and all convolutions that are not depthwise, where this is less to train than the weight.
    """

    text = "frozen, with trained low-rank adapters (LoRA)"
    frozen = False
    rate = 10.0  # new weights that start at zero; 1e-3 by default, as is usual for LoRA
    file = "adapters.safetensors"
    rank = 8

    def begin(self, extractor: Extractor) -> None:
        extractor.requires_grad_(False)
        for name, module in self.adapted(extractor.network):
            if not parametrize.is_parametrized(module):
                low = LowRank(module.weight, self.rank, zlib.crc32(name.encode()))
                parametrize.register_parametrization(module, "weight", low)
            module.parametrizations.weight[0].requires_grad_(True)  # type: ignore[union-attr, index]

    def adapted(self, network: nn.Module) -> list[tuple[str, nn.Linear | nn.Conv2d]]:
        """The layers, by name; the same before and after `begin`."""

        def is_large(module: nn.Module) -> bool:
            if not isinstance(module, nn.Linear | nn.Conv2d) or getattr(module, "groups", 1) > 1:
                return False
            weight = module.weight
            return weight.numel() > 2 * self.rank * (weight.shape[0] + weight[0].numel())

        return [(n, m) for n, m in network.named_modules() if is_large(m)]  # type: ignore[misc]

    def tensors(self, extractor: Extractor) -> dict[str, Tensor]:
        return trained_tensors(extractor.network)

    def kept(self, extractor: Extractor) -> Mapping[str, Tensor]:
        return self.tensors(extractor)

    def restore(self, extractor: Extractor, run: Path) -> None:
        self.begin(extractor)
        super().restore(extractor, run)

    def merge(self, extractor: Extractor) -> None:
        for _, module in self.adapted(extractor.network):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
        super().merge(extractor)


def trained_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Name -> parameter that an optimiser moves, or buffer that is saved with the module."""
    tensors = module.state_dict(keep_vars=True)
    return {n: x for n, x in tensors.items() if x.requires_grad or not isinstance(x, nn.Parameter)}


TUNINGS: dict[str, Tuning] = {"none": Frozen(), "all": Whole(), "lora": Lora()}
