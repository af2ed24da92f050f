"""Masks by hand, a brute-force second implementation, and laws: spacing, symmetry, axes, empties."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samadapt.metrics import MaskPair, assd, dsc, hd95, nsd, score_case, volume_difference
from samadapt.types import IGNORED, SamAdaptError


def pair(a: np.ndarray, b: np.ndarray, spacing=None, ignored=None) -> MaskPair:
    return MaskPair.of(a, b, spacing, ignored)


def box(shape, *ranges) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(*r) for r in ranges)] = True
    return mask


def values(scores, target="a"):
    return {s.metric: s.value for s in scores if s.target == target}


# ---------------------------------------------------------------- by hand


def test_two_shifted_squares_by_hand():
    a = box((1, 10, 10), (0, 1), (2, 5), (2, 5))  # 3 x 3, its surface is the 8 voxels of the rim
    b = box((1, 10, 10), (0, 1), (2, 5), (3, 6))  # one column to the right
    p = pair(a, b, (5.0, 1.0, 1.0))
    assert dsc(p) == pytest.approx(2 * 6 / 18)
    # The left column of `a` is 1 from the left column of `b`; the rim of `a` at column 3: rows 2, 4 are on `b`'s
    # rim; at column 4 row 3 is `b`'s inside, 1 from its rim. So 4 of 8 are at distance 1, and alike the other way.
    assert sorted(p.distances[0]) == sorted(p.distances[1]) == [0] * 4 + [1] * 4
    assert assd(p) == pytest.approx(0.5)
    assert hd95(p) == 1.0
    assert nsd(p, 0.5) == pytest.approx(0.5)
    assert nsd(p, 1.0) == 1.0  # at the tolerance is within it


def test_hd95_is_the_larger_of_the_two_directions():
    a = box((1, 4, 40), (0, 1), (1, 2), (0, 2))
    b = box((1, 4, 40), (0, 1), (1, 2), (0, 31))  # all of `a` lies in it; it goes on for 29 voxels
    forth, back = np.zeros(2), np.r_[0, 0, np.arange(1, 30)]
    assert hd95(pair(a, b)) == pytest.approx(max(np.percentile(forth, 95), np.percentile(back, 95)))
    assert hd95(pair(a, b)) > np.percentile(np.r_[forth, back], 95)  # what the pooled definition would say


def test_volume_difference_is_signed_and_in_ml():
    a, b = box((2, 4, 4), (0, 2), (0, 3), (0, 4)), box((2, 4, 4), (0, 1), (0, 3), (0, 4))
    label = b.astype(np.uint8)
    assert volume_difference(pair(a, b, (10.0, 2.0, 1.0))) == 12 * 20.0
    scores = score_case("c", a.astype(np.uint8), label, (10.0, 2.0, 1.0), ["background", "a"])
    assert values(scores)["volume_difference_ml"] == pytest.approx(0.24)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_known_offset_along_each_axis_of_an_anisotropic_volume(axis):
    spacing = (7.0, 2.0, 0.5)
    a, b = np.zeros((6, 6, 6), bool), np.zeros((6, 6, 6), bool)
    a[2, 2, 2] = True
    place = [2, 2, 2]
    place[axis] += 3
    b[tuple(place)] = True
    p = pair(a, b, spacing)
    assert hd95(p) == assd(p) == pytest.approx(3 * spacing[axis])
    assert nsd(p, 3 * spacing[axis] - 0.01) == 0.0
    assert nsd(p, 3 * spacing[axis]) == 1.0


def test_the_edge_of_the_volume_is_surface_but_not_of_a_single_slice():
    full = np.ones((3, 5, 5), bool)
    centre = box((3, 5, 5), (1, 2), (2, 3), (2, 3))
    assert len(pair(full, full).distances[0]) == 75 - 1 * 3 * 3  # all but the inside
    slice_ = np.ones((1, 5, 5), bool)
    assert len(pair(slice_, slice_).distances[0]) == 16  # the rim
    assert hd95(pair(slice_, centre[1:2])) == pytest.approx(math.hypot(2, 2))


def test_one_pixel_pictures_work():
    one = np.ones((1, 1, 1), bool)
    assert (dsc(pair(one, one)), hd95(pair(one, one)), nsd(pair(one, one))) == (1.0, 0.0, 1.0)


# ---------------------------------------------------------------- empties and ignored voxels


def test_both_empty_is_nan_everywhere():
    empty = np.zeros((2, 4, 4), np.uint8)
    scores = score_case("c", empty, empty, (1.0, 1.0, 1.0), ["background", "a"])
    assert len(scores) == 5
    assert all(math.isnan(s.value) for s in scores)


@pytest.mark.parametrize("swap", [False, True])
def test_one_empty_is_zero_overlap_and_no_distance(swap):
    empty, full = np.zeros((2, 4, 4), np.uint8), box((2, 4, 4), (0, 1), (0, 2), (0, 2)).astype(np.uint8)
    prediction, truth = (full, empty) if swap else (empty, full)
    found = values(score_case("c", prediction, truth, (1.0, 1.0, 1.0), ["background", "a"]))
    assert (found["dsc"], found["nsd"]) == (0.0, 0.0)
    assert math.isnan(found["hd95_mm"]) and math.isnan(found["assd_mm"])
    assert found["volume_difference_ml"] == pytest.approx(0.004 if swap else -0.004)


def test_masks_far_apart_are_not_a_miss():
    a, b = box((1, 3, 50), (0, 1), (1, 2), (0, 1)), box((1, 3, 50), (0, 1), (1, 2), (49, 50))
    assert (dsc(pair(a, b)), hd95(pair(a, b))) == (0.0, 49.0)


def test_ignored_voxels_are_left_out_of_everything():
    truth = np.zeros((1, 8, 8), np.uint8)
    truth[0, 2:6, 2:4] = 1
    truth[0, :, 6:] = IGNORED
    prediction = (truth == 1).astype(np.uint8)
    prediction[0, :, 6:] = 1  # wrong, but nobody looks
    found = values(score_case("c", prediction, truth, (1.0, 1.0, 1.0), ["background", "a"]))
    assert (found["dsc"], found["nsd"], found["hd95_mm"], found["volume_difference_ml"]) == (1, 1, 0, 0)


def test_a_border_with_ignored_voxels_is_no_surface():
    ignored = box((1, 6, 9), (0, 1), (0, 6), (6, 9))
    mask = box((1, 6, 9), (0, 1), (1, 5), (2, 6)) & ~ignored
    distances = pair(mask, mask, ignored=ignored).distances[0]
    assert (
        len(distances) == 12 - 2
    )  # 4 x 4: a rim of 12, of which the two in the middle of the right side fall out
    inside = box((1, 3, 3), (0, 1), (1, 2), (1, 2))
    assert hd95(pair(inside, inside, ignored=~inside)) == 0.0  # nothing else to look at: still defined


# ---------------------------------------------------------------- a second implementation


def brute_force(a: np.ndarray, b: np.ndarray, spacing) -> tuple[np.ndarray, np.ndarray]:
    """Directed surface distances, every voxel against every voxel."""

    def surface(mask):
        voxels = set(map(tuple, np.argwhere(mask)))
        axes = [axis for axis, n in enumerate(mask.shape) if n > 1]
        steps = [tuple(d if i == axis else 0 for i in range(mask.ndim)) for axis in axes for d in (-1, 1)]
        near = [[tuple(np.add(v, step)) for step in steps] for v in sorted(voxels)]
        return np.array([v for v, n in zip(sorted(voxels), near, strict=True) if set(n) - voxels])

    x, y = surface(a) * np.array(spacing), surface(b) * np.array(spacing)
    table = np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1))
    return table.min(1), table.min(0)


def blob(seed: int, shape=(4, 9, 8)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < 0.25
    mask[rng.integers(shape[0]), 2:6, 3:6] = True
    return mask


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), depth=st.sampled_from([1, 4]), thick=st.floats(0.3, 9.0))
def test_distances_equal_brute_force(seed, depth, thick):
    a, b, spacing = blob(seed, (depth, 9, 8)), blob(seed + 1, (depth, 9, 8)), (thick, 1.2, 0.7)
    forth, back = brute_force(a, b, spacing)
    p = pair(a, b, spacing)
    assert hd95(p) == pytest.approx(max(np.percentile(forth, 95), np.percentile(back, 95)))
    assert assd(p) == pytest.approx((forth.sum() + back.sum()) / (len(forth) + len(back)))
    assert nsd(p, 1.0) == pytest.approx(((forth <= 1).sum() + (back <= 1).sum()) / (len(forth) + len(back)))


def test_monai_agrees():
    torch = pytest.importorskip("torch")
    hausdorff = pytest.importorskip("monai.metrics.hausdorff_distance")
    surface = pytest.importorskip("monai.metrics.surface_distance")
    for seed in range(3):
        a, b, spacing = blob(seed), blob(seed + 50), (3.0, 1.2, 0.7)
        x, y = (torch.from_numpy(m[None, None].astype(np.float32)) for m in (a, b))
        options = {"include_background": True, "spacing": list(spacing)}
        theirs = hausdorff.compute_hausdorff_distance(x, y, percentile=95, **options)
        assert hd95(pair(a, b, spacing)) == pytest.approx(float(theirs), rel=1e-5)
        theirs = surface.compute_average_surface_distance(x, y, symmetric=True, **options)
        assert assd(pair(a, b, spacing)) == pytest.approx(float(theirs), rel=1e-5)


# ---------------------------------------------------------------- laws


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), factor=st.floats(0.1, 10))
def test_distances_scale_with_spacing_and_overlap_does_not(seed, factor):
    a, b, spacing = blob(seed), blob(seed + 1), np.array((4.0, 1.0, 1.5))
    one, scaled = pair(a, b, spacing), pair(a, b, spacing * factor)
    assert hd95(scaled) == pytest.approx(factor * hd95(one))
    assert assd(scaled) == pytest.approx(factor * assd(one))
    assert dsc(scaled) == dsc(one)
    assert nsd(scaled, 2.001 * factor) == pytest.approx(nsd(one, 2.001))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_symmetric_and_blind_to_axis_order(seed):
    a, b, spacing = blob(seed), blob(seed + 1), (4.0, 1.0, 1.5)
    p, mirrored = pair(a, b, spacing), pair(b, a, spacing)
    for measure, order in itertools.product((dsc, nsd, hd95, assd), itertools.permutations(range(3))):
        turned = pair(a.transpose(order), b.transpose(order), [spacing[i] for i in order])
        assert measure(p) == pytest.approx(measure(mirrored)) == pytest.approx(measure(turned))
    assert volume_difference(p) == -volume_difference(mirrored)


def test_the_crop_changes_nothing():
    a, b = blob(1), blob(2)
    wide = [np.pad(m, ((3, 1), (0, 5), (7, 2))) for m in (a, b)]
    tight = [np.pad(m, 1) for m in (a, b)]  # so that no mask touches the edge in either
    assert hd95(pair(*wide)) == hd95(pair(*tight)) and wide[0].shape != tight[0].shape
    assert pair(*(np.pad(m, 9) for m in (a, b))).truth.shape == (6, 11, 10)


# ---------------------------------------------------------------- score_case


def test_every_class_but_the_background_is_scored():
    label = np.zeros((2, 6, 6), np.uint8)
    label[:, 1:3, 1:3], label[:, 4:6, 4:6] = 1, 2
    scores = score_case("p1", label, label, (8.0, 1.0, 1.0), ["background", "a", "b"])
    assert [(s.case, s.target) for s in scores] == [("p1", "a")] * 5 + [("p1", "b")] * 5
    assert {type(s.value) for s in scores} == {float}
    assert values(scores, "b") == {
        "dsc": 1.0,
        "nsd": 1.0,
        "hd95_mm": 0.0,
        "assd_mm": 0.0,
        "volume_difference_ml": 0.0,
    }


def test_without_spacing_nothing_is_called_mm():
    label = box((1, 6, 6), (0, 1), (1, 3), (1, 3)).astype(np.uint8)
    names = set(values(score_case("c", label, label, None, ["background", "a"])))
    assert names == {"dsc", "nsd_px", "hd95_px", "assd_px", "volume_difference_px"}


def test_another_tolerance_has_another_name():
    label = box((1, 6, 6), (0, 1), (1, 3), (1, 3)).astype(np.uint8)
    found = values(score_case("c", label, label, (1.0, 1.0, 1.0), ["background", "a"], tolerance=1.5))
    assert "nsd_1.5" in found and "nsd" not in found
    moved = np.roll(label, 1, axis=2)
    found = values(score_case("c", moved, label, (1.0, 1.0, 1.0), ["background", "a"], tolerance=0.5))
    assert found["nsd_0.5"] == 0.5


def test_undeclared_values_shapes_and_spacings_are_refused():
    label = np.zeros((1, 4, 4), np.uint8)
    odd = label.copy()
    odd[0, 0, 0] = 7
    classes = ["background", "a"]
    with pytest.raises(SamAdaptError, match=r"prediction of 'c' holds the value 7.*0\.\.1"):
        score_case("c", odd, label, None, classes)
    with pytest.raises(SamAdaptError, match="label of 'c' holds the value -1"):
        score_case("c", label, label.astype(np.int16) - 1, None, classes)
    with pytest.raises(SamAdaptError, match=r"shape \(1, 4, 5\)"):
        score_case("c", np.zeros((1, 4, 5), np.uint8), label, None, classes)
    with pytest.raises(SamAdaptError, match="spacing"):
        score_case("c", label, label, (1.0, 0.0, 1.0), classes)
