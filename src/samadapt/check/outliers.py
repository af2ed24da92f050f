"""Cases that differ from the others: intensities, spacing, size, orientation, and the volumes and pieces of their classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from samadapt.check.findings import Finding
from samadapt.check.measures import ClassMeasures, Measures
from samadapt.check.robust import FEWEST_CASES, centre_and_scale, is_rare

# Robust deviations at which a case is called unusual: above what the sound cases of ACDC, Hippocampus, ISIC 2017, USGRA,
# BreastMNIST and RetinaMNIST have.
_UNUSUAL = 5.5
_UNUSUAL_VOLUME = 4.5
_UNUSUAL_PLACE = 4.5
#: Smallest scale of each number of `Measures.intensities`; `level` is in units of the usual range.
_FLOORS = {
    "range": 0.35, "level": 0.12, "middle": 0.08, "contrast": 0.04, "detail": 0.15, "change between slices": 0.15,
}  # fmt: skip
_ABOUT = {
    "range": "the range of its intensities",
    "level": "the level of its intensities",
    "middle": "the distribution of its intensities",
    "contrast": "its contrast",
    "detail": "its fine detail (noise or blur)",
    "change between slices": "the change from slice to slice",
}
_NOISE = 0.55  # fine detail of white noise is 0.81, that of the finest sound image is 0.1
_VOLUME_FLOOR = 0.18
_FEWEST_VOXELS = 10
_TINY = 0.02  # of the usual volume
_SAME = 0.95  # of the cases have one spacing: then another one is odd
_APART = 0.25  # of the side of the main piece: a piece further off is an island
_TURNED = 0.12  # by which the correlation with the other cases must rise, and usually falls

Kept = Sequence[Measures]


def outliers(cases: Kept, classes: Sequence[str]) -> Iterator[Finding]:
    """All that is unusual in a case against the other cases.

    Args:
        classes: names by number.
    """
    if len(cases) < FEWEST_CASES:
        return
    yield from _unusual_intensities(cases)
    yield from _unusual_spacing(cases)
    yield from _unusual_size(cases)
    yield from _turned_images(cases)
    for k, name in enumerate(classes):
        if k and len(having := [case for case in cases if k in case.classes]) >= FEWEST_CASES:
            yield from _missing([c for c in cases if c.classes], having, name)
            yield from _unusual_volumes(having, k, name)
            yield from _islands(having, k, name)
            yield from _gaps(having, k, name)


def _of_few(
    kind: str, suspects: Mapping[str, str], cases: int, advice: str, at: Mapping[str, int] | None = None
) -> Iterator[Finding]:
    """A warning for each suspect where they are few; one note where so many cases have it that it is no fault of a case."""
    if is_rare(len(suspects), cases):
        for case, text in suspects.items():
            yield Finding("warning", kind, text, advice, (case,), at.get(case) if at else None)
    elif suspects:
        text = f"{len(suspects)} of {cases} cases, so it is usual here; of the first: {next(iter(suspects.values()))}"
        yield Finding("note", kind, text, "", tuple(suspects))


# ---------------------------------------------------------------- images


def _unusual_intensities(cases: Kept) -> Iterator[Finding]:
    usual_range = math.exp(float(np.median([case.intensities["range"] for case in cases])))
    told: set[str] = set()  # one finding for each case
    scaled: set[str] = set()  # a range of their own gives them a level of their own
    for key, floor in _FLOORS.items():
        values = np.array([case.intensities.get(key, math.nan) for case in cases])
        centre, scale = centre_and_scale(values, floor * (usual_range if key == "level" else 1))
        deviation = np.abs(values - centre) / scale
        if (
            key == "detail" and centre < _NOISE / 2
        ):  # pictures differ so much in detail that noise is hardly unusual
            deviation[values > _NOISE] = np.inf
        suspects = {
            case.id: f"{_ABOUT[key]} is unlike that of the other cases ({_amount(key, v, float(centre))})"
            for case, v, z in zip(cases, values, deviation, strict=True)
            if z > _UNUSUAL and case.id not in (told | scaled if key == "level" else told)
        }
        scaled |= set(suspects) if key == "range" else set()
        told |= set(suspects) if is_rare(len(suspects), len(cases)) else set()
        advice = "look at the image: another scale, unit, modality or reconstruction, or a broken export?"
        yield from _of_few("intensities", suspects, len(cases), advice)


def _amount(key: str, value: float, usual: float) -> str:
    """A number of `Measures.intensities` and what it usually is, those that are logarithms undone."""
    if key in ("middle", "contrast", "level"):
        return f"{value:.3g}, usually {usual:.3g}"
    return f"{math.exp(value):.3g}, usually {math.exp(usual):.3g}"


def _unusual_spacing(cases: Kept) -> Iterator[Finding]:
    """A spacing that differs where all others agree, or that makes the field of view unusual too."""
    known = [case for case in cases if case.spacing_mm]
    if len(known) < FEWEST_CASES:
        return
    spacings = np.array([case.spacing_mm for case in known])
    shapes = np.array([case.shape for case in known])
    ratios, views = (np.log(x) - np.median(np.log(x), 0) for x in (spacings, spacings * shapes))
    uniform = (np.abs(ratios) < 0.01).mean(0) >= _SAME  # (3,)
    away = [np.abs(x) > np.maximum(math.log(1.5), _UNUSUAL_PLACE * _scale(x)) for x in (ratios, views)]
    odd = (uniform & (np.abs(ratios) > 0.05)) | (away[0] & away[1] & (np.sign(ratios) == np.sign(views)))
    usual = _millimetres(np.median(spacings, 0))
    suspects = {
        case.id: f"the voxel spacing is {_millimetres(s)} (slice, row, column); usual is {usual}"
        for case, s, is_odd in zip(known, spacings, odd.any(1), strict=True)
        if is_odd
    }
    advice = "compare the header with the scanner's; distances and volumes in mm depend on it"
    yield from _of_few("spacing", suspects, len(known), advice)


def _scale(values: np.ndarray) -> np.ndarray:
    return 1.4826 * np.median(np.abs(values), 0)


def _millimetres(spacing: Sequence[float] | np.ndarray) -> str:
    return " x ".join(f"{x:.3g}" for x in spacing) + " mm"


def _unusual_size(cases: Kept) -> Iterator[Finding]:
    shapes = np.array([case.shape for case in cases])
    ratios = np.log(shapes) - np.median(np.log(shapes), 0)
    odd = np.abs(ratios) > np.maximum(math.log(2.5), _UNUSUAL * _scale(ratios))
    usual = " x ".join(f"{n:g}" for n in np.median(shapes, 0))
    suspects = {
        case.id: f"the size is {' x '.join(map(str, case.shape))} (slices, rows, columns); usual is {usual}"
        for case, is_odd in zip(cases, odd.any(1), strict=True)
        if is_odd
    }
    yield from _of_few(
        "size", suspects, len(cases), "is it a complete scan, and of the same kind as the others?"
    )


#: How the three small pictures of a case, (slices, rows, columns), look if the image is turned.
_IMAGE_TURNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mirrored left to right": lambda x: x[..., ::-1],
    "upside down": lambda x: x[..., ::-1, :],
    "turned by 180 degrees": lambda x: x[..., ::-1, ::-1],
    "with its slices in reverse order": lambda x: x[..., ::-1, :, :],
    "mirrored left to right, with its slices in reverse order": lambda x: x[..., ::-1, :, ::-1],
    "upside down, with its slices in reverse order": lambda x: x[..., ::-1, ::-1, :],
    "with rows and columns exchanged": lambda x: x.swapaxes(-1, -2),
    "turned by 90 degrees clockwise": lambda x: x.swapaxes(-1, -2)[..., ::-1],
    "turned by 90 degrees counterclockwise": lambda x: x.swapaxes(-1, -2)[..., ::-1, :],
}


def _turned_images(cases: Kept) -> Iterator[Finding]:
    """Images that resemble the mean of the others only if they are turned, where nearly all others do as they are."""
    depth = max(len(case.thumbs) for case in cases)
    same = [case for case in cases if len(case.thumbs) == depth]
    if len(same) < FEWEST_CASES:
        return
    thumbs = np.stack([case.thumbs for case in same]).astype(np.float32)
    mean = (thumbs.sum(0) - thumbs) / (len(same) - 1)  # of the other cases
    stored = _correlation(thumbs, mean)
    best: dict[int, tuple[float, str]] = {}
    for text, turn in _IMAGE_TURNS.items():
        loss = stored - _correlation(turn(thumbs), mean)
        if np.median(loss) < _TURNED or not is_rare(max(1, int((loss < 0).sum())), len(same)):
            continue
        for n in map(int, np.flatnonzero(loss < -_TURNED)):
            best[n] = min(best.get(n, (math.inf, "")), (float(loss[n]), text))
    suspects = {
        same[n].id: f"the image resembles the other cases when it is {text}" for n, (_, text) in best.items()
    }
    advice = "look at the image; correct the orientation in its header, or the picture (and its label)"
    yield from _of_few("turned image", suspects, len(same), advice)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(N,) of two (N, slices, side, side)."""
    a, b = (x.reshape(len(x), -1) for x in (a, b))
    return (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-6)


# ---------------------------------------------------------------- labels


def _missing(labelled: Kept, having: Kept, name: str) -> Iterator[Finding]:
    have = {case.id for case in having}
    without = [case.id for case in labelled if case.id not in have]
    if len(without) == 1 or len(without) <= 0.02 * len(labelled):
        for case in without:
            yield Finding(
                "warning", "missing class", f"the label has no {name!r}; {len(having)} of {len(labelled)} labels have it",
                "look whether the structure is in the image and was not drawn", (case,),
            )  # fmt: skip


def _unusual_volumes(having: Kept, k: int, name: str) -> Iterator[Finding]:
    volumes = np.array([case.classes[k].volume for case in having])
    centre, scale = centre_and_scale(np.log(volumes), _VOLUME_FLOOR)
    tiny, odd, at = {}, {}, {}
    for case, log, z in zip(having, np.log(volumes), (np.log(volumes) - centre) / scale, strict=True):
        own, ratio = case.classes[k], math.exp(log - float(centre))
        at[case.id] = own.slice_index
        if own.voxels < _FEWEST_VOXELS or (ratio < _TINY and z < -_UNUSUAL_VOLUME):
            tiny[case.id] = f"{name!r} has only {own.voxels} voxels, {ratio:.2g} of the usual volume"
        elif abs(z) > _UNUSUAL_VOLUME:
            odd[case.id] = f"the volume of {name!r} ({own.voxels} voxels) is {ratio:.2g} times the usual one"
    yield from _of_few("tiny label", tiny, len(having), "look whether the structure was drawn completely", at)
    advice = "look at the overlay: too much or too little drawn, a wrong class, or a wrong voxel spacing?"
    yield from _of_few("label volume", odd, len(having), advice, at)


def _islands(having: Kept, k: int, name: str) -> Iterator[Finding]:
    far, near = {}, []
    at = {}
    for case in having:
        own = case.classes[k]
        apart = [piece for piece in own.others if piece.apart > _APART]
        if apart:
            at[case.id] = apart[0].slice_index
            far[case.id] = (
                f"{name!r} has {_pieces(len(apart))} far from its main one ({sum(p.voxels for p in apart)} of "
                f"{own.voxels} voxels; slice {apart[0].slice_index})"
            )
        elif own.others:
            near.append(case.id)
    yield from _of_few(
        "islands", far, len(having), "look at the overlay; remove what is not the structure", at
    )
    if near and is_rare(len(near), 3 * len(having)):
        yield Finding(
            "note", "islands", f"{name!r} is in more than one piece in {len(near)} of {len(having)} labels, close together",
            "stray voxels can be removed", tuple(near),
        )  # fmt: skip


def _pieces(count: int) -> str:
    return "a piece" if count == 1 else f"{count} pieces"


def _gaps(having: Kept, k: int, name: str) -> Iterator[Finding]:
    own: dict[str, ClassMeasures] = {case.id: case.classes[k] for case in having if case.classes[k].gaps}
    suspects = {
        case: f"{name!r} is missing in slice {', '.join(map(str, of.gaps[:5]))}, between slices that have it"
        for case, of in own.items()
    }
    at = {case: of.gaps[0] for case, of in own.items()}
    yield from _of_few("gap in label", suspects, len(having), "look whether a slice was left out", at)
