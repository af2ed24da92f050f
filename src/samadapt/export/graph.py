"""A trained model as a graph that other programs run: (B, channels, S, S) pixels -> logits, or as encoder and head apart."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from samadapt.adapted import AdaptedModel
from samadapt.encoders import FLOAT32
from samadapt.transforms import pool_taps
from samadapt.types import IDENTITY, PIXELS, Head, SamAdaptError, encoder_taps

LOGITS = "logits"  # the name of what a graph answers
_EXAMPLE = 2  # pictures in the example batch: with a single one, torch takes the size of the batch for fixed


@final
class _Whole(nn.Module):
    """Encoder and head as one: pixels -> logits."""

    def __init__(self, model: AdaptedModel) -> None:
        super().__init__()
        self.network, self.head = model.load().network, model.head
        self.reads = encoder_taps(model.head.reads)

    def forward(self, pixels: Tensor) -> Tensor:
        maps = pool_taps(self.network(pixels, tuple(self.reads)), self.reads) if self.reads else {}
        return self.head({PIXELS: pixels, **maps})


@final
class _Encoder(nn.Module):
    """Pixels -> every map of the encoder as it is, so that any head can share the file."""

    def __init__(self, model: AdaptedModel) -> None:
        super().__init__()
        self.network, self.taps = model.load().network, _own_taps(model)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        maps = self.network(pixels, self.taps)
        return tuple(maps[tap] for tap in self.taps)


@final
class _Head(nn.Module):
    """The maps that a head reads, not pooled yet, and the pixels where it reads them -> logits."""

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head, self.taps = head, tuple(head.reads)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        return self.head(pool_taps(dict(zip(self.taps, maps, strict=True)), self.head.reads))


def _own_taps(model: AdaptedModel) -> tuple[str, ...]:
    return tuple(tap for tap in model.spec.taps if tap != PIXELS)


def demand_exportable(model: AdaptedModel) -> None:
    """Refuse a model whose answers no graph of fixed operations gives.

    Raises:
        SamAdaptError: with the reason.
    """
    if IDENTITY in model.head.reads:
        raise SamAdaptError(
            f"head {model.head.spec['name']!r} with these options is a control that lends every image the maps of another one, "
            "which no exported graph can look up; controls are for studies: export the head without the control"
        )
    if model.spec.dtype != FLOAT32:
        raise SamAdaptError(
            f"encoder {model.spec.name!r} of this run computes in {model.spec.dtype}, and exported graphs compute in {FLOAT32}, "
            "which gives other maps; train with --encoder-precision 32 to export"
        )


def demand_parts(model: AdaptedModel) -> None:
    """Refuse to export an encoder apart where the head reads none."""
    if model.head.pixels_only:
        raise SamAdaptError(
            f"head {model.head.spec['name']!r} reads pixels and no encoder, so there are no two parts; leave out --parts"
        )


def whole(model: AdaptedModel) -> ExportedProgram:
    """The model as one graph with the input `pixels`."""
    return _trace(_Whole(model), _example(model))


def encoder_part(model: AdaptedModel) -> tuple[ExportedProgram, tuple[str, ...]]:
    """The encoder's graph, and the names of the maps that it gives, in order."""
    return _trace(_Encoder(model), _example(model)), _own_taps(model)


def head_part(model: AdaptedModel) -> tuple[ExportedProgram, tuple[str, ...]]:
    """The head's graph, and the names of the maps that it takes, in order."""
    part = _Head(model.head)
    shapes = {tap: model.spec.taps[tap] for tap in part.taps}
    return _trace(part, [torch.randn(_EXAMPLE, *shape) for shape in shapes.values()]), part.taps


def _example(model: AdaptedModel) -> Tensor:
    return torch.randn(_EXAMPLE, *model.spec.taps[PIXELS])


def _trace(module: nn.Module, example: Tensor | list[Tensor]) -> ExportedProgram:
    """With gradients enabled: without them encoders work a tile at a time, which fixes the size of the batch."""
    batch = {0: Dim("batch", min=1)}
    shapes = batch if isinstance(example, Tensor) else [batch] * len(example)
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its own insides
        try:
            return torch.export.export(module.eval(), (example,), dynamic_shapes=(shapes,), strict=False)
        except SamAdaptError:
            raise
        except Exception as error:  # torch raises many kinds
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise SamAdaptError(
                f"the model cannot be exported: torch.export says of it {reason!r} ({type(error).__name__}); this is a limit of its "
                "head or encoder, so use it through samadapt, or report it"
            ) from error
