"""Synthetic photographs of skin with one spot, regular or irregular: a classification data set for tests and benchmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage


def make_photo_phantom(out: str | Path, images: int = 80, seed: int = 0, size: int = 96) -> Path:
    """Write photographs of skin in class folders: `train/` and `test/` (a quarter), `regular` and `irregular`.

    An irregular spot has a ragged contour and several colours; hairs, light and skin vary in both classes. The
    spot's mask lies in `masks/`, for whoever asks where a classifier looked.
    """
    out = Path(out)
    if images < 8 or size < 32:
        raise ValueError(f"{images} images of size {size}; expected at least 8 of 32")
    for number in range(images):
        rng = np.random.default_rng([seed, number])
        irregular = number % 2 == 1
        photo, spot = _photo(rng, irregular, size)
        part = "test" if number % 8 in (6, 7) else "train"
        name = f"spot{number:03d}.png"
        write_photo(out / part / ("irregular" if irregular else "regular") / name, photo)
        write_photo(out / "masks" / name, (spot * 255).astype(np.uint8))
    return out


def write_photo(path: Path, array: np.ndarray) -> None:
    """(H, W) or (H, W, 3) uint8 -> a PNG as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def _photo(rng: np.random.Generator, irregular: bool, size: int) -> tuple[np.ndarray, np.ndarray]:
    """((H, W, 3) uint8, (H, W) bool of the spot)."""
    line = np.linspace(-1, 1, size)
    y, x = line[:, None], line[None, :]
    skin = np.array([225.0, 175.0, 150.0]) * rng.uniform(0.6, 1.08) * rng.uniform(0.94, 1.06, 3)
    cx, cy = rng.uniform(-0.25, 0.25, 2)
    angle, radius = np.arctan2(y - cy, x - cx), np.hypot(x - cx, y - cy)
    ragged = rng.uniform(0.07, 0.2) if irregular else rng.uniform(0.015, 0.05)
    waves = [rng.normal() * np.cos(k * angle + rng.uniform(0, 6.3)) / np.sqrt(k) for k in range(1, 9)]
    contour = rng.uniform(0.32, 0.55) * (1 + ragged * np.sum(waves, 0))
    spot = radius < contour
    soft = 1 / (1 + np.exp((radius - contour) / rng.uniform(0.015, 0.05)))
    brown = skin * np.array([0.5, 0.4, 0.38]) * rng.uniform(0.75, 1.25)
    colour = np.broadcast_to(brown, (size, size, 3)).copy()
    for _ in range(int(rng.integers(2, 5)) if irregular else int(rng.integers(0, 2))):
        bx, by = cx + rng.uniform(-0.3, 0.3), cy + rng.uniform(-0.3, 0.3)
        blotch = np.exp(-((x - bx) ** 2 + (y - by) ** 2) / (2 * rng.uniform(0.08, 0.16) ** 2))[..., None]
        tint = skin * rng.uniform([0.15, 0.12, 0.15], [0.75, 0.4, 0.55])
        colour = colour * (1 - 0.8 * blotch) + tint * 0.8 * blotch
    photo = skin * (1 - soft[..., None]) + colour * soft[..., None]
    for _ in range(int(rng.integers(0, 6))):  # hairs
        slope, start, bend = rng.uniform(-1, 1), rng.uniform(-1, 1), rng.uniform(-0.3, 0.3)
        hair = np.abs(y - start - slope * x - bend * x**2) < 0.9 / size
        photo[hair] *= 0.4
    light = (
        1 + rng.uniform(-0.15, 0.15) * x + rng.uniform(-0.15, 0.15) * y - rng.uniform(0, 0.25) * (x**2 + y**2)
    )
    photo = photo * light[..., None] + ndimage.gaussian_filter(rng.normal(0, 14, (size, size, 1)), (1, 1, 0))
    photo += rng.normal(0, 4, photo.shape)
    return np.clip(photo, 0, 255).astype(np.uint8), np.broadcast_to(spot, (size, size))
