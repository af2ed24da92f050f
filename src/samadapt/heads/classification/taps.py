"""Which of an encoder's maps gates which stage, and how large a tap is once it is pooled."""

from __future__ import annotations

from collections.abc import Sequence

from samadapt.heads.options import Taps, tap_shape
from samadapt.transforms import pooled_size
from samadapt.types import PIXELS, SamAdaptError


def five_taps(taps: Taps) -> list[str]:
    """Patch, early, middle, late, neck: by position in the encoder's own order.

    The last map is the neck. Of the maps before it come the first, those a quarter and a half of the way up,
    and the last: for a SAM ViT its patch embedding and, of four global-attention blocks, the first, the second
    and the fourth. An encoder of five maps gives all of them, one of fewer repeats some.
    """
    maps = [tap for tap in taps if tap != PIXELS]
    if not maps:
        raise SamAdaptError(
            f"head 'slca' needs a map of the encoder, which gives {sorted(taps)}; choose an encoder such as "
            "sam_nano, or the head 'se', which gates with its own maps"
        )
    if len(maps) == 5:
        return maps
    body = maps[:-1] or maps
    top = len(body) - 1
    return [body[0], body[top // 4], body[top // 2], body[top], maps[-1]]


def taps_of_stages(
    taps: Taps, stages: Sequence[str], gated: Sequence[str], chosen: Sequence[str] | None
) -> dict[str, str]:
    """{gated stage: tap}.

    Args:
        stages: all stages of the network: a stage keeps its tap whichever others are gated.
        chosen: one tap for all gated stages, or one for each in order; None: `five_taps`, spread over `stages`.
    """
    if chosen is None:
        five = five_taps(taps)
        last = max(len(stages) - 1, 1)
        spread = {stage: five[round(4 * i / last)] for i, stage in enumerate(stages)}
        return {stage: spread[stage] for stage in gated}
    for tap in chosen:
        tap_shape("slca", taps, tap)
    names = list(chosen) * len(gated) if len(chosen) == 1 else list(chosen)
    if len(names) != len(gated) or PIXELS in names:
        raise SamAdaptError(
            f"head 'slca' gates {len(gated)} stages ({', '.join(gated)}) and was given the taps {list(chosen)}; "
            f"give one map for each, or one for all, of {', '.join(t for t in taps if t != PIXELS)}"
        )
    return dict(zip(gated, names, strict=True))


def pooled_shape(shape: tuple[int, int, int], window: int) -> tuple[int, int, int]:
    """(C, h, w) of a tap after pooling, as every head receives it."""
    channels, height, width = shape
    return channels, *pooled_size((height, width), window)
