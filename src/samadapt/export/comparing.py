"""Whether an exported model answers as the run that it came from, on whole cases."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from samadapt import io
from samadapt.files import replacing
from samadapt.inputs import Taken, find_inputs, split_of
from samadapt.opening import Opening
from samadapt.prediction import Classifier, Segmenter
from samadapt.transforms import Window
from samadapt.types import Case, SamAdaptError

#: The share of voxels in which label maps may differ: one of ten thousand, where two classes are as good as equally likely.
MOST_VOXELS = 1e-4
#: By how much a probability may differ.
MOST_PROBABILITY = 1e-4
#: A case and its files -> (D, H, W) label map or (K,) probabilities.
Answer = Callable[[Case, tuple[Path, ...]], np.ndarray]


@dataclass
class Comparison:
    """What the same cases gave in both."""

    what: str  # the cases
    segments: bool
    cases: int = 0
    voxels: int = 0
    differing: int = 0  # voxels, or cases of another class
    foreground: int = 0  # voxels of the run's own answers
    largest: float = 0.0  # difference of a probability

    @property
    def share(self) -> float:
        """Of voxels that differ."""
        return self.differing / self.voxels if self.voxels else 0.0

    @property
    def holds(self) -> bool:
        """Whether the answers are those of the run."""
        if self.segments:
            return self.share <= MOST_VOXELS
        return self.differing == 0 and self.largest <= MOST_PROBABILITY

    def to_json(self) -> dict[str, Any]:
        """Without the names of cases, which may be those of patients."""
        return {"holds": self.holds, **{k: v for k, v in dataclasses.asdict(self).items() if k != "what"}}

    @property
    def text(self) -> str:
        """In a line."""
        where = f"{self.cases} case{'s'[: self.cases != 1]} ({self.what})"
        if not self.segments:
            return f"{where}: probabilities differ by {self.largest:.1e} at most, and {self.differing} cases are of another class"
        seen = f"{self.voxels} voxels, {self.foreground} of them of a structure"
        if not self.differing:
            return f"{where}: all voxels equal ({seen})"
        return f"{where}: {self.differing} voxels differ, a share of {self.share:.1e} ({seen})"

    def add(self, expected: np.ndarray, found: np.ndarray) -> None:
        """One case, as the run answers and as the export does."""
        self.cases += 1
        if expected.shape != found.shape:
            raise SamAdaptError(
                f"the exported model answers with {found.shape} where the run answers with {expected.shape}; nothing was exported: "
                "report this"
            )
        if self.segments:
            self.voxels += expected.size
            self.foreground += int((expected > 0).sum())
            self.differing += int((expected != found).sum())
        else:
            self.largest = max(self.largest, float(np.abs(expected - found).max()))
            self.differing += int(expected.argmax() != found.argmax())


def compare(
    predictor: Segmenter | Classifier,
    answer: Answer,
    cases: Iterable[tuple[Case, tuple[Path, ...]]],
    what: str,
    progress: Callable[[str], None] | None = None,
) -> Comparison:
    """Both on every case."""
    found = Comparison(what, isinstance(predictor, Segmenter))
    for case, files in cases:
        found.add(predictor.predict(case), answer(case, files))
        if progress:
            progress(case.id)
    return found


def cases_of(given: Path, run: Path, opening: Opening) -> Iterator[tuple[Case, tuple[Path, ...]]]:
    """The cases of a scan, a folder or a data set (those held out from the training), with their files."""
    inputs, _ = find_inputs(given, opening, split_of(run), None, Taken())
    for each in inputs:
        yield each.load(), each.files


# ---------------------------------------------------------------- where no case is given


def phantom_case(opening: Opening, folder: Path) -> tuple[Case, tuple[Path, ...]]:
    """A generated scan of the kind that the model reads, stored in another orientation than the training's."""
    rng, used = np.random.default_rng(0), len(opening.channel_names)
    depth = 5 if opening.depth is None else 1
    image = np.stack([_blobs(rng, (depth, 83, 71)) for _ in range(used)])
    low, high = Window.parse(opening.window).limits or (0.0, 1000.0)
    if opening.depth is None:
        files = _volumes(image * (high - low) + low, opening, folder)
    else:
        dtype = np.dtype(opening.depth)
        top = 255 if dtype == np.uint8 else min(high, 65535.0)
        files = (_picture((image[:, 0] * top).astype(dtype), folder / "phantom.png"),)
    return opening.read_case(files, "phantom"), files


def _blobs(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """Some soft ellipsoids and noise in 0..1."""
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    image = rng.normal(0.1, 0.02, shape)
    for _ in range(6):
        centre, size = rng.uniform(-0.6, 0.6, (3, 1, 1, 1)), rng.uniform(0.2, 0.6, (3, 1, 1, 1))
        apart = (((places - centre) / size) ** 2).sum(0)
        inside = 1 / (1 + np.exp(np.minimum(12 * (apart - 1), 50)))
        image += rng.uniform(0.1, 0.4) * inside
    return np.clip(image, 0, 1)


def _volumes(image: np.ndarray, opening: Opening, folder: Path) -> tuple[Path, ...]:
    """(C, D, H, W) of one scan: its axes in another order, one of them mirrored, slightly tilted."""
    directions = np.array(opening.plane.directions or ((0, 0, 1), (0, 1, 0), (1, 0, 0)), float)
    spacing = np.array([4.0 if opening.plane.thick else 1.0, 0.9, 0.9])
    affine = np.eye(4)
    columns = (directions + 0.02 * np.roll(directions, 1, axis=0)).T * spacing  # of D, H, W
    affine[:3, :3] = np.stack([columns[:, 2], -columns[:, 1], columns[:, 0]], axis=1)
    stored = np.flip(image.transpose(0, 3, 2, 1), 2).astype(np.float32)
    names = [f"phantom_{n:04d}.nii.gz" for n in range(len(image))]
    return tuple(
        io.write_volume(folder / name, channel, affine) for name, channel in zip(names, stored, strict=True)
    )


def _picture(image: np.ndarray, path: Path) -> Path:
    shown = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    with replacing(path) as temporary:
        Image.fromarray(np.ascontiguousarray(shown)).save(temporary)
    return path
