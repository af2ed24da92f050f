"""The contract of classification heads, over the table; probes; losses; where they look."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from samadapt.heads import HEADS, build_head
from samadapt.heads.classification import share_inside
from samadapt.transforms import pool_taps
from samadapt.types import SamAdaptError

NAMES = sorted(name for name, head in HEADS.items() if head.task == "classification")
TAPS = {"pixels": (3, 64, 64), "fine": (8, 16, 16), "neck": (32, 8, 8), "coarse": (16, 4, 4)}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def fresh(name, n_classes=3, **options):
    torch.manual_seed(0)
    return build_head(name, TAPS, n_classes, **HEADS[name].tiny, **options)


def batch(reads, n=6):
    """Maps and pixels that are brighter in a corner of their class."""
    rng = torch.Generator().manual_seed(0)
    target = torch.arange(n) % 3
    x = {tap: torch.randn(n, *shape, generator=rng) for tap, shape in TAPS.items()}
    for tap, (channels, height, width) in TAPS.items():
        for i, k in enumerate(target.tolist()):
            x[tap][i, k % channels, : height // 2, : width // 2] += 3
    return pool_taps(x, reads), target


def test_the_table_has_them():
    assert set(NAMES) >= {"slca", "plain", "se", "cbam", "linear_probe", "attentive_probe"}


def test_one_batch_can_be_learned(name):
    head = fresh(name)
    features, target = batch(head.reads)
    first = head.loss(features, target)
    assert head(features).shape == (6, 3) and first.shape == () and first.isfinite()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3)
    for _ in range(60):
        loss = head.loss(features, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.5 * first:
            break
    assert loss < 0.5 * first
    unreached = [n for n, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == []


def test_spec_and_state_bring_it_back(name):
    head = fresh(name, class_weights=[1, 2, 3.5]).eval()
    spec = json.loads(json.dumps(head.spec))
    again = build_head(taps=TAPS, **spec).eval()
    again.load_state_dict(head.state_dict())
    features, target = batch(head.reads)
    assert torch.equal(again(features), head(features))
    assert torch.equal(again.loss(features, target), head.loss(features, target))
    assert again.reads == head.reads and again.spec == head.spec


def test_several_labels_have_a_loss_of_their_own(name):
    head = fresh(name).eval()
    features, _ = batch(head.reads)
    labels = torch.tensor([[0, 1, 1], [1, 0, 0]] * 3).float()
    p = head(features).sigmoid()
    by_hand = -(labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    torch.testing.assert_close(head.loss(features, labels), by_hand)
    weighted = fresh(name, class_weights=[1, 1, 5]).eval().loss(features, labels)
    heavier = -(torch.tensor([1, 1, 5]) * labels * p.log() + (1 - labels) * (1 - p).log()).mean()
    torch.testing.assert_close(weighted, heavier)


def test_rare_classes_can_count_more(name):
    head, weighted = fresh(name).eval(), fresh(name, class_weights=[1, 1, 5]).eval()
    features, target = batch(head.reads)
    each = F.cross_entropy(head(features), target, reduction="none")
    weight = torch.tensor([1.0, 1.0, 5.0])[target]
    torch.testing.assert_close(weighted.loss(features, target), (each * weight).sum() / weight.sum())


def test_it_says_where_it_looked(name):
    if name == "linear_probe":
        pytest.skip("a mean over the image looks everywhere")
    head = fresh(name).eval()
    features, _ = batch(head.reads)
    with torch.inference_mode():  # as prediction calls it
        maps = head.attention(features)
    assert (len(maps) == 0) == (name == "plain")
    assert all(m.shape[0] == 6 and m.dim() == 3 and m.isfinite().all() for m in maps.values())
    if name in ("slca", "se", "cbam"):
        assert list(maps) == ["stem", "stage1", "stage2", "stage3", "stage4"]


# ---------------------------------------------------------------- the network's picture


def test_one_prepared_picture_is_resized_for_the_network():
    head = build_head("plain", TAPS, 2, image_size=32)
    pixels = torch.randn(2, 3, 64, 64)
    assert head.picture({"pixels": pixels}).shape == (2, 3, 32, 32)
    quarter = build_head("plain", TAPS, 2, image_size=16)
    # Noise that is averaged over all pixels, not taken from the nearest four (which leave a half of it).
    assert quarter.picture({"pixels": pixels}).std() < 0.3
    assert build_head("plain", TAPS, 2).image_size == 224
    assert build_head("plain", TAPS, 2, small_input=True).image_size == 28
    same = build_head("plain", TAPS, 2, image_size=64)
    assert same.picture({"pixels": pixels}) is pixels


def test_first_weights_are_named_but_not_needed_again(tmp_path):
    from safetensors.torch import save_file

    from samadapt.backbones import build_backbone

    torch.manual_seed(7)
    file = tmp_path / "resnet18.safetensors"
    save_file({k: v.contiguous() for k, v in build_backbone("resnet18").state_dict().items()}, file)
    head = build_head("se", TAPS, 2, weights=str(file), image_size=32)
    torch.manual_seed(7)
    assert torch.equal(head.backbone.state_dict()["parts.stem.embedder.convolution.weight"],
                       build_backbone("resnet18").state_dict()["parts.stem.embedder.convolution.weight"])  # fmt: skip
    file.unlink()
    again = build_head(taps=TAPS, **json.loads(json.dumps(head.spec)))
    assert again.spec == head.spec and again.spec["weights_of"] == str(file)


# ---------------------------------------------------------------- Grad-CAM


def test_grad_cam_by_its_formula_and_in_inference_mode():
    head = fresh("plain").eval()
    features, _ = batch(head.reads)
    maps = {}

    def note(stage, x):
        maps[stage] = x
        return x

    target = torch.tensor([0, 1, 2, 0, 1, 2])
    x = head.backbone(head.picture(features), note)
    score = head.classify(x.mean((-2, -1)))[range(6), target].sum()
    gradient = torch.autograd.grad(score, maps["stage3"])[0]
    by_hand = (gradient.mean((2, 3), keepdim=True) * maps["stage3"]).sum(1).relu()
    with torch.inference_mode():
        features = {tap: x.clone() for tap, x in features.items()}
        found = head.grad_cam(features, stage="stage3", target=target.clone())
    torch.testing.assert_close(found, by_hand.detach())
    assert all(p.grad is None for p in head.parameters())
    likeliest = head.grad_cam(features)
    torch.testing.assert_close(likeliest, head.grad_cam(features, target=head(features).argmax(1)))
    with pytest.raises(SamAdaptError, match="no stage 'stage7'"):
        head.grad_cam(features, stage="stage7")


# ---------------------------------------------------------------- shares


def test_share_inside_by_hand():
    mask = torch.zeros(4, 4)
    mask[:2, :2] = 1
    attention = torch.ones(4, 4)
    attention[0, 0], attention[3, 3] = 4.0, 2.0
    assert share_inside(attention, mask) == pytest.approx(3 / 4)  # above the smallest: 3 inside, 1 outside
    assert share_inside(5 * attention + 7, mask) == pytest.approx(3 / 4)
    assert share_inside(mask, mask) == 1
    assert share_inside(1 - mask, mask) == 0
    assert math.isnan(share_inside(torch.ones(4, 4), mask))
    assert math.isnan(share_inside(attention, torch.zeros(4, 4)))


def test_share_inside_resizes_the_map_to_the_mask():
    mask = torch.zeros(64, 64, dtype=torch.uint8)
    mask[:32] = 1
    attention = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert share_inside(attention, mask) == pytest.approx(0.875, abs=0.01)


# ---------------------------------------------------------------- probes


def test_the_linear_probe_is_linear_in_the_mean():
    head = fresh("linear_probe").eval()
    assert head.reads == {"neck": 0}
    x = torch.randn(2, 32, 8, 8)
    shuffled = x.flatten(2)[:, :, torch.randperm(64)].unflatten(2, (8, 8))
    torch.testing.assert_close(head({"neck": x}), head({"neck": shuffled}))
    pooled = pool_taps({"neck": x}, head.reads)
    assert pooled["neck"].shape == (2, 32, 1, 1)
    torch.testing.assert_close(head({"neck": x}), head(pooled))


def test_the_attentive_probe_is_attention_with_one_query():
    head = fresh("attentive_probe", window=1).eval()
    x = torch.randn(2, 32, 8, 8)
    tokens = F.layer_norm(x.flatten(2).transpose(1, 2), (32,))
    multi = torch.nn.MultiheadAttention(32, 8, batch_first=True)
    with torch.no_grad():
        head.query.normal_()
        multi.in_proj_weight.copy_(torch.cat([torch.eye(32), head.keys.weight, head.values.weight]))
        multi.in_proj_bias.copy_(torch.cat([torch.zeros(64), head.values.bias]))
        multi.out_proj.weight.copy_(torch.eye(32))
        multi.out_proj.bias.zero_()
    found, weights = multi(head.query.expand(2, 1, 32), tokens, tokens)
    torch.testing.assert_close(head({"neck": x}), head.classify(found[:, 0]))
    torch.testing.assert_close(head.attention({"neck": x})["neck"].flatten(1), weights[:, 0])
    with pytest.raises(SamAdaptError, match="with 5 heads"):
        fresh("attentive_probe", heads=5)
