"""A few slices of every test case, small, so that the report can show the worst without data or torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from samadapt.figures import telling_slices
from samadapt.files import replacing
from samadapt.transforms import Window, apply_window
from samadapt.types import Case

_LARGEST = 320  # pixels along the longer side; larger slices are thinned out


class PreviewWriter:
    """Collects one method's answers on the telling slices of each case; image and truth are kept once for all.

    cases/<case>.npz: image (N, h, w) or (N, h, w, 3) uint8, truth (N, h, w) uint8, slices (N,)
    <cell>/slices.npz: <case> (N, h, w) uint8
    """

    def __init__(self, folder: Path, window: str) -> None:
        self.folder, self.window = folder, Window.parse(window)
        self.answers: dict[str, np.ndarray] = {}

    def keep(self, case: Case, answer: np.ndarray) -> None:
        """Remember the answer (D, H, W)."""
        assert case.label is not None
        truth = case.label.numpy()
        slices = telling_slices(truth)
        step = -(-max(truth.shape[1:]) // _LARGEST)
        self.answers[case.id] = answer[slices, ::step, ::step].astype(np.uint8)
        path = self.folder / f"{case.id}.npz"
        if path.is_file():
            return
        image = apply_window(case.image, self.window.fit(case.image)).numpy()[:, slices, ::step, ::step]
        shown = np.moveaxis(image, 0, -1) if len(image) == 3 else image[0]
        content: dict[str, np.ndarray] = {
            "image": shown.astype(np.uint8),
            "truth": truth[slices, ::step, ::step],
            "slices": np.array(slices),
        }
        _save(path, content)

    def write(self, path: Path) -> None:
        """Write the answers."""
        _save(path, self.answers)


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with replacing(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]
