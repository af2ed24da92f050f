"""The contract of encoders, over the table in tiny random variants; checkpoints good and bad."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from samadapt.encoders.prepare import PREPARES

from fixtures.known import known_normal, known_weights
from fixtures.tiny_hub import TINY_HUB
from samadapt.encoders import ENCODERS, load_encoder, tiny_vit, tiny_vit_network
from samadapt.encoders.checkpoints import SHA256, HubModel, original_key, original_layout
from samadapt.encoders.dinov3 import DINOV3_MODELS
from samadapt.encoders.sam import SAM_MODELS, VIT_B, VIT_H, VIT_L, Architecture, Model, _config
from samadapt.encoders.sam2 import SAM2_MODELS
from samadapt.encoders.tiny_vit import TINY_VITS
from samadapt.encoders.tiny_vit_network import LITE_MEDSAM, MOBILE_SAM
from samadapt.heads.mask_decoder import PromptedDecoder
from samadapt.learner import Learner
from samadapt.transforms import to_original
from samadapt.types import SamAdaptError, SamAdaptWarning
from samadapt.weights import PublishedFile

#: Four blocks of SAM's kind, of which the second and the last attend globally.
TINY = Architecture(width=32, depth=4, heads=2, global_blocks=(1, 3), side=128, window=3, neck=32)
TINY_SAM = Model("tiny_sam", TINY, HubModel("nobody/nothing", "0" * 40), "sam")
TINY_MEDSAM = Model("tiny_medsam", TINY, HubModel("nobody/nothing", "0" * 40), "medsam")
#: One block a stage, windows that do not divide the grid, in both layouts of the family.
NARROW = {"widths": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "heads": (1, 2, 3, 4), "windows": (7, 7, 14, 7)}
NOWHERE = PublishedFile("nowhere.pth", "0" * 64, source="nowhere")
VARIANTS = {
    "tiny_sam": TINY_SAM,
    "tiny_medsam": TINY_MEDSAM,
    "tiny_lite_medsam": tiny_vit.Model(
        "tiny_lite_medsam", replace(LITE_MEDSAM, side=64, neck=32, **NARROW), NOWHERE, "lite_medsam"
    ),
    "tiny_mobile_sam": tiny_vit.Model(
        "tiny_mobile_sam", replace(MOBILE_SAM, side=64, neck=32, **NARROW), NOWHERE, "sam"
    ),
    **TINY_HUB,
}


def tiny_name(name: str) -> str:
    """The ViTs are tested by a small one of the same class; every other entry as it is."""
    if name in SAM_MODELS:
        return "tiny_medsam" if SAM_MODELS[name].prepare == "medsam" else "tiny_sam"
    for tiny, family in {"tiny_sam2": SAM2_MODELS, "tiny_dinov3": DINOV3_MODELS}.items():
        if name in family:
            return tiny
    return f"tiny_{name}" if name in TINY_VITS else name


CONTRACT = sorted({tiny_name(name) for name in ENCODERS})


@pytest.fixture(autouse=True)
def tiny_table(monkeypatch):
    for name, model in VARIANTS.items():
        monkeypatch.setitem(ENCODERS, name, model)


@pytest.fixture(params=CONTRACT)
def name(request):
    return request.param


def load(name: str, seed: int = 0, **options):
    checkpoint = None if name == "pixels" else "random"
    return load_encoder(name, checkpoint=checkpoint, side=options.pop("side", 64), seed=seed, **options)


# ---------------------------------------------------------------- the contract


def test_it_gives_the_taps_that_it_declares(name):
    encoder = load(name)
    assert encoder.taps["pixels"] == (3, 64, 64) and encoder.side == 64
    with torch.no_grad():
        found = encoder(torch.randn(2, 3, 64, 64))
    assert {tap: tuple(x.shape) for tap, x in found.items()} == {k: (2, *v) for k, v in encoder.taps.items()}
    assert all(x.isfinite().all() and x.std() > 1e-3 for x in found.values())


def test_the_same_seed_gives_the_same_maps_alone_and_in_a_batch(name):
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        first, again = load(name)(x), load(name)(x[1:])
    for tap in first:
        torch.testing.assert_close(first[tap][1:], again[tap], atol=1e-4, rtol=1e-4)


def test_loading_leaves_the_callers_random_numbers_alone(name):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load(name)
    assert torch.equal(torch.rand(2), expected)


def test_the_fingerprint_tells_what_changes_the_numbers(name):
    prints = [load(name).fingerprint, load(name, side=96).fingerprint]
    assert load(name).fingerprint == prints[0]
    if name != "pixels":
        prints.append(load(name, seed=1).fingerprint)
        encoder = load(name)
        assert encoder.fingerprint == prints[0]  # and is not remembered when the weights change
        with torch.no_grad():
            next(encoder.parameters())[:1] += 1.0
        prints.append(encoder.fingerprint)
    if name != "sam_nano":
        prints.append(load(name, prepare="standardise").fingerprint)
    assert len(set(prints)) == len(prints)


def test_it_is_frozen_until_asked(name):
    encoder = load(name)
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    if name == "pixels":
        return
    encoder.requires_grad_(True)
    sum(x.square().mean() for x in encoder(torch.randn(1, 3, 64, 64)).values()).backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []


def test_the_spec_loads_it_again(name):
    encoder = load(name)
    again = load_encoder(**json.loads(json.dumps(encoder.spec)))
    assert again.fingerprint == encoder.fingerprint and again.spec == encoder.spec


@pytest.mark.parametrize("shape", [(1, 40, 64), (3, 50, 30)])
def test_prepare_and_back(name, shape):
    """A smooth slice comes back where it was, up to interpolation and a scale of intensity."""
    y, x = torch.meshgrid(torch.linspace(0, 3, shape[1]), torch.linspace(0, 5, shape[2]), indexing="ij")
    image = (127 + 100 * torch.sin(x) * torch.cos(y)).expand(shape)
    encoder = load(name)
    square, frame = encoder.prepare(image)
    assert square.shape == (3, 64, 64) and square.dtype == torch.float32
    assert frame.original_size == shape[1:] and frame.side == 64 and max(frame.input_size) == 64
    back = to_original(square, frame)[0]
    assert back.shape == shape[1:]
    assert torch.corrcoef(torch.stack([back.flatten(), image[0].flatten()]))[0, 1] > 0.99


def test_its_units_tell_what_a_prepared_picture_was(name):
    """To the last grey level, or, where a slice is stretched by its own extremes, with 0 and 255 at these."""
    image = torch.linspace(40, 200, 64 * 64).view(1, 64, 64).expand(3, -1, -1).clone()
    image[1] *= 0.5
    encoder = load(name)
    means, deviations = (torch.tensor(values).view(3, 1, 1) for values in encoder.units)
    back = encoder.prepare(image)[0] * deviations + means
    if ENCODERS[name].__dict__.get("prepare") in ("medsam", "lite_medsam"):
        image = (image - image.min()) / (image.max() - image.min()) * 255
    torch.testing.assert_close(back, image, atol=0.01, rtol=0)


@pytest.mark.parametrize("name", ["tiny_lite_medsam", "tiny_mobile_sam"])
def test_tile_by_tile_the_maps_are_those_of_the_whole(monkeypatch, name):
    """What `--tune all` computes, with gradients, is computed as a whole; what a frozen encoder does, in tiles."""
    encoder, x = load(name), torch.randn(2, 3, 64, 64)
    whole = encoder.requires_grad_(True)(x)
    monkeypatch.setattr(tiny_vit_network, "_TILE", 1 << 10)  # some rows of the finest maps
    with torch.no_grad():
        tiled = encoder(x)
    for tap, expected in whole.items():
        torch.testing.assert_close(tiled[tap], expected.detach(), atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- prepare


def bars(height: int = 32, width: int = 64) -> torch.Tensor:
    return torch.linspace(50, 200, width).expand(1, height, width)


def test_sam_pads_after_normalising():
    square, frame = PREPARES["sam"](bars(), 64)
    assert frame.input_size == (32, 64)
    assert not square[:, 32:].any()
    torch.testing.assert_close(square[0, 0, 0], torch.tensor((50 - 123.675) / 58.395))
    torch.testing.assert_close(square[2, 0, -1], torch.tensor((200 - 103.53) / 57.375))


@pytest.mark.parametrize("way", ["medsam", "autosam"])
def test_medsam_and_autosam_stretch_to_zero_and_one(way):
    square, frame = PREPARES[way](bars(), 64)
    assert frame.input_size == (64, 64)
    assert square.min() == pytest.approx(0, abs=2e-2) and square.max() == pytest.approx(1, abs=2e-2)
    torch.testing.assert_close(square[0, 0], square[0, 63])


def test_autosam_goes_through_224_pixels():
    stripes = torch.tensor([0.0, 255.0]).repeat(448).expand(1, 32, 896)  # finer than 224 can show
    assert PREPARES["autosam"](stripes, 896)[0].std() < 0.01 < PREPARES["medsam"](stripes, 896)[0].std()


def test_standardise_and_unit():
    square = PREPARES["standardise"](bars(64, 64), 64)[0]
    assert square.mean().abs() < 1e-3 and square.std() == pytest.approx(1, abs=1e-2)
    assert PREPARES["unit"](bars(), 64)[0].max() == pytest.approx(200 / 255)


@pytest.mark.parametrize("way", PREPARES)
def test_a_constant_slice_is_finite(way):
    assert PREPARES[way](torch.full((1, 20, 30), 7.0), 64)[0].isfinite().all()


def test_two_channels_cannot_be_shown():
    with pytest.raises(SamAdaptError, match="2 channels"):
        load("pixels").prepare(torch.zeros(2, 8, 8))


# ---------------------------------------------------------------- SAM


def test_only_the_taps_that_are_read_cost_memory():
    encoder, x = load("tiny_sam"), torch.randn(1, 3, 64, 64)
    view = encoder.only(["block1"])
    found = view(x)
    assert list(found) == list(view.taps) == ["pixels", "block1"]
    assert view.fingerprint == encoder.fingerprint and "neck" in encoder.taps
    torch.testing.assert_close(found["block1"], encoder(x)["block1"])
    assert next(view.parameters()) is next(encoder.parameters())


def layout() -> dict:
    """Key -> shape of a tiny SAM in the original layout."""
    from transformers.models.sam.modeling_sam import SamVisionModel

    vision = original_layout(SamVisionModel(_config(TINY, 128)).state_dict())
    decoder = PromptedDecoder(32, (8, 8), 128, mlp_dim=16).state_dict()
    return {key: tuple(value.shape) for key, value in (vision | decoder).items()}


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A tiny SAM as a `.pth` of the original layout."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(known_weights(layout()), path)
    return path


def test_a_pth_brings_the_encoder_and_the_decoder(original):
    encoder = load_encoder("tiny_sam", checkpoint=original)
    decoder = PromptedDecoder(32, (8, 8), 128, mlp_dim=16)
    decoder.load_state_dict(encoder.decoder_state())
    key = "vision.layers.2.attn.rel_pos_h"
    expected = known_weights(layout())["image_encoder.blocks.2.attn.rel_pos_h"]
    assert torch.equal(encoder.state_dict()[key], expected)
    assert load("tiny_sam").decoder_state() == {}


def test_another_side_interpolates_the_positions_and_keeps_the_picture(original):
    """A smooth position embedding and a smooth picture: half the side gives nearly half the map."""
    state = torch.load(original)
    ramp = torch.linspace(-1, 1, 8)
    state["image_encoder.pos_embed"] = ramp[None, :, None, None] + 0.5 * ramp[None, None, :, None].expand(
        1, 8, 8, 32
    )
    rel = "image_encoder.blocks.1.attn.rel_pos_h"
    state[rel] = torch.linspace(-1, 1, 15)[:, None].expand(15, 16).clone()
    path = original.with_name("smooth.pth")
    torch.save(state, path)
    large, small = (load_encoder("tiny_sam", checkpoint=path, side=side) for side in (128, 64))
    assert large.fingerprint != small.fingerprint
    positions = small.state_dict()["vision.pos_embed"]
    assert positions.shape == (1, 4, 4, 32)
    assert positions[0, :, 0, 0].diff().min() > 0.3  # still from top to bottom
    table = small.state_dict()["vision.layers.1.attn.rel_pos_h"]
    assert table.shape == (7, 16) and table[3].abs().max() < 1e-6 and table[:, 0].diff().min() > 0.2
    windowed = "vision.layers.0.attn.rel_pos_h"  # a window is a window at any side
    assert torch.equal(small.state_dict()[windowed], large.state_dict()[windowed])


def test_a_folder_of_transformers_is_the_same_network(tmp_path):
    """Random weights saved by transformers, read under the original names, and the same masks."""
    from transformers.models.sam.configuration_sam import (
        SamConfig,
        SamMaskDecoderConfig,
        SamPromptEncoderConfig,
        SamVisionConfig,
    )
    from transformers.models.sam.modeling_sam import SamModel

    vision = SamVisionConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, global_attn_indexes=[1, 3], image_size=128,
        window_size=3, output_channels=32, num_pos_feats=16, initializer_range=0.02,
    )  # fmt: skip
    prompts = SamPromptEncoderConfig(hidden_size=32, image_size=128, mask_input_channels=16)
    masks = SamMaskDecoderConfig(
        hidden_size=32,
        mlp_dim=16,
        num_attention_heads=8,
        iou_head_hidden_dim=256,
        attention_downsample_rate=2,
    )
    torch.manual_seed(0)
    model = SamModel(
        SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=masks)
    ).eval()
    with torch.no_grad():
        for key, p in model.state_dict().items():
            p.copy_(known_weights({original_key(key): tuple(p.shape)})[original_key(key)])
    model.save_pretrained(tmp_path)
    encoder = load_encoder("tiny_sam", checkpoint=tmp_path)
    x, boxes = known_normal("x", (1, 3, 128, 128)), torch.tensor([[[10.0, 20.0, 90.0, 70.0]]])
    decoder = PromptedDecoder(32, (8, 8), 128, mlp_dim=16).eval()
    decoder.load_state_dict(encoder.decoder_state())
    with torch.no_grad():
        expected = model(pixel_values=x, input_boxes=boxes, multimask_output=True)
        logits, iou = decoder(encoder(x)["neck"], boxes=boxes[0], multimask=True)
    torch.testing.assert_close(logits, expected.pred_masks[0, 0][None], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(iou, expected.iou_scores[0], atol=1e-4, rtol=1e-4)


def test_the_table_of_models_is_pinned():
    assert {name: model.architecture for name, model in SAM_MODELS.items()} == {
        "sam_vit_b": VIT_B, "sam_vit_l": VIT_L, "sam_vit_h": VIT_H, "medsam_vit_b": VIT_B,
    }  # fmt: skip
    assert all(re.fullmatch("[0-9a-f]{40}", model.hub.revision) for model in SAM_MODELS.values())
    assert SAM_MODELS["medsam_vit_b"].prepare == "medsam"
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in SHA256.values())


# ---------------------------------------------------------------- bad input


def refuse(message: str, name: str = "tiny_sam", **arguments) -> None:
    with pytest.raises(SamAdaptError, match=message):
        load_encoder(name, **arguments)


def test_unknown_names():
    refuse("unknown encoder 'vitb'; known: .*sam_vit_b", name="vitb")
    refuse("unknown prepare 'imagenet'; known: autosam", checkpoint="random", prepare="imagenet")
    refuse("unknown prepare 'imagenet'", name="pixels", prepare="imagenet")


def test_sides_that_do_not_fit():
    refuse("side 100 does not fit .* a multiple of 16, such as 64 or 128", checkpoint="random", side=100)
    refuse("side 16 does not fit", checkpoint="random", side=16)
    refuse("side 8 is too small", name="pixels", side=8)


def test_no_weights_there(tmp_path):
    refuse("neither a file nor a folder", checkpoint=tmp_path / "none.pth")
    refuse("neither model.safetensors nor pytorch_model.bin", checkpoint=tmp_path)
    refuse("'pixels' has no weights", name="pixels", checkpoint="x.pth")


def test_no_network_and_no_cache(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    refuse("cannot get the weights nobody/nothing .* nor find them in its cache")


def test_a_truncated_pth(original, tmp_path):
    (tmp_path / "half.pth").write_bytes(original.read_bytes()[: original.stat().st_size // 2])
    refuse(r"half.pth \(\d+ bytes\) is truncated", checkpoint=tmp_path / "half.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    refuse(r"empty.pth \(0 bytes\) is not a file", checkpoint=tmp_path / "empty.pth")


def test_a_truncated_safetensors(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    refuse("model.safetensors .* is truncated or not a safetensors", checkpoint=tmp_path)


def test_not_weights_at_all(tmp_path):
    (tmp_path / "page.pth").write_text("<html>404</html>")
    refuse("is not a file of PyTorch weights", checkpoint=tmp_path / "page.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    refuse("holds list, not a dictionary of tensors", checkpoint=tmp_path / "list.pth")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    refuse(r"it is not SAM's; it begins with \['weight'\]", checkpoint=tmp_path / "other.pth")


def test_tensors_that_can_be_no_weights(tmp_path):
    path = tmp_path / "odd.pth"
    for state, words in (
        ({1: torch.zeros(2)}, "not called by words"),
        (
            {"a.weight": torch.zeros(2, dtype=torch.complex64)},
            "'a.weight' holds numbers of type torch.complex64",
        ),
        ({"a.weight": torch.zeros(2, dtype=torch.int32)}, "floating point ones are expected"),
        ({"a.weight": torch.tensor([1.0, float("nan")])}, "'a.weight' holds values that are not finite"),
    ):
        torch.save(state, path)
        refuse(words, checkpoint=path)
    for seed in range(20):  # whatever the bytes happen to mean
        path.write_bytes(bytes([0x80, 0x02]) + np.random.default_rng(seed).bytes(300))
        refuse("is not a file of PyTorch weights", checkpoint=path)


def test_a_lite_medsam_whose_parts_do_not_fit_each_other(tmp_path):
    encoder = load("tiny_lite_medsam")
    key = "image_encoder.patch_embed.seq.0"
    parts = {f"{key}.bn.{name}": torch.ones(3) for name in ("weight", "bias", "running_mean", "running_var")}
    torch.save({f"{key}.c.weight": torch.zeros(4, 3, 1, 1)} | parts, tmp_path / "odd.pth")
    refuse(
        "its batch normalisation is not of 4 channels",
        name="tiny_lite_medsam",
        checkpoint=tmp_path / "odd.pth",
        side=encoder.side,
    )


@pytest.mark.parametrize("content", [b"", b"text", b"\x10\x00\x00\x00\x00\x00\x00\x00{"])
def test_a_sam_nano_that_is_no_safetensors(tmp_path, content):
    (tmp_path / "odd.safetensors").write_bytes(content)
    refuse(
        "truncated or not a safetensors file",
        name="sam_nano",
        checkpoint=tmp_path / "odd.safetensors",
        side=64,
    )


@pytest.mark.parametrize("side", [0, -1, 100_000])
def test_no_encoder_takes_such_a_side(name, side):
    with pytest.raises(SamAdaptError, match=f"side is {side}; expected 1 to 4096 pixels"):
        load(name, side=side)


def test_a_cache_folder_of_nobody(monkeypatch):
    monkeypatch.setenv("SAMADAPT_CACHE", "~nosuchuser/x")
    with pytest.raises(SamAdaptError, match="SAMADAPT_CACHE is '~nosuchuser/x'"):
        load_encoder("mobile_sam")


def test_a_damaged_file_is_passed_over_by_the_default_and_named_where_it_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("SAMADAPT_CACHE", str(tmp_path))
    monkeypatch.setattr(PublishedFile, "_installed", lambda self: None)
    (tmp_path / "lite_medsam.pth").write_bytes(b"half of it")
    with pytest.warns(
        SamAdaptWarning, match=r"lite_medsam.pth \(10 bytes\) is truncated, altered or of another version"
    ):
        assert Learner("autosam").encoder == "sam_nano"
    with pytest.raises(SamAdaptError, match=r"of another version.*install the package"):
        load_encoder("lite_medsam")


class Surprise:
    def __reduce__(self):
        return (exec, ("raise SystemExit('a checkpoint ran code')",))


def test_a_checkpoint_runs_no_code(tmp_path):
    torch.save({"a": Surprise()}, tmp_path / "evil.pth")
    refuse("is not a file of PyTorch weights", checkpoint=tmp_path / "evil.pth")


def test_an_official_name_with_another_content(original, tmp_path):
    path = tmp_path / "sam_vit_b_01ec64.pth"
    path.write_bytes(original.read_bytes())
    refuse(
        r"is truncated, altered or of another version: its sha256 begins with [0-9a-f]{12}, .* with ec2df6273261",
        checkpoint=path,
    )


def test_another_architecture(tmp_path):
    blocks = {f"image_encoder.blocks.{i}.norm1.weight": torch.zeros(1024) for i in range(24)}
    torch.save({"image_encoder.pos_embed": torch.zeros(1, 64, 64, 1024)} | blocks, tmp_path / "l.pth")
    refuse(
        r"l.pth for 'sam_vit_b' is vit_l \(24 blocks, 1024 wide\); 12 blocks, 768 wide",
        name="sam_vit_b",
        checkpoint=tmp_path / "l.pth",
    )


def test_weights_that_are_missing(original, tmp_path):
    state = torch.load(original)
    del state["image_encoder.neck.0.weight"]
    torch.save(state, tmp_path / "less.pth")
    refuse("lacks 1 of .* such as 'image_encoder.neck.0.weight'", checkpoint=tmp_path / "less.pth")


def test_a_training_scripts_checkpoint_is_unwrapped(original, tmp_path):
    torch.save({"model": torch.load(original), "epoch": 3}, tmp_path / "run.pth")
    one, two = (load_encoder("tiny_sam", checkpoint=p) for p in (original, tmp_path / "run.pth"))
    assert one.fingerprint == two.fingerprint
