"""Published weights into a backbone."""

from __future__ import annotations

from torch import Tensor

from samadapt.backbones.backbone import Backbone
from samadapt.types import SamAdaptError
from samadapt.weights import State


def fill_backbone(backbone: Backbone, state: State, source: str) -> None:
    """Overwrite the backbone's weights; its classifier, if the state has one, is left aside.

    Args:
        state: under the names of a published file of this network.
        source: where it comes from, for messages.
    """
    state = {backbone.rename(key): value for key, value in state.items()}
    own = backbone.state_dict()
    # Index tables are computed, not learned, and stand in some published files only; batch counts likewise.
    learned = {key for key, value in own.items() if value.is_floating_point() and _learned(key)}
    missing = sorted(key for key in learned if key not in state)
    if missing:
        raise SamAdaptError(
            f"weights {source!r} lack {len(missing)} of {len(learned)} tensors of this backbone, the first is "
            f"{missing[0]!r}; give the weights of the same network"
        )
    chosen = {key: _fitted(key, state[key], own[key], source) for key in own if key in state}
    backbone.load_state_dict(own | chosen)


def _learned(key: str) -> bool:
    return not key.endswith(("relative_coords_table", "relative_position_index"))


def _fitted(key: str, value: Tensor, own: Tensor, source: str) -> Tensor:
    if value.shape == own.shape:
        return value
    if value.squeeze().shape == own.shape:  # SENet's 1x1 convolutions are linear layers in MONAI
        return value.squeeze()
    raise SamAdaptError(
        f"weights {source!r}: {key!r} is {tuple(value.shape)}, the backbone's is {tuple(own.shape)}; "
        "give the weights of the same network (a small-input stem fits no published one)"
    )
