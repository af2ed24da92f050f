"""View: the only road from a slice of a case to the pixels that an encoder sees, and the label that lies on them.

Window, augmentation and preparation, in this order; the way back is `transforms.to_original` with the `Frame`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from samadapt.transforms import Window, apply_window, build_augmentation, seeded
from samadapt.types import Case, Frame, SamAdaptError, Units
from samadapt.views.prepare import find_prepare, units_of


@dataclass(frozen=True)
class View:
    """How slices are seen: what is fitted to a case by `of`, and what is the same for all.

    Args:
        window: of the intensities, as `transforms.Window` reads it; fitted to each case as a whole.
        prepare: a name in `prepare.PREPARES`, or several joined by "+", for encoders that are read together.
        side: S, of the encoder's square.
        augmentation: a name in `transforms.AUGMENTATIONS`; drawn where a key is given.
        slices: 1, or 3: a grey slice is seen with the one before and the one after it, as the three colours of a picture.
    """

    window: str
    prepare: str
    side: int
    augmentation: str = "none"
    slices: int = 1

    def __post_init__(self) -> None:
        Window.parse(self.window)
        build_augmentation(self.augmentation)
        find_prepare(self.prepare)

    def of(self, case: Case) -> CaseView:
        """The slices of one case, its window fitted."""
        return CaseView(self, case)

    def preprocess(self, slice_: Tensor) -> tuple[Tensor, Frame]:
        """A slice (C, H, W) in 0..255, C 1 or 3 -> ((3, S, S) float32, where the slice lies in it).

        With several preparations it has three channels for each.
        """
        return find_prepare(self.prepare)(slice_, self.side)

    @property
    def units(self) -> Units:
        """Of the pixels: pixels * deviations + means is in 0..255."""
        return units_of(self.prepare)


@final
class CaseView:
    """One case as a view sees it."""

    def __init__(self, view: View, case: Case) -> None:
        self.view, self.case = view, case
        self._limits = Window.parse(view.window).fit(case.image)  # (C, 2)
        self._augmentation = build_augmentation(view.augmentation)
        if view.slices > 1 and len(case.image) != 1:
            raise SamAdaptError(
                f"case {case.id!r} has {len(case.image)} channels, and only of one channel can the neighbouring slices be shown as "
                "colours; train with --slices 1, or choose a channel (--channels)"
            )

    def windowed(self, index: int) -> Tensor:
        """A slice (C, H, W) in 0..255, as people look at it."""
        return apply_window(self.case.image[:, index], self._limits)

    def seen(self, index: int) -> Tensor:
        """What is shown of a slice: itself, or (3, H, W) with its neighbours; at an end it is its own neighbour."""
        if self.view.slices == 1:
            return self.windowed(index)
        last = self.case.image.shape[1] - 1
        return torch.cat([self.windowed(min(max(i, 0), last)) for i in (index - 1, index, index + 1)])

    def __call__(
        self, index: int, key: tuple[object, ...] | None = None
    ) -> tuple[Tensor, Frame, Tensor | None]:
        """(pixels (3, S, S), frame, label (H, W) or None where the case has no label map) of one slice.

        Args:
            key: draws the augmentation, the same for the same key; None leaves the slice as it is.
        """
        slice_, case = self.seen(index), self.case
        label = case.label[index] if case.label is not None and case.label.dim() == 3 else None
        if key is not None and self._augmentation is not None:
            slice_, label = self._augmentation(slice_, label, seeded("view", *key), self.view.side)
        pixels, frame = self.view.preprocess(slice_)
        return pixels, frame, label
