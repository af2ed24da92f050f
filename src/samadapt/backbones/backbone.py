"""The contract of a classification network: named stages in a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import final

from torch import Tensor, nn

from samadapt import weights
from samadapt.types import Units
from samadapt.weights import State

After = Callable[[str, Tensor], Tensor]
Rename = Callable[[str], str]
#: Tensors that follow from the network's form.
_COMPUTED = ("relative_coords_table", "relative_position_index")


@final
class Backbone(nn.Module):
    """Stages applied one after the other, then a last normalisation. Pooling and classifier are the head's.

    Args:
        parts: name -> module, (B, C, h, w) -> (B, C', h', w'), in order.
        stages: name -> channels that the part gives.
        last: what follows the last stage before the global average.
        side: of the square input that the network was made for.
        rename: from the name of a published weight to ours, for `fill`.
        channels: of the map that comes out; None: as many as the last stage gives.
        units: (mean, deviation) of 0..255 in which the network wants its pictures; None: as they come.
    """

    def __init__(
        self,
        parts: Mapping[str, nn.Module],
        stages: Mapping[str, int],
        last: nn.Module | None = None,
        side: int = 224,
        rename: Rename = lambda key: key,
        channels: int | None = None,
        units: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        assert list(parts) == list(stages), "every stage declares its channels, in order"
        self.parts = nn.ModuleDict(parts)
        self.last = last or nn.Identity()
        self.stages, self.side, self.rename = dict(stages), side, rename
        self.channels = channels or list(self.stages.values())[-1]
        self.units = units

    def fill(self, state: State, source: str) -> None:
        """Overwrite the weights; a classifier, if the state has one, is left aside.

        Args:
            state: under the names of a published file of this network.
            source: where it comes from, for messages.
        """
        named = {self.rename(key): value for key, value in state.items()}
        own = self.state_dict()
        # Index tables and batch counts are computed, not learned, and stand in some published files only.
        chosen = {k: x for k, x in own.items() if not x.is_floating_point() or k.endswith(_COMPUTED)}
        for key in own.keys() & named.keys():
            # SENet's 1x1 convolutions are linear layers in MONAI.
            narrow = named[key].squeeze().shape == own[key].shape
            chosen[key] = named[key].squeeze() if narrow else named[key]
        cure = "give the weights of the same network; a small-input stem fits no published one"
        weights.fill(self, chosen, f"the file {source!r}", cure)

    def in_units(self, pictures: Tensor, units: Units) -> Tensor:
        """Pictures (B, 3, S, S) as an encoder prepared them, in its `units` -> in those that this network was trained on."""
        if self.units is None:
            return pictures
        means, deviations = (pictures.new_tensor(values).view(3, 1, 1) for values in units)
        mean, deviation = self.units
        return (pictures * deviations + means - mean) / deviation

    def forward(self, x: Tensor, after: After | None = None) -> Tensor:
        """(B, 3, S, S), in the units of the network -> (B, channels, h, w).

        Args:
            after: called with a stage's name and its map; what it returns goes on.
        """
        for name, part in self.parts.items():
            x = part(x)
            if after is not None:
                x = after(name, x)
        return self.last(x)
