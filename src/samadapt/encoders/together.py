"""Several encoders read as one: what they must agree on, and their networks side by side."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import final

import torch
from torch import Tensor, nn

from samadapt.encoders.entry import EncoderEntry
from samadapt.encoders.table import ENCODERS
from samadapt.types import SamAdaptError, encoder_names, tap_of


def find_entries(name: str) -> tuple[EncoderEntry, ...]:
    """The lines of the table that a name means: one, or those of "a+b", in that order."""
    names = encoder_names(name)
    for one in names:
        if one not in ENCODERS:
            within = f" in {name!r}" if one != name else ""
            raise SamAdaptError(f"unknown encoder {one!r}{within}; known: {', '.join(sorted(ENCODERS))}")
    entries = tuple(ENCODERS[one] for one in names)
    if len(names) > 1 and len(set(names)) < len(names):
        raise SamAdaptError(f"encoder {name!r} names one encoder twice; name each once")
    bare = [entry.name for entry in entries if not entry.taps(entry.side)]
    if len(names) > 1 and bare:
        raise SamAdaptError(
            f"encoder {bare[0]!r} gives no maps, so it cannot be read together with others in {name!r}; leave it out"
        )
    return entries


def common_side(entries: Sequence[EncoderEntry], side: int | None) -> int:
    """S for all of them; where none is asked for, their own, which must then be the same."""
    sides = [entry.fitted_side(side) for entry in entries]
    if len(set(sides)) > 1:
        told = ", ".join(f"{entry.name} {own}" for entry, own in zip(entries, sides, strict=True))
        raise SamAdaptError(
            f"encoders that are read together see one square, and these have different sides of their own ({told}); "
            "give --side"
        )
    return sides[0]


@final
class Together(nn.Module):
    """Networks side by side, each on its own three channels of the square: it gives their maps under `tap_of`.

    Args:
        networks: encoder -> network, in the order of the channels.
    """

    def __init__(self, networks: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict(dict(networks))

    def forward(self, x: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """(B, 3 * encoders, S, S) -> {tap: (B, C, h, w)}; a network of which nothing is wanted does not run."""
        found: dict[str, Tensor] = {}
        for (name, network), pixels in zip(self.networks.items(), torch.split(x, 3, dim=1), strict=True):
            prefix = tap_of(name, "")
            own = tuple(tap.removeprefix(prefix) for tap in wanted if tap.startswith(prefix))
            if own:
                found |= {tap_of(name, tap): y for tap, y in network(pixels, own).items()}
        return found
