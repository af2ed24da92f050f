"""SLCA: what its parts do to a map, and what its controls control."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fakes import added_parameters
from samadapt.backbones import BACKBONES, Backbone
from samadapt.heads import build_head
from samadapt.heads.classification.gates import CbamBlock, GateOptions, WeightBlock, place_norm
from samadapt.heads.classification.slca import five_taps
from samadapt.transforms import pool_taps
from samadapt.types import SamAdaptError

VIT = {
    "pixels": (3, 64, 64),
    "patch": (24, 8, 8),
    **{f"block{i}": (24, 8, 8) for i in range(12)},
    "neck": (16, 8, 8),
}
NANO = {
    "pixels": (3, 64, 64),
    "stride4": (12, 16, 16),
    "neck": (16, 8, 8),
    "stride16": (16, 4, 4),
    "stride32": (16, 2, 2),
}
WIDTHS = {"stem": 8, "stage1": 8, "stage2": 16, "stage3": 24, "stage4": 32}


@pytest.fixture(autouse=True)
def small_backbone(monkeypatch):
    """Five stages of one convolution each: grids 32, 16, 8, 4 and 2 of an image of 64."""

    def tiny(small_input):
        widths = [3, *WIDTHS.values()]
        convs = [nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths)]
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        parts = {n: nn.Sequential(c, nn.ReLU()) for n, c in zip(WIDTHS, convs, strict=True)}
        return Backbone(parts, WIDTHS, side=64)

    monkeypatch.setitem(BACKBONES, "tiny", tiny)


def make(name="slca", taps=VIT, **options):
    torch.manual_seed(0)
    return build_head(name, taps, 3, backbone="tiny", **options)


def images(taps=VIT, n=4, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return {tap: torch.randn(n, *shape, generator=rng) for tap, shape in taps.items()}


def trained(head):
    """Weights as training might leave them: nothing is at its neutral start."""
    rng = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in head.blocks.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=rng)
    return head.eval()


# ---------------------------------------------------------------- the start


@pytest.mark.parametrize("fusion", ["multiply", "residual", "add", "concat"])
@pytest.mark.parametrize("gate", ["sigmoid2", "softmax"])
def test_before_training_it_is_the_plain_network(fusion, gate):
    head, plain = make(fusion=fusion, gate=gate, identity=True).eval(), make("plain").eval()
    x = images()
    torch.testing.assert_close(head(pool_taps(x, head.reads)), plain(x))
    assert not torch.allclose(trained(head)(pool_taps(x, head.reads)), plain(x), atol=1e-3)


@pytest.mark.parametrize("name", ["se", "cbam"])
def test_the_controls_start_there_too(name):
    torch.testing.assert_close(make(name, identity=True).eval()(images()), make("plain").eval()(images()))


@pytest.mark.parametrize("name", ["slca", "se", "cbam"])
def test_unless_told_it_starts_there_only_with_weights_worth_keeping(name):
    drawn, given = make(name), make(name, weights_of="somebody's")
    assert (drawn.spec["identity"], given.spec["identity"]) == (False, True)
    x = images()
    plain = make("plain").eval()(x)
    assert not torch.allclose(drawn.eval()(pool_taps(x, drawn.reads)), plain, atol=1e-3)
    torch.testing.assert_close(given.eval()(pool_taps(x, given.reads)), plain)


def test_a_plain_sigmoid_starts_nearly_open():
    head = make(gate="sigmoid", identity=True)
    attention = head.attention(pool_taps(images(), head.reads))
    for weights in attention.values():
        torch.testing.assert_close(weights, torch.full_like(weights, torch.sigmoid(torch.tensor(4.0)).item()))
    random = make(gate="sigmoid", identity=False)
    weights = random.attention(pool_taps(images(), random.reads))["stem"]
    assert 0.3 < weights.mean() < 0.7 and weights.std() > 0.001


# ---------------------------------------------------------------- windows


class SqueezeExcite(nn.Module):
    """Written from the paper (Hu et al. 2018, eq. 2-4), with linear layers."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.w1, self.w2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, u):
        z = u.flatten(2).mean(2)
        s = torch.sigmoid(self.w2(torch.relu(self.w1(z))))
        return u * s[:, :, None, None]


@pytest.mark.parametrize("window", [0, 7, 16])
def test_a_window_as_large_as_the_map_is_squeeze_and_excitation(window):
    torch.manual_seed(0)
    theirs = SqueezeExcite(12, 3)
    ours = WeightBlock(12, None, 3, GateOptions(gate="sigmoid", window=window, identity=False))
    ours.weights.squeeze.load_state_dict(
        {"weight": theirs.w1.weight[:, :, None, None], "bias": theirs.w1.bias}
    )
    ours.weights.excite.load_state_dict(
        {"weight": theirs.w2.weight[:, :, None, None], "bias": theirs.w2.bias}
    )
    x = torch.randn(2, 12, 7, 7)
    torch.testing.assert_close(ours(x, None), theirs(x))


def test_the_se_head_is_slca_on_the_own_map_with_the_whole_map_as_window():
    se, slca = trained(make("se")), trained(make(source="own", window=0))
    assert [n for n, _ in se.named_parameters()] == [n for n, _ in slca.named_parameters()]
    assert torch.equal(se(images()), slca(images()))
    assert not torch.allclose(se(images()), trained(make(source="own", window=2))(images()), atol=1e-4)


@pytest.mark.parametrize("source", [None, 6])
def test_window_1_is_a_gate_for_every_pixel(source):
    torch.manual_seed(0)
    block = WeightBlock(10, source, 4, GateOptions(window=1, identity=False))
    x, tap = torch.randn(1, 10, 8, 8), torch.randn(1, 6, 8, 8)
    before = block.map(x, tap)
    changed = tap if source else x
    changed[:, :, 3, 5] += torch.randn(changed.shape[1])
    moved = (block.map(x, tap) != before).any(1)[0]
    assert moved.nonzero().tolist() == [[3, 5]]


def test_a_window_gates_its_cells_together():
    head = trained(make(window=4, source="own", stages=["stem"], reduction=2))
    x = images(n=1)
    weights = head.blocks["stem"].map(head.backbone.parts["stem"](x["pixels"]), None)
    assert weights.shape == (1, 8, 32, 32)
    tiles = weights.unfold(2, 4, 4).unfold(3, 4, 4)
    assert torch.equal(tiles, tiles[..., :1, :1].expand_as(tiles))
    assert weights.unique().numel() > 8 * 30


def test_nearest_and_bilinear_differ_between_the_cells_only():
    x, tap = torch.randn(1, 10, 8, 8), torch.randn(1, 6, 4, 4)
    maps = {}
    for resize in ("nearest", "bilinear"):
        torch.manual_seed(0)
        maps[resize] = WeightBlock(10, 6, 4, GateOptions(resize=resize, identity=False)).map(x, tap)
    assert torch.equal(maps["nearest"][..., ::2, ::2], maps["nearest"][..., 1::2, 1::2])
    assert not torch.equal(maps["bilinear"][..., ::2, ::2], maps["bilinear"][..., 1::2, 1::2])


def test_a_tap_finer_than_the_stage_is_averaged():
    block = WeightBlock(10, 6, 4, GateOptions(identity=False))
    tap = torch.randn(1, 6, 8, 8)
    x = torch.randn(1, 10, 4, 4)
    torch.testing.assert_close(block.map(x, tap), block.map(x, F.avg_pool2d(tap, 2)))


# ---------------------------------------------------------------- gates and fusions, by their formulas


def parts(fusion="multiply", gate="sigmoid2"):
    torch.manual_seed(0)
    block = make(fusion=fusion, gate=gate, identity=False).blocks["stage2"]
    x, tap = torch.randn(2, 16, 8, 8), 100 * torch.randn(2, 24, 8, 8)
    return block, x, tap


def inner(block, tap):
    w = block.weights
    return w.excite(F.relu(w.squeeze(place_norm(tap))))


@pytest.mark.parametrize(
    ("gate", "formula"),
    [
        ("sigmoid", torch.sigmoid),
        ("sigmoid2", lambda z: 2 * torch.sigmoid(z)),
        ("softmax", lambda z: z.shape[1] * F.softmax(z, 1)),
    ],
)
def test_multiply(gate, formula):
    block, x, tap = parts(gate=gate)
    torch.testing.assert_close(block(x, tap), x * formula(inner(block, tap)))


def test_residual():
    block, x, tap = parts("residual")
    torch.testing.assert_close(block(x, tap), x + x * 2 * torch.sigmoid(inner(block, tap)))


def test_add_and_concat():
    block, x, tap = parts("add")
    gated = block.project(place_norm(tap) * 2 * torch.sigmoid(inner(block, tap)))
    torch.testing.assert_close(block(x, tap), x + gated)
    block, x, tap = parts("concat")
    gated = block.project(place_norm(tap) * 2 * torch.sigmoid(inner(block, tap)))
    torch.testing.assert_close(block(x, tap), block.merge(torch.cat([x, gated], 1)))


def test_cbam_by_its_formula():
    torch.manual_seed(0)
    block = CbamBlock(8, 2, "sigmoid", identity=False)
    x = torch.randn(2, 8, 9, 9)
    mlp = block.channel
    x1 = x * torch.sigmoid(mlp(F.adaptive_avg_pool2d(x, 1)) + mlp(F.adaptive_max_pool2d(x, 1)))
    x2 = x1 * torch.sigmoid(block.place(torch.stack([x1.mean(1), x1.max(1).values], 1)))
    torch.testing.assert_close(block(x, None), x2)


# ---------------------------------------------------------------- which tap gates which stage


def test_taps_are_chosen_by_position():
    def vit(depth):
        return (
            {"pixels": (3, 1, 1), "patch": (1, 1, 1)}
            | {f"block{i}": (1, 1, 1) for i in range(depth)}
            | {"neck": (1, 1, 1)}
        )

    assert five_taps(vit(12)) == ["patch", "block2", "block5", "block11", "neck"]  # SAM ViT-B
    assert five_taps(vit(24)) == ["patch", "block5", "block11", "block23", "neck"]  # ViT-L
    assert five_taps(vit(32)) == ["patch", "block7", "block15", "block31", "neck"]  # ViT-H
    assert five_taps(NANO) == ["stride4", "stride4", "neck", "stride16", "stride32"]
    assert five_taps({"pixels": (3, 1, 1), "neck": (1, 1, 1)}) == ["neck"] * 5


def test_reads_what_it_uses_and_no_more():
    assert make().reads == {"pixels": 1, "patch": 4, "block2": 4, "block5": 4, "block11": 4, "neck": 4}
    assert make(read=["neck"], window=8).reads == {"pixels": 1, "neck": 8}
    assert make(stages=["stage3", "stem"]).reads == {"pixels": 1, "patch": 4, "block11": 4}
    assert make(stages=["stage3", "stem"], read=["block0", "neck"]).stage_taps == {
        "stem": "block0",
        "stage3": "neck",
    }
    assert make(source="own").reads == make(source="matched").reads == make("plain").reads == {"pixels": 1}


def test_only_the_chosen_stages_are_gated():
    head = make(stages=["stage2"])
    assert list(head.attention(pool_taps(images(), head.reads))) == ["stage2"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"read": ["neck", "patch"]}, "gates 5 stages .* was given the taps"),
        ({"read": ["block99"]}, r"reads \['block99'\], which the encoder does not give"),
        ({"read": ["pixels"]}, "give one map for each"),
        ({"window": -1}, "window is -1"),
        ({"window": 2.5}, "window is 2.5"),
        ({"reduction": 0}, "reduction is 0"),
        ({"gate": "relu"}, "no gate 'relu'; give one of sigmoid2, softmax, sigmoid"),
        ({"fusion": "sum"}, "no fusion 'sum'"),
        ({"resize": "cubic"}, "no resize 'cubic'"),
        ({"source": "sam"}, "no source 'sam'; give one of taps, own, matched"),
        ({"stages": ["stage9"]}, "no stage 'stage9'"),
        ({"shuffle": True, "source": "own"}, "cannot shuffle"),
        ({"image_size": 4}, "image_size is 4"),
        ({"class_weights": [1, 2]}, "cannot weigh 3 classes"),
        ({"windows": 4}, "no option 'windows'"),
    ],
)
def test_what_is_wrong_is_said(options, message):
    with pytest.raises(SamAdaptError, match=message):
        make(**options)


def test_an_encoder_without_maps_is_refused():
    with pytest.raises(SamAdaptError, match="needs a map of the encoder"):
        make(taps={"pixels": (3, 64, 64)})


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("fusion", ["multiply", "residual", "add", "concat"])
def test_the_gradient_reaches_every_gate_and_no_encoder_weight(fusion):
    head = make(fusion=fusion, reduction=2)
    encoder = nn.ModuleDict({tap: nn.Conv2d(3, c, 1) for tap, (c, _, _) in VIT.items() if tap != "pixels"})
    encoder.requires_grad_(False)
    x = images()
    small = F.adaptive_avg_pool2d(x["pixels"], 8)
    features = {"pixels": x["pixels"]} | {tap: conv(small) for tap, conv in encoder.items()}
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(3):  # the second convolution starts at zero: the first one is reached once that has moved
        optimizer.zero_grad()
        head.loss(pool_taps(features, head.reads), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
    assert [n for n, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(p.grad is None for p in encoder.parameters())


# ---------------------------------------------------------------- controls


def test_a_matched_gate_has_as_many_parameters():
    for taps in (VIT, NANO):
        slca, matched = make(taps=taps, reduction=2), make(taps=taps, reduction=2, source="matched")
        own = make(taps=taps, reduction=2, source="own")
        assert added_parameters(matched) == pytest.approx(added_parameters(slca), rel=0.05)
        assert added_parameters(own) != pytest.approx(added_parameters(slca), rel=0.05)
        assert added_parameters(make("plain")) == 0


def known_images(head, who, seed=0):
    """Pooled maps of images of these identities: equal numbers are views of one image."""
    x = images(n=len(who), seed=seed) | {"identity": torch.tensor(who).float()[:, None]}
    return pool_taps(x, head.reads)


@pytest.mark.parametrize("who", [[1, 2], [1, 1, 2], [4, 4, 4, 5], [1, 2, 3, 4, 5, 6]])
def test_shuffled_images_never_get_maps_of_their_own(who):
    """Not in training, where a batch holds several views of one image, nor when a training image is predicted."""
    head = trained(make(shuffle=True)).train()
    owner = {}  # a map -> whose it is
    for step in range(20):
        x = known_images(head, who, seed=step)
        owner |= {
            tuple(row.half().float().flatten().tolist()): i for row, i in zip(x["patch"], who, strict=True)
        }
        given = head.sources(x)["stem"].half().float()
        for mine, lent in zip(who, given, strict=True):
            assert owner[tuple(lent.flatten().tolist())] != mine
    head.eval()
    x = known_images(head, who, seed=99)
    for mine, lent in zip(who, head.sources(x)["stem"], strict=True):
        assert owner[tuple(lent.flatten().tolist())] != mine


def test_with_one_image_there_is_no_other(tmp_path):
    head = make(shuffle=True).train()
    assert head.min_cases == 2 and make().min_cases == 1
    assert head.sources(known_images(head, [7, 7]))["stem"].abs().max() == 0


def test_a_shuffled_answer_does_not_know_its_own_maps():
    head = trained(make(shuffle=True))
    seen = known_images(head, [1, 2, 3, 4], seed=1)
    head.train()
    head(seen)
    head.eval()
    x = known_images(head, [11, 12, 13], seed=2)
    answers = head(x)
    for lent in head.sources(x)["stem"]:  # of a training image, to half precision
        assert any(torch.equal(lent, kept.half().float()) for kept in seen["patch"])
    other_maps = known_images(head, [11, 12, 13], seed=3) | {"pixels": x["pixels"]}
    assert torch.equal(head(other_maps), answers)
    alone = torch.cat([head({tap: value[i : i + 1] for tap, value in x.items()}) for i in range(3)])
    torch.testing.assert_close(alone, answers)  # the same alone and in a batch
    plain_gates = make()
    plain_gates.load_state_dict(head.state_dict(), strict=False)
    assert not torch.allclose(plain_gates.eval()(x), answers, atol=1e-4)


def test_a_shuffled_head_comes_back_with_the_maps_it_kept():
    head = trained(make(shuffle=True)).train()
    head(known_images(head, [1, 2, 3, 4], seed=1))
    again = build_head(taps=VIT, **head.spec)
    again.load_state_dict(head.state_dict())
    x = known_images(head, [11, 12], seed=2)
    assert torch.equal(again.eval()(x), head.eval()(x))
    assert not torch.equal(make(shuffle=True).eval()(x), head(x))
