"""Pairs: what a learner sees, (features, target) of every slice."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from samadapt.features.maps import MapSpec
from samadapt.features.store import FeatureStore
from samadapt.transforms import identity_of, place_label, seeded
from samadapt.types import IDENTITY, PIXELS, Case, SamAdaptError
from samadapt.views import CaseView, View


class Cases(Protocol):
    """What training needs of a data set: cases by name, loaded when asked for, and what to write of them."""

    @property
    def ids(self) -> Sequence[str]: ...
    @property
    def window(self) -> str: ...
    @property
    def classes(self) -> Sequence[str]: ...
    @property
    def name(self) -> str: ...
    @property
    def hash(self) -> str: ...
    @property
    def opening(self) -> Any: ...
    def __len__(self) -> int: ...
    def case(self, case_id: str) -> Case: ...
    def label(self, case_id: str) -> Tensor | None: ...
    def demand_unchanged(self) -> None: ...


class _CaseCache:
    """The cases used last, up to a number of bytes: few-label training sets stay in memory as a whole."""

    def __init__(self, data: Cases, view: View, limit_bytes: int = 1 << 30) -> None:
        self.data, self.view, self.limit, self.size = data, view, limit_bytes, 0
        self.kept: OrderedDict[str, CaseView] = OrderedDict()

    def __call__(self, case_id: str) -> CaseView:
        """The case, its window fitted."""
        if case_id in self.kept:
            self.kept.move_to_end(case_id)
            return self.kept[case_id]
        seen = self.view.of(self.data.case(case_id))
        self.kept[case_id] = seen
        self.size += seen.case.image.nbytes
        while self.size > self.limit and len(self.kept) > 1:
            self.size -= self.kept.popitem(last=False)[1].case.image.nbytes
        return seen


class _DrawnCache:
    """Pictures and targets of the views that were drawn: stored views repeat. Half a gigabyte; full, it keeps what it has.

    No eviction: views are drawn evenly, so none is likelier to come again than another.
    """

    def __init__(self, limit_bytes: int = 1 << 29) -> None:
        self.left = limit_bytes
        self.kept: dict[object, tuple[Tensor | None, Tensor]] = {}

    def keep(self, key: object, pixels: Tensor | None, target: Tensor) -> None:
        size = target.nbytes + (pixels.nbytes if pixels is not None else 0)
        if size <= self.left:
            self.left -= size
            self.kept[key] = pixels, target


class Pairs:
    """(features, target) of every slice of every case, deterministic given a key.

    With a store, the taps come from disk, one of the stored views drawn per item. Without, `pixels` alone is given, and
    `encoder_in_loop` says whether they must pass the encoder (not where the head reads only pixels).

    Args:
        data: the cases; labelled ones for training.
        maps: which maps, views and augmentation.
        store: where `encode` put these maps.
    """

    def __init__(self, data: Cases, maps: MapSpec, store: FeatureStore | None = None) -> None:
        if len(data) == 0:
            raise SamAdaptError("no cases: a learner needs at least one labelled case")
        self.store = store if maps.taps else None
        self.encoder_in_loop = bool(maps.taps) and store is None
        self.data, self.maps = data, maps if self.store else dataclasses.replace(maps, views=1)
        self._cases = _CaseCache(data, maps.view)
        self.items: list[tuple[str, int]] = []  # (case id, slice)
        self._drawn = _DrawnCache()
        self._identities: dict[str, Tensor] = {}
        self._maps: dict[str, dict[str, np.ndarray]] = {}
        for case_id in data.ids:
            case = self._cases(case_id).case
            if self.store:
                self._maps[case_id] = self.store.read(case, self.maps)[0]
            self.items += [(case_id, index) for index in range(case.image.shape[1])]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        """The item as it is, not augmented."""
        return self.item(index, None)

    def item(self, index: int, key: tuple[object, ...] | None) -> tuple[dict[str, Tensor], Tensor]:
        """({tap: (C, h, w)}, target). The key draws the view; None is the image itself."""
        case_id, slice_index = self.items[index]
        number, augmented = 0, key is not None and self.maps.augmentation != "none"
        if augmented and self.store is not None:
            number = int(torch.randint(self.maps.views, (), generator=seeded("draw", *key)))  # type: ignore[misc]
        place = (case_id, slice_index, number)
        if augmented and self.store is None:
            pixels, target = self._draw(place, key)
        elif place in self._drawn.kept:
            pixels, target = self._drawn.kept[place]
        else:
            pixels, target = self._draw(place, place if number else None)
            self._drawn.keep(place, pixels, target)
        features: dict[str, Tensor] = {} if pixels is None else {PIXELS: pixels}
        for tap, maps in self._maps.get(case_id, {}).items():
            features[tap] = torch.from_numpy(maps[number, slice_index].astype(np.float32))
        if IDENTITY in self.maps.reads:
            case = self._cases(case_id).case
            features[IDENTITY] = self._identities.setdefault(case_id, identity_of(case))
        return features, target

    def _draw(
        self, place: tuple[str, int, int], key: tuple[object, ...] | None
    ) -> tuple[Tensor | None, Tensor]:
        """The picture, where it is read, and the target of a slice; the key draws the augmentation, if any."""
        case_id, slice_index, _ = place
        seen = self._cases(case_id)
        label = seen.case.label
        if label is None:
            raise SamAdaptError(f"case {case_id!r} has no label: it cannot be trained on")
        dense, reads_pixels = label.dim() == 3, self.store is None or PIXELS in self.maps.reads
        if not dense and not reads_pixels:
            return None, label
        pixels, frame, drawn = seen(slice_index, key)
        target = label if drawn is None else place_label(drawn, frame, len(self.data.classes))
        return pixels if reads_pixels else None, target

    def batch(
        self, indices: Sequence[int], key: tuple[object, ...] | None = None, first: int = 0
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Items stacked: ({tap: (B, C, h, w)}, (B, ...)); item i of the batch draws its view with (*key, first + i)."""
        items = [self.item(n, None if key is None else (*key, first + i)) for i, n in enumerate(indices)]
        features = {tap: torch.stack([f[tap] for f, _ in items]) for tap in items[0][0]}
        return features, torch.stack([target for _, target in items])
