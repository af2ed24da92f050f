"""The contract of heads, over the table, and what is peculiar to some."""

import json

import pytest
import torch

from fixtures.known import known_weights
from samadapt.heads import HEADS, build_head
from samadapt.heads.fused import FeatureJitter, choose_reads
from samadapt.heads.mask_decoder import PromptedDecoder
from samadapt.transforms import pool_taps
from samadapt.types import IGNORED, LABEL_GRID, ZERO_TO_ONE, SamAdaptError
from samadapt.views.prepare import units_of

SEGMENTATION = sorted(name for name, head in HEADS.items() if head.task == "segmentation")
GRIDS = {
    "usual": {"pixels": (3, 64, 64), "fine": (8, 16, 16), "neck": (32, 8, 8), "coarse": (16, 4, 4)},
    "odd": {"pixels": (3, 56, 56), "fine": (8, 14, 14), "neck": (32, 7, 7), "coarse": (16, 3, 3)},
}


def batch(taps, reads, n_classes: int = 3):
    """Features that say what the label is, and the label with padding on the right."""
    rng = torch.Generator().manual_seed(0)
    features = {tap: torch.randn(2, *shape, generator=rng) for tap, shape in taps.items()}
    label = (
        torch.nn.functional.avg_pool2d(features["neck"][:, :n_classes], 3, 1, 1)
        .argmax(1, keepdim=True)
        .float()
    )
    for tap in ("pixels", "fine"):
        features[tap][:, :1] += 3 * torch.nn.functional.interpolate(label, size=taps[tap][1:], mode="nearest")
    target = torch.nn.functional.interpolate(label, size=(LABEL_GRID, LABEL_GRID), mode="nearest")[:, 0]
    target = target.to(torch.uint8)
    target[:, :, 200:] = IGNORED
    return pool_taps(features, reads), target


@pytest.fixture(params=SEGMENTATION)
def name(request):
    return request.param


def fresh(name, grid="usual", **options):
    torch.manual_seed(0)
    return build_head(name, GRIDS[grid], 3, **HEADS[name].tiny | options)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_loss_is_finite_and_reaches_every_weight(name, grid):
    head = fresh(name, grid)
    features, target = batch(GRIDS[grid], head.reads)
    loss = head.loss(features, target)
    loss.backward()
    assert loss.shape == () and loss.isfinite()
    assert head(features).shape[:2] == (2, 3)
    assert [
        n for n, p in head.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ] == []


def test_one_batch_can_be_learned(name):
    head = fresh(name)
    features, target = batch(GRIDS["usual"], head.reads)
    optimizer = torch.optim.AdamW([p for p in head.parameters() if p.requires_grad], lr=3e-3)
    first = last = head.loss(features, target).item()
    for _ in range(200):
        loss = head.loss(features, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        last = loss.item()
        if last < 0.6 * first:
            return
    raise AssertionError(f"the loss went from {first} to {last} only")


def test_spec_and_state_bring_it_back(name):
    head = fresh(name).eval()
    spec = json.loads(json.dumps(head.spec))
    again = build_head(taps=GRIDS["usual"], **spec).eval()
    features, _ = batch(GRIDS["usual"], head.reads)
    assert again.spec == head.spec and dict(again.reads) == dict(head.reads)
    assert not torch.equal(again(features), head(features))
    again.load_state_dict(head.state_dict())
    torch.testing.assert_close(again(features), head(features), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("probe", {"tap": "fine", "loss": "autosam"}),
        ("linear", {"preset": "faithful", "loss": "dice_ce", "start": "random"}),
        ("cnn", {"preset": "faithful", "depth": 1, "top": 16, "loss": "dice_ce"}),
        (
            "autosam",
            {
                "preset": "fixed",
                "class_mode": "batched",
                "transformer": [4, 40, 1],
                "loss": "autosam",
                "start": "random",
                "rates": "two",
            },
        ),
        ("unet", {"width": 8, "loss": "autosam"}),
        (
            "fused",
            {"read": ["fine", "neck@2"], "width": 16, "jitter": 0.25, "loss": "autosam", "context": False},
        ),
        (
            "unet_pretrained",
            {"backbone": "efficientnet_lite2", "loss": "autosam", "weights_of": "random", "units": None},
        ),
    ],
)
def test_the_spec_keeps_every_option(name, options):
    head = build_head(name, GRIDS["usual"], 3, **options)
    assert head.spec == {"name": name, "n_classes": 3, **options}
    build_head(taps=GRIDS["usual"], **head.spec).load_state_dict(head.state_dict())


def test_only_padding_is_nothing_to_learn(name):
    head = fresh(name)
    features, target = batch(GRIDS["usual"], head.reads)
    assert head.loss(features, torch.full_like(target, IGNORED)).item() == 0


def test_half_precision(name):
    head = fresh(name)
    features, target = batch(GRIDS["usual"], head.reads)
    with torch.autocast("cpu", torch.bfloat16):
        loss = head.loss(features, target)
    loss.backward()
    assert loss.isfinite()


def test_channels_last(name):
    """Maps of a live ViT lie so in memory."""
    head = fresh(name).to(memory_format=torch.channels_last).eval()
    features, target = batch(GRIDS["usual"], head.reads)
    last = {tap: x.contiguous(memory_format=torch.channels_last) for tap, x in features.items()}
    head.loss(last, target).backward()
    torch.testing.assert_close(head(last), head(features), atol=1e-4, rtol=1e-4)


def test_it_says_what_it_misses(name):
    with pytest.raises(SamAdaptError, match=rf"head '{name}' .* gives \[\]"):
        build_head(name, {}, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cnnn"}, "unknown head 'cnnn'; known: .*autosam, .*cnn"),
        ({"name": "cnn", "deep": 3}, r"no option 'deep'; it has preset, depth, .*did you mean depth"),
        ({"name": "cnn", "preset": "best"}, "preset is 'best'; expected one of fixed, faithful"),
        ({"name": "cnn", "depth": 9}, "depth 9"),
        ({"name": "cnn", "n_classes": 1}, "at least 2 classes"),
        ({"name": "linear", "loss": "mse"}, "no loss 'mse'"),
        ({"name": "autosam", "class_mode": "all"}, "class_mode is 'all'; expected one of batched, joint"),
        ({"name": "autosam", "transformer": [5, 64, 2]}, "5 attention heads"),
        ({"name": "unet", "width": 0}, "width of 0"),
        ({"name": "fused", "width": 9}, "width of 9"),
        ({"name": "fused", "read": ["pixels"]}, "needs a map beside 'pixels'"),
        ({"name": "fused", "read": ["deep"]}, r"reads \['deep'\], which the encoder does not give"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(SamAdaptError, match=message):
        build_head(**{"taps": GRIDS["usual"], "n_classes": 2} | arguments)


# ---------------------------------------------------------------- autosam


def sam_weights(dim: int = 32, mlp_dim: int = 24, depth: int = 2) -> dict:
    layout = PromptedDecoder(dim, mlp_dim=mlp_dim, depth=depth).state_dict()
    return known_weights({key: tuple(value.shape) for key, value in layout.items()})


@pytest.mark.parametrize("class_mode", ["batched", "joint"])
def test_fixed_starts_from_sam(class_mode):
    sam = sam_weights()
    head = fresh("autosam", pretrained=sam, class_mode=class_mode)
    own = head.state_dict()
    matrix = "pe_layer.positional_encoding_gaussian_matrix"
    assert torch.equal(own[matrix], sam["prompt_encoder." + matrix])
    assert torch.equal(own["no_mask_embed.weight"], sam["prompt_encoder.no_mask_embed.weight"])
    assert head.spec["transformer"] == [8, 24, 2]
    shared = [k for k in own if "transformer" in k or "upscaling" in k]
    assert shared and all(torch.equal(own[k], sam[k]) for k in shared)
    for i in range(len(head.mask_decoder.output_hypernetworks_mlps)):  # every class starts from mask token 0
        key = "mask_decoder.output_hypernetworks_mlps.{}.layers.2.weight"
        assert torch.equal(own[key.format(i)], sam[key.format(0)])
    tokens, token = own["mask_decoder.mask_tokens.weight"], sam["mask_decoder.mask_tokens.weight"][0]
    assert 0 < (tokens - token).abs().max() < 0.6
    assert not torch.equal(tokens[0], tokens[1])
    assert all(p.requires_grad for p in head.parameters())


def test_fixed_without_noise_is_sam_with_an_empty_prompt(monkeypatch):
    monkeypatch.setattr(HEADS["autosam"], "TOKEN_NOISE", 0.0)
    sam, neck = sam_weights(), torch.randn(2, 32, 4, 4)
    decoder = PromptedDecoder(32, mlp_dim=24)
    decoder.load_state_dict(sam)
    head = build_head("autosam", {"neck": (32, 4, 4)}, 2, pretrained=sam, class_mode="batched")
    # SAM's sequence is iou token and four mask tokens; give it the head's, of which mask token 0 is repeated.
    decoder.mask_decoder.mask_tokens.weight.data = sam["mask_decoder.mask_tokens.weight"][:1].repeat(4, 1)
    decoder.mask_decoder.num_mask_tokens = 2
    decoder.mask_decoder.mask_tokens.weight.data = decoder.mask_decoder.mask_tokens.weight.data[:2]
    decoder.mask_decoder.output_hypernetworks_mlps = decoder.mask_decoder.output_hypernetworks_mlps[:2]
    expected = decoder(neck)[0]
    torch.testing.assert_close(head({"neck": neck}), expected.expand(-1, 2, -1, -1))


def test_faithful_takes_what_the_authors_take_and_trains_what_they_train():
    sam = sam_weights()
    head = build_head(
        "autosam", GRIDS["usual"], 2, sam, preset="faithful"
    )  # 2: as many mask tokens as SAM has
    own = head.state_dict()
    taken = {k for k, v in own.items() if k in sam and v.shape == sam[k].shape and torch.equal(v, sam[k])}
    assert taken == {k for k in own if "iou" not in k and "mask_tokens" not in k and "pe_layer" not in k}
    frozen = {n for n, p in head.named_parameters() if not p.requires_grad}
    assert frozen == {n for n, _ in head.named_parameters() if "iou" in n}
    features, target = batch(GRIDS["usual"], head.reads, n_classes=2)
    head.loss(features, target).backward()
    silent = {n for n, p in head.named_parameters() if p.requires_grad and not p.grad.any()}
    assert silent == {
        n for n in own if "output_hypernetworks_mlps.1." in n
    }  # their second mask is not looked at


def test_a_pretrained_head_is_rebuilt_without_its_pretraining():
    head = fresh("autosam", pretrained=sam_weights(mlp_dim=40, depth=1))
    again = build_head(taps=GRIDS["usual"], **head.spec)
    again.load_state_dict(head.state_dict())


def test_weights_of_another_width_are_refused():
    with pytest.raises(SamAdaptError, match="width 64, but the neck has 32"):
        fresh("autosam", pretrained=sam_weights(dim=64))


def test_classes_see_each_other_in_joint_mode_only():
    features = {"neck": torch.randn(1, 32, 4, 4)}
    for class_mode, seen in (("batched", False), ("joint", True)):
        head = build_head("autosam", {"neck": (32, 4, 4)}, 2, class_mode=class_mode).eval()
        before = head(features)[:, 0]
        tokens = head.mask_decoder.mask_tokens.weight
        tokens.data[-1] += 5.0  # of the last class
        assert torch.allclose(head(features)[:, 0], before, atol=1e-6) is not seen


def test_the_linear_head_starts_from_sams_upscaling():
    sam = sam_weights()
    head = fresh("linear", pretrained=sam)
    key = "mask_decoder.output_upscaling.0.weight"
    assert torch.equal(head.state_dict()[key], sam[key])


def test_only_the_faithful_linear_head_cuts_its_logits():
    features, _ = batch(GRIDS["usual"], {"neck": 1})
    assert (fresh("linear", preset="faithful")(features) >= 0).all()
    assert (fresh("linear")(features) < 0).any()


# ---------------------------------------------------------------- fused


def vit_taps(depth: int, width: int) -> dict:
    blocks = dict.fromkeys(["patch", *(f"block{i}" for i in range(depth))], (width, 64, 64))
    return {"pixels": (3, 1024, 1024), **blocks, "neck": (256, 64, 64)}


@pytest.mark.parametrize(
    ("depth", "width", "blocks"),
    [(12, 768, (2, 5, 8, 11)), (24, 1024, (5, 11, 17, 23)), (32, 1280, (7, 15, 23, 31))],
)
def test_fused_reads_a_vits_global_blocks_and_stays_small(depth, width, blocks):
    taps = vit_taps(depth, width)
    assert choose_reads(taps) == {"pixels": 1, **{f"block{i}": 2 for i in blocks}, "neck": 1}
    assert sum(p.numel() for p in build_head("fused", taps, 4).parameters()) < 1_500_000


def test_fused_reads_every_stride_of_a_pyramid_from_coarse_to_fine():
    head = fresh("fused")
    assert dict(head.reads) == {"pixels": 1, "fine": 1, "neck": 1, "coarse": 1}
    assert head.levels == [["coarse"], ["neck"], ["fine"]]


def test_fused_without_pixels():
    head = fresh("fused", read=["neck", "fine"])
    features, target = batch(GRIDS["usual"], head.reads)
    head.loss(features, target).backward()
    assert head.stem is None and set(features) == {"neck", "fine"}


@pytest.mark.parametrize(("side", "answer"), [(64, 64), (56, 56), (35, 36), (256, 256), (1024, 256)])
def test_fused_answers_no_finer_than_the_encoder_saw(side, answer):
    taps = {"pixels": (3, side, side), "neck": (8, side // 8, side // 8)}
    features = {tap: torch.randn(2, *shape) for tap, shape in taps.items()}
    assert build_head("fused", taps, 3)(features).shape == (2, 3, answer, answer)
    without = build_head("fused", taps, 3, read=["neck"])
    assert without(features).shape == (2, 3, answer // 2, answer // 2)


def test_jitter_only_while_training():
    torch.manual_seed(0)
    jitter, x = FeatureJitter(0.5), torch.randn(2, 8, 6, 6)
    assert not torch.equal(jitter.train()(x), x)
    assert torch.equal(jitter.eval()(x), x)
    assert torch.equal(FeatureJitter(0.0).train()(x), x)


def test_jitter_is_of_the_strength_that_it_is_said_to_be():
    """Noise of mean 0 and a share of 0.2 at most of the unit variance; channels are lost, the rest grows to make up."""
    jitter, zeros = FeatureJitter(1.0).train(), torch.zeros(200, 4, 9, 9)
    torch.manual_seed(0)
    noise = jitter(zeros)
    assert abs(float(noise.mean())) < 0.005
    # sigma is uniform up to 0.2, so its square is 0.04 / 3 in the mean; what is kept of a fifth lost grows by 1.25.
    assert float(noise.var()) == pytest.approx(0.04 / 3 * 1.25, rel=0.1)
    assert float((noise.flatten(2).abs().sum(2) == 0).float().mean()) == pytest.approx(0.2, abs=0.06)
    ones = jitter(torch.ones(2000, 4, 4, 4))
    assert float(ones.mean()) == pytest.approx(1, abs=0.02)


def test_jitter_is_computed_in_the_precision_of_what_reads_it():
    jitter, x = FeatureJitter(0.5).train(), torch.randn(4, 8, 12, 12)
    torch.manual_seed(0)
    exact = jitter(x)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = jitter(x)
    assert rounded.dtype == torch.bfloat16 and exact.dtype == torch.float32
    assert torch.allclose(rounded.float(), exact, atol=0.05)


@pytest.mark.parametrize(
    ("name", "options"),
    [("unet_pretrained", {"weights": "random"}), ("plain", {"backbone": "efficientnet_lite0", "weights": "random", "image_size": 64})],
)  # fmt: skip
def test_a_network_on_the_pixels_sees_the_same_whoever_prepared_them(name, options):
    taps = {"pixels": (3, 64, 64)}
    picture = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 255
    picture[0] *= 0.01  # an almost empty slice must not be stretched
    answers = []
    for prepare in ("unit", "sam", "imagenet_lite"):
        torch.manual_seed(0)
        head = build_head(name, taps, 3, units=units_of(prepare), **options).eval()
        means, deviations = (torch.tensor(values).view(3, 1, 1) for values in units_of(prepare))
        with torch.no_grad():
            answers.append(head({"pixels": (picture - means) / deviations}))
        assert build_head(taps=taps, **head.spec).units == units_of(prepare)
    for answer in answers[1:]:
        torch.testing.assert_close(answer, answers[0], atol=1e-4, rtol=1e-4)
    seen = head.network if name == "unet_pretrained" else head.backbone
    inside = seen.in_units(picture / 255, ZERO_TO_ONE)
    torch.testing.assert_close(inside, (picture - 127) / 128)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("fused", {"jitter": -1}, "jitter of -1"),
        ("autosam", {"transformer": [0]}, "head 'autosam' cannot be built with the options"),
        ("fused", {"loss": ""}, "head 'fused'"),
    ],
)
def test_options_that_make_no_network_are_refused(name, options, words):
    with pytest.raises(SamAdaptError, match=words):
        build_head(name, GRIDS["usual"], 3, **options)
