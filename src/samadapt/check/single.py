"""What can be said of one case without the others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from samadapt.check.findings import Finding
from samadapt.check.measures import Measures
from samadapt.types import IGNORED, Case

_NEARLY_ALL = 0.995  # of the voxels have one value: hardly an image
_SAMPLE = 10_000


def check_case(case: Case, measures: Measures) -> Iterator[Finding]:
    """Constant channels and slices, slices that are repeated, and labels without a structure."""
    image = case.image.numpy()

    def warning(kind: str, found: str, advice: str, at: int | None = None) -> Finding:
        return Finding("warning", kind, found, advice, (case.id,), at)

    for channel, values in enumerate(image):
        if values.min() == values.max() and len(image) > 1:
            text = f"channel {channel} is constant ({values.flat[0]:g})"
            yield warning("constant image", text, "export the channel again, or leave it out (--channels)")
    flat = [d for d in range(image.shape[1]) if np.ptp(image[:, d], axis=(1, 2)).max() == 0]
    if flat:
        text = f"{len(flat)} of {image.shape[1]} slices are constant: {_listed(flat)}"
        yield warning(
            "constant slices",
            text,
            "look whether slices are missing; cut them off if they are empty",
            flat[0],
        )
    if measures.repeated:
        text = f"{len(measures.repeated)} slices are equal to the slice before them: {_listed(measures.repeated)}"
        yield warning("repeated slices", text, "export the scan again from its source", measures.repeated[0])
    share = _commonest_share(image)
    if share > _NEARLY_ALL:
        text = f"{share:.1%} of the voxels have the same value: hardly an image"
        yield warning("constant image", text, "export the image again")
    if case.label is not None and case.label.ndim == 3:
        yield from _label(case, measures)


def _label(case: Case, measures: Measures) -> Iterator[Finding]:
    assert case.label is not None
    if measures.classes:
        share = sum(of.voxels for of in measures.classes.values()) / case.label.numel()
        if share > _NEARLY_ALL:
            yield Finding(
                "warning", "full label", f"the label covers {share:.1%} of the voxels: there is hardly any background",
                "look at the overlay; are background and structure exchanged?", (case.id,),
            )  # fmt: skip
        return
    ignored = bool((case.label == IGNORED).any())
    yield Finding(
        "warning", "empty label",
        f"the label is empty: all voxels are background{' or unknown' if ignored else ''}",
        "draw the structures, or remove the label file; keep it if the structures are truly absent", (case.id,),
    )  # fmt: skip


def _listed(numbers: list[int] | tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")


def _commonest_share(image: np.ndarray) -> float:
    """The share of voxels with the most frequent value, which is estimated from a sample and counted in all voxels."""
    sample = image.ravel()[:: max(1, image.size // _SAMPLE)]
    values, counts = np.unique(sample, return_counts=True)
    return float(np.mean(image == values[counts.argmax()]))
