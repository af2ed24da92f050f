import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samadapt.transforms import (
    AUGMENTATIONS,
    Window,
    apply_window,
    drawing_size,
    fit_longest,
    place_label,
    pool_taps,
    pooled_size,
    resize_and_pad,
    seeded,
    stretch,
    to_original,
)
from samadapt.types import IGNORED, LABEL_GRID, Frame, SamAdaptError

sizes = st.tuples(st.integers(8, 90), st.integers(8, 90))


def smooth(size: tuple[int, int]) -> torch.Tensor:
    rows = torch.linspace(0, 1, size[0])[:, None]
    columns = torch.linspace(0, 1, size[1])[None]
    return torch.stack([rows.expand(size), columns.expand(size)])


@given(sizes, st.sampled_from([64, 96, 128]), st.sampled_from([resize_and_pad, stretch]))
@settings(max_examples=40, deadline=None)
def test_the_way_back_undoes_the_way_in(size, side, way):
    image = smooth(size)
    square, frame = way(image, side)
    assert square.shape == (2, side, side)
    # Half a pixel of a ramp that climbs by 1 over the side, in the original and in the square.
    tolerance = 1.5 / min(size) + 1.5 / min(frame.input_size)
    assert (to_original(square, frame) - image).abs().max() <= tolerance


def test_aspect_ratio_is_kept_and_the_rest_is_zero():
    square, frame = resize_and_pad(torch.ones(1, 20, 40), 64)
    assert frame.input_size == (32, 64)
    assert square[:, :32].min() == 1
    assert square[:, 32:].abs().max() == 0


def test_label_goes_where_the_image_goes():
    image = torch.zeros(1, 50, 30)
    image[0, 10:20, 5:25] = 255
    label = (image[0] > 0).to(torch.uint8)
    square, frame = resize_and_pad(image, LABEL_GRID)
    placed = place_label(label, frame, 2)
    inside = placed.sum(0) > 0
    assert inside.sum() == frame.input_size[0] * frame.input_size[1]
    agreement = ((square[0] > 127) == (placed[1] > 0.5))[inside].float().mean()
    assert agreement > 0.99


def disc(size: tuple[int, int], centre: tuple[float, float], radius: float) -> torch.Tensor:
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in size), indexing="ij")
    return ((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2).to(torch.uint8)


def centroid(mass: torch.Tensor) -> torch.Tensor:
    mass = mass.double()
    along = [(mass.sum(1 - axis) * torch.arange(mass.shape[axis])).sum() / mass.sum() for axis in (0, 1)]
    return torch.stack(along)


SIDES = [*range(100, 1101, 77), 255, 256, 257, 511, 512, 513, 640, 768, 1024, 1100]


@pytest.mark.parametrize("side", [64, 256, 1024])
@pytest.mark.parametrize("fit", ["padded", "stretched"])
def test_a_label_comes_back_from_the_grid_where_it_was(side, fit):
    """Label -> grid -> back moves no disc by 0.02 px of its file, whatever its size; nor do all of them together."""
    rng, shifts = seeded("discs", side), []
    for height in SIDES:
        width = int(height * (1, 0.6, 0.83)[height % 3])
        where = torch.rand(3, generator=rng)
        centre = (height * (0.35 + 0.3 * float(where[0])), width * (0.35 + 0.3 * float(where[1])))
        label = disc((height, width), centre, width * (0.1 + 0.15 * float(where[2])))
        inner = (side, side) if fit == "stretched" else fit_longest((height, width), side)
        frame = Frame((height, width), inner, side)
        back = to_original(place_label(label, frame, 2), frame)
        shifts.append(centroid(back[1]) - centroid(label))
    assert torch.stack(shifts).abs().max() < 0.02
    assert torch.stack(shifts).mean(0).abs().max() < 0.005


def test_the_grid_keeps_what_a_fine_label_has():
    """Shares keep a thin ring of a 768 px picture that one value a cell breaks."""
    outer, inner = (disc((768, 768), (380.3, 391.7), r) for r in (201.0, 198.5))
    ring = (outer - inner).to(torch.uint8)
    frame = Frame((768, 768), (256, 256), 256)
    placed = place_label(ring, frame, 2)
    assert float(placed[1].sum()) * 9 == pytest.approx(
        float(ring.sum()), rel=1e-4
    )  # nine pixels a cell, none lost
    assert float(placed.sum(0).min()) == pytest.approx(1.0)


def test_a_label_of_the_grid_s_own_size_is_taken_over():
    label = torch.randint(0, 3, (256, 216), generator=seeded("label"))
    label[:7, :9] = IGNORED
    placed = place_label(label, Frame((256, 216), (256, 216), 256), 3)
    for value in range(3):
        assert torch.equal(placed[value, :, :216], (label == value).float())
    assert placed[:, :7, :9].sum() == 0 and placed[:, :, 216:].sum() == 0


def test_a_cell_counts_where_at_least_half_of_it_is_known():
    label = torch.ones(512, 512, dtype=torch.uint8)
    label[0, 0], label[2:4, 0:2], label[4, 0:2], label[5, 0] = IGNORED, IGNORED, IGNORED, IGNORED
    placed = place_label(label, Frame((512, 512), (256, 256), 256), 2)
    assert placed[1, 0, 0] == 1.0  # one of its four pixels is not known: the shares are of the other three
    assert placed[:, 1, 0].sum() == 0 and placed[:, 2, 0].sum() == 0  # none is known; one of four


@given(st.integers(1, 2000), st.integers(1, 2000), st.sampled_from([256, 1024]))
def test_longest_side_fills_the_square(height, width, side):
    size = fit_longest((height, width), side)
    assert max(size) == side
    assert min(size) >= 1


def test_windows():
    volume = torch.arange(1000.0).view(1, 10, 10, 10)
    low, high = Window.parse("percentile").fit(volume)[0]
    assert low == 5
    assert high == 994
    limits = Window.parse("ct").fit(volume)
    assert apply_window(torch.tensor([[[-160.0, 40.0, 240.0, 3000.0]]]), limits).flatten().tolist() == [
        0,
        127.5,
        255,
        255,
    ]
    assert Window.parse("-10,20").limits == (-10.0, 20.0)
    for bad in ("5,5", "1,2,3", "mr"):
        with pytest.raises(SamAdaptError, match="percentile"):
            Window.parse(bad)


def test_a_constant_volume_gives_no_nan():
    volume = torch.full((1, 2, 4, 4), 7.0)
    assert torch.isfinite(apply_window(volume, Window.parse("percentile").fit(volume))).all()


def test_pooling_windows():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    pooled = pool_taps({"a": x, "b": x, "c": x, "d": x}, {"a": 1, "b": 2, "c": 0})
    assert sorted(pooled) == ["a", "b", "c"]
    assert torch.equal(pooled["a"], x)
    assert pooled["b"].flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert pooled["c"].item() == 7.5


@pytest.mark.parametrize("name", ["default", "mirror"])
def test_a_view_is_its_key_and_moves_image_and_label_alike(name):
    image = torch.zeros(1, 120, 100)
    image[0, 40:80, 30:60] = 255
    label = (image[0] > 0).to(torch.uint8)
    augment = AUGMENTATIONS[name]
    assert augment is not None
    seen = set()
    for key in range(12):
        view, moved = augment(image, label, seeded(key), 128)
        again, _ = augment(image, label, seeded(key), 128)
        assert torch.equal(view, again)
        assert view.min() >= 0
        assert view.max() <= 255
        inside = moved != IGNORED
        threshold = (view[0][moved == 1].mean() + view[0][moved == 0].mean()) / 2
        assert ((view[0] > threshold) == (moved == 1))[inside].float().mean() > 0.9
        seen.add(round(float(view.mean()), 3))
    assert len(seen) == 12


@pytest.mark.parametrize(
    ("size", "side", "drawn"),
    [
        ((3000, 4000), 128, (192, 256)),  # a photograph: twice what is seen of it
        ((3000, 4000), 1024, (1536, 2048)),
        ((300, 200), 256, (300, 200)),  # as it is
        ((20, 28), 256, (183, 256)),  # a tiny label would be shredded
        ((28, 28), 64, (128, 128)),  # ... but nothing is drawn finer than twice what is seen
    ],
)
def test_a_view_is_drawn_no_finer_than_twice_what_is_seen(size, side, drawn):
    assert drawing_size(size, side) == drawn
    image, label = torch.rand(3, *size), torch.ones(size, dtype=torch.uint8)
    view, moved = AUGMENTATIONS["default"](image, label, seeded(0), side)
    assert tuple(view.shape[1:]) == tuple(moved.shape) == drawn
    assert moved.dtype == torch.uint8
    assert set(moved.unique().tolist()) <= {1, IGNORED}


def test_a_rotation_is_rigid_in_pixels():
    """A disc stays a disc on an oblong slice: the field turns pixels, not the normalised square."""
    rows, columns = torch.meshgrid(torch.arange(300), torch.arange(600), indexing="ij")
    disc = ((rows - 150) ** 2 + (columns - 300) ** 2 < 60**2).to(torch.uint8)
    augment = AUGMENTATIONS["default"].__class__("turn", rotate_degrees=80, scale=1, shift=0, bend=0)
    _, moved = augment(255 * disc[None].float(), disc, seeded(3), 300)
    where = (moved == 1).nonzero()
    extent = where.max(0).values - where.min(0).values
    assert abs(int(extent[0]) - int(extent[1])) <= 4
    assert math.isclose(int((moved == 1).sum()), int(disc.sum()), rel_tol=0.03)


@settings(deadline=None)  # the first call loads what autograd needs
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 9))
def test_pooling_reads_every_cell_and_keeps_a_constant(height, width, window):
    """Also where the window does not divide the map: 67 % of a map of 7 x 7 went unread in windows of 4."""
    x = torch.ones(1, 2, height, width, requires_grad=True)
    pooled = pool_taps({"map": x}, {"map": window})["map"]
    assert pooled.shape[-2:] == pooled_size((height, width), window)
    torch.testing.assert_close(pooled, torch.ones_like(pooled))
    pooled.sum().backward()
    assert x.grad is not None and bool((x.grad > 0).all())
    torch.testing.assert_close(x.grad.sum(), torch.tensor(float(pooled.numel())))
