"""A scan as the page can show it where a browser cannot read the file."""

from __future__ import annotations

import numpy as np
from PIL import Image

from samadapt import io
from samadapt.files import replacing, taken_out
from samadapt.serving.answers import Answer
from samadapt.serving.asked import Asked


def as_shown(asked: Asked) -> Answer:
    """NIfTI of the first channel of a volume, on the grid of its label maps; PNG of a picture, within the model's window."""
    assert asked.input is not None
    case = asked.input.load()
    if case.affine is not None:
        stored = io.to_file_axes(np.asarray(case.image[0]), case)
        path = io.write_volume(asked.folder / "view.nii.gz", stored, case.affine)
        return Answer(taken_out(path), "application/gzip", path.name)
    shown = asked.model.first.view.of(case).windowed(0).numpy()  # (C, H, W), 0..255
    pixels = shown.round().clip(0, 255).astype(np.uint8)
    path = asked.folder / "view.png"
    with replacing(path) as temporary:
        Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).save(temporary)
    return Answer(taken_out(path), "image/png", path.name)
