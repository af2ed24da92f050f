"""The contract of encoders, over the table in tiny random variants; checkpoints good and bad."""

import json
import math
import re
import shutil
import time
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from fixtures.known import known_normal, known_weights
from samadapt.encoders import ENCODERS, EncoderEntry, EncoderSpec, load_encoder, tiles
from samadapt.encoders.checkpoints import SHA256, original_key, original_layout
from samadapt.encoders.sam import _TINY, SAM_MODELS
from samadapt.encoders.sam_network import VIT_B, VIT_H, VIT_L, SamViT
from samadapt.encoders.tiny_vit import TINY_VITS
from samadapt.heads.mask_decoder import PromptedDecoder
from samadapt.learner import Learner
from samadapt.transforms import pool_taps, to_original
from samadapt.types import SamAdaptError, SamAdaptWarning
from samadapt.views.prepare import PREPARES
from samadapt.weights import PublishedFile

TABLE = dict(ENCODERS)
#: What stands for its entries: the tiny ones where they have one.
TINY = {entry.name: entry for entry in (entry.tiny or entry for entry in TABLE.values())}
#: Ways to prepare that stretch each slice by its own extremes.
BY_EXTREMES = {"autosam", "lite_medsam", "medsam"}


@pytest.fixture(autouse=True)
def tiny_table(monkeypatch):
    for name, entry in TINY.items():
        monkeypatch.setitem(ENCODERS, name, entry)


@pytest.fixture(params=sorted(TINY))
def entry(request):
    return TINY[request.param]


def side_of(entry: EncoderEntry, at_least: int = 64) -> int:
    """A small side that it can have."""
    return math.ceil(max(at_least, entry.least) / entry.step) * entry.step


def spec_of(entry: EncoderEntry, **options) -> EncoderSpec:
    """Of random weights, where it has any."""
    if entry.published is not None:
        options.setdefault("checkpoint", "random")
    return EncoderSpec(entry.name, **{"side": side_of(entry), **options})


def load(name: str, side: int = 64, **options):
    return spec_of(ENCODERS[name], side=side, **options).load()


def picture(side: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def same_maps(one: EncoderSpec, two: EncoderSpec) -> None:
    """Of one picture, to the last digit."""
    x = picture(one.side, 1)
    with torch.no_grad():
        maps, others = one.load()(x), two.load()(x)
    assert list(maps) == list(others) and all(torch.equal(maps[tap], others[tap]) for tap in maps)


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    """Building a network, or reading its weights, fails."""

    def fail(self, *_):
        raise AssertionError(f"{self.name} was loaded")

    for kind in {type(entry) for entry in ENCODERS.values()}:
        for method in ("network", "loaded", "read"):
            monkeypatch.setattr(kind, method, fail)


# ---------------------------------------------------------------- the contract


def test_an_entry_stands_under_its_name_and_its_tiny_one_is_of_its_family():
    for name, entry in ENCODERS.items():
        assert entry.name == name
        if entry.tiny is not None:
            assert type(entry.tiny) is type(entry) and entry.tiny.tiny is None
            assert (entry.tiny.prepare, entry.tiny.version) == (entry.prepare, entry.version)


def test_it_gives_the_taps_that_it_declares(entry):
    spec = spec_of(entry)
    side = spec.side
    assert spec.taps["pixels"] == (3, side, side)
    extractor = spec.load()
    assert extractor.taps == spec.taps and extractor.spec == spec
    with torch.no_grad():
        found = extractor(picture(side))
    assert {tap: tuple(x.shape) for tap, x in found.items()} == {k: (2, *v) for k, v in spec.taps.items()}
    assert list(found) == list(spec.taps)
    assert all(x.isfinite().all() and x.std() > 1e-3 for x in found.values())


def test_it_gives_what_is_read_and_nothing_else(entry):
    """One tap, pooled as its reader declared; pixels, and what is no map, are not the encoder's."""
    spec, x = spec_of(entry), picture(side_of(entry))
    with torch.no_grad():
        maps = spec.load()(x)
        for tap in spec.taps:
            reads = {"pixels": 1, "identity": 1, tap: 1}
            found = spec.load(reads)(x)
            assert list(found) == list(dict.fromkeys(["pixels", tap]))
            torch.testing.assert_close(found[tap], maps[tap], atol=1e-5, rtol=1e-5)
        for window in (2, 0):
            reads = {tap: window for tap in spec.taps if tap != "pixels"}
            found, expected = spec.load(reads)(x), pool_taps(maps, reads)
            for tap in reads:
                torch.testing.assert_close(found[tap], expected[tap], atol=1e-5, rtol=1e-5)
    with pytest.raises(SamAdaptError, match=r"does not give \['nothing'\]; it gives \[.*'pixels'"):
        spec.load({"nothing": 1})


def test_the_same_seed_gives_the_same_maps_alone_and_in_a_batch(entry):
    x = picture(side_of(entry))
    with torch.no_grad():
        first, again = spec_of(entry).load()(x), spec_of(entry).load()(x[1:])
    for tap in first:
        torch.testing.assert_close(first[tap][1:], again[tap], atol=1e-4, rtol=1e-4)
    if entry.published is not None:
        other = spec_of(entry, seed=1).load()
        assert any(
            (p != q).any()
            for p, q in zip(other.parameters(), spec_of(entry).load().parameters(), strict=True)
        )


def test_loading_leaves_the_callers_random_numbers_alone(entry):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    spec_of(entry).load()
    assert torch.equal(torch.rand(2), expected)


def test_the_fingerprint_tells_what_changes_the_numbers(entry, tmp_path, nothing_is_loaded):
    """And nothing is loaded for it."""
    own = spec_of(entry).fingerprint
    assert spec_of(entry).fingerprint == own
    prints = [own, spec_of(entry, side=side_of(entry, 96)).fingerprint]
    if not entry.one_preparation:
        prints.append(spec_of(entry, prepare="standardise").fingerprint)
    if entry.published is not None:
        prints.append(spec_of(entry, seed=1).fingerprint)
        prints.append(spec_of(entry, dtype="bfloat16").fingerprint)
        file = tmp_path / "w.pth"
        for content in (b"one", b"another"):
            file.write_bytes(content)
            prints.append(spec_of(entry, checkpoint=str(file)).fingerprint)
        assert spec_of(entry, checkpoint=str(file), seed=1).fingerprint == prints[-1]  # a file has no seed
        shutil.copy(file, tmp_path / "copy.pth")
        assert spec_of(entry, checkpoint=str(tmp_path / "copy.pth")).fingerprint == prints[-1]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize("checkpoint", [None, "random"])
def test_no_two_encoders_of_the_table_share_a_fingerprint(nothing_is_loaded, checkpoint):
    """Prepared alike, too: the weights, or the networks that are drawn, differ."""
    prints = [
        EncoderSpec(name, checkpoint, 1024, None if entry.one_preparation else "sam").fingerprint
        for name, entry in TABLE.items()
        if entry.published is not None
    ]
    assert len(prints) > 5 and len(set(prints)) == len(prints)


def test_what_it_gives_is_told_at_once_and_nothing_is_loaded(nothing_is_loaded):
    for name in ENCODERS:
        times = []
        for _ in range(20):
            start = time.perf_counter()
            taps = EncoderSpec(name).taps
            times.append(time.perf_counter() - start)
        assert min(times) < 1e-3, name
        assert all(len(shape) == 3 and min(shape) >= 1 for shape in taps.values())


def test_it_is_frozen_until_asked(entry):
    extractor = spec_of(entry).load()
    assert not extractor.training and not any(p.requires_grad for p in extractor.parameters())
    if entry.published is None:
        assert not list(extractor.parameters())
        return
    extractor.requires_grad_(True)
    sum(x.square().mean() for x in extractor(picture(side_of(entry), 1)).values()).backward()
    assert [n for n, p in extractor.named_parameters() if p.grad is None] == []


def test_the_spec_loads_it_again(entry):
    spec = spec_of(entry, seed=5)
    again = EncoderSpec(**json.loads(json.dumps(spec.to_json())))
    assert again == spec and hash(again) == hash(spec) and again.fingerprint == spec.fingerprint
    same_maps(spec, again)


def test_load_encoder_gives_all_its_taps(entry):
    spec = spec_of(entry, seed=5)
    extractor = load_encoder(spec.name, spec.checkpoint, spec.side, seed=5)
    assert extractor.spec == spec and extractor.reads == dict.fromkeys(entry.taps(spec.side), 1)


def test_untrained_weights_bring_no_decoder(entry):
    spec = spec_of(entry)
    assert spec.decoder_state() == {} and not spec.pretrained


@pytest.mark.parametrize("shape", [(1, 40, 64), (3, 50, 30)])
def test_prepare_and_back(entry, shape):
    """A smooth slice comes back where it was, up to interpolation and a scale of intensity."""
    y, x = torch.meshgrid(torch.linspace(0, 3, shape[1]), torch.linspace(0, 5, shape[2]), indexing="ij")
    image = (127 + 100 * torch.sin(x) * torch.cos(y)).expand(shape)
    side = side_of(entry)
    square, frame = spec_of(entry).view("none").preprocess(image)
    assert square.shape == (3, side, side) and square.dtype == torch.float32
    assert frame.original_size == shape[1:] and frame.side == side and max(frame.input_size) == side
    back = to_original(square, frame)[0]
    assert back.shape == shape[1:]
    assert torch.corrcoef(torch.stack([back.flatten(), image[0].flatten()]))[0, 1] > 0.99


def test_its_units_tell_what_a_prepared_picture_was(entry):
    """To the last grey level, or, where a slice is stretched by its own extremes, with 0 and 255 at these."""
    side = side_of(entry)
    image = torch.linspace(40, 200, side * side).view(1, side, side).expand(3, -1, -1).clone()
    image[1] *= 0.5
    view = spec_of(entry).view("none")
    means, deviations = (torch.tensor(values).view(3, 1, 1) for values in view.units)
    back = view.preprocess(image)[0] * deviations + means
    if entry.prepare in BY_EXTREMES:
        image = (image - image.min()) / (image.max() - image.min()) * 255
    torch.testing.assert_close(back, image, atol=0.01, rtol=0)


@pytest.mark.parametrize("size", [1 << 6, 1 << 10, 1 << 14])  # a row at a time, some rows, some windows
@pytest.mark.parametrize("name", [entry.tiny.name for entry in (*TINY_VITS, *SAM_MODELS)])
def test_tile_by_tile_the_maps_are_those_of_the_whole(monkeypatch, name, size):
    """What `--tune all` computes, with gradients, is computed as a whole; what a frozen encoder does, in tiles."""
    extractor, x = load(name), picture(64)
    for key, parameter in extractor.named_parameters():
        if "rel_pos" in key:  # drawn small, so that they would hardly be missed
            torch.nn.init.normal_(parameter)
    whole = extractor.requires_grad_(True)(x)
    monkeypatch.setattr(tiles, "TILE", size)
    with torch.no_grad():
        tiled = extractor(x)
    for tap, expected in whole.items():
        torch.testing.assert_close(tiled[tap], expected.detach(), atol=1e-5, rtol=1e-5)


def test_a_frozen_encoder_computes_in_its_own_precision_whatever_the_training_does(entry):
    """So that a head is trained on the maps that it will predict from."""
    x = picture(side_of(entry), 1)
    with torch.no_grad():
        own = spec_of(entry).load()(x)
        with torch.autocast("cpu", torch.bfloat16):
            trained = spec_of(entry).load()(x)
    assert all(torch.equal(trained[tap], own[tap]) for tap in own)


def test_bfloat16_rounds_the_maps_and_little_more(entry):
    x = picture(side_of(entry), 1)
    with torch.no_grad():
        exact, rounded = spec_of(entry).load()(x), spec_of(entry, dtype="bfloat16").load()(x)
    for tap in exact.keys() - {"pixels"}:
        error = (rounded[tap] - exact[tap]).norm() / exact[tap].norm()
        assert 0 < error < 0.2, tap
        assert rounded[tap].dtype == torch.float32, tap  # for heads outside of any autocast


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
        EncoderSpec("pixels").view("none").preprocess(torch.zeros(2, 8, 8))


# ---------------------------------------------------------------- SAM


def layout() -> dict:
    """Key -> shape of a tiny SAM in the original layout."""
    vision = {f"image_encoder.{key}": value for key, value in SamViT(_TINY, 128).state_dict().items()}
    decoder = PromptedDecoder(32, (8, 8), 128, mlp_dim=16).state_dict()
    return {key: tuple(value.shape) for key, value in (vision | decoder).items()}


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A tiny SAM as a `.pth` of the original layout."""
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(known_weights(layout()), path)
    return path


def test_a_pth_brings_the_encoder_and_the_decoder(original):
    spec = EncoderSpec("tiny_sam", original)
    decoder = PromptedDecoder(32, (8, 8), 128, mlp_dim=16)
    decoder.load_state_dict(spec.decoder_state())
    key = "blocks.2.attn.rel_pos_h"
    expected = known_weights(layout())["image_encoder.blocks.2.attn.rel_pos_h"]
    assert torch.equal(spec.load().network.state_dict()[key], expected)


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
    specs = [EncoderSpec("tiny_sam", path, side) for side in (128, 64)]
    assert specs[0].fingerprint != specs[1].fingerprint
    large, small = (spec.load().network for spec in specs)
    positions = small.state_dict()["pos_embed"]
    assert positions.shape == (1, 4, 4, 32)
    assert positions[0, :, 0, 0].diff().min() > 0.3  # still from top to bottom
    table = small.state_dict()["blocks.1.attn.rel_pos_h"]
    assert table.shape == (7, 16) and table[3].abs().max() < 1e-6 and table[:, 0].diff().min() > 0.2
    windowed = "blocks.0.attn.rel_pos_h"  # a window is a window at any side
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
    encoder = EncoderSpec("tiny_sam", tmp_path).load()
    x, boxes = known_normal("x", (1, 3, 128, 128)), torch.tensor([[[10.0, 20.0, 90.0, 70.0]]])
    decoder = PromptedDecoder(32, (8, 8), 128, mlp_dim=16).eval()
    decoder.load_state_dict(encoder.spec.decoder_state())
    with torch.no_grad():
        expected = model(pixel_values=x, input_boxes=boxes, multimask_output=True)
        logits, iou = decoder(encoder(x)["neck"], boxes=boxes[0], multimask=True)
    torch.testing.assert_close(logits, expected.pred_masks[0, 0][None], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(iou, expected.iou_scores[0], atol=1e-4, rtol=1e-4)
    torch.save(original_layout(model.state_dict()), tmp_path / "same.pth")
    same_maps(encoder.spec, EncoderSpec("tiny_sam", tmp_path / "same.pth"))


def test_the_table_of_models_is_pinned():
    assert {entry.name: entry.architecture for entry in SAM_MODELS} == {
        "sam_vit_b": VIT_B, "sam_vit_l": VIT_L, "sam_vit_h": VIT_H, "medsam_vit_b": VIT_B,
    }  # fmt: skip
    assert all(re.fullmatch("[0-9a-f]{40}", entry.published.revision) for entry in SAM_MODELS)
    assert {e.name: e.prepare for e in SAM_MODELS if e.prepare != "sam"} == {"medsam_vit_b": "medsam"}
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in SHA256.values())


# ---------------------------------------------------------------- bad input


def refuse(message: str, name: str = "tiny_sam", **arguments) -> None:
    with pytest.raises(SamAdaptError, match=message):
        load_encoder(name, **arguments)


def test_unknown_names():
    refuse("unknown encoder 'vitb'; known: .*sam_vit_b", name="vitb")
    refuse("unknown prepare 'imagenet'; known: autosam", checkpoint="random", prepare="imagenet")
    refuse("unknown prepare 'imagenet'", name="pixels", prepare="imagenet")
    refuse(
        "'sam_nano' has one way to prepare images; leave out prepare 'sam'", name="sam_nano", prepare="sam"
    )


def test_other_types_are_refused():
    with pytest.raises(SamAdaptError, match="dtype is 'float16'; expected float32 or bfloat16"):
        EncoderSpec("pixels", dtype="float16")


def test_sides_that_do_not_fit():
    told = "does not fit encoder 'tiny_sam'; give a multiple of 16, at least 32, such as 128"
    refuse(f"side 100 {told}", checkpoint="random", side=100)
    refuse(f"side 16 {told}", checkpoint="random", side=16)
    refuse("side 8 does not fit encoder 'pixels'; give at least 28, such as 256", name="pixels", side=8)


def test_no_weights_there(tmp_path):
    told = "of encoder 'tiny_sam' is neither a file nor a folder, nor a model of the hub with its revision"
    for checkpoint in (tmp_path / "none.pth", "~nosuchuser/none.pth", "owner/name", "owner/name@main"):
        refuse(f"--checkpoint '.*{Path(checkpoint).name}' {told}", checkpoint=checkpoint)
    refuse("neither model.safetensors nor pytorch_model.bin", checkpoint=tmp_path)


@pytest.mark.parametrize("checkpoint", ["x.pth", "random"])
def test_pixels_have_no_weights(checkpoint):
    refuse(
        f"'pixels' has no weights; leave out the checkpoint '{checkpoint}'",
        name="pixels",
        checkpoint=checkpoint,
    )


def test_no_network_and_no_cache(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repo = ENCODERS["tiny_sam"].published.repo
    refuse(
        f"cannot get the weights {repo} .* nor find them in its cache .*connect once, or give --checkpoint and a file"
    )
    refuse(
        "cannot get the weights nobody/nothing .* check the name and the revision",
        checkpoint=f"nobody/nothing@{'0' * 40}",
    )


def test_a_model_of_the_hub_at_its_revision(monkeypatch, original, tmp_path):
    """Asked for only when it is loaded: in the cache, then on the hub, under either name of the file."""
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    asked = []
    shutil.copy(original, tmp_path / "pytorch_model.bin")

    def download(repo, file, revision, local_files_only):
        asked.append((repo, file, revision, local_files_only))
        if local_files_only:
            raise LocalEntryNotFoundError("not fetched yet")
        if file != "pytorch_model.bin":
            raise RemoteEntryNotFoundError("it has none", response=Mock())
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    revision = "0a" * 20
    spec = EncoderSpec("tiny_sam", f"owner/name.of-it@{revision}")
    assert f"owner/name.of-it@{revision}" in spec.fingerprint
    published = EncoderSpec("tiny_sam", spec.entry.published.identity)
    assert published.fingerprint == EncoderSpec("tiny_sam").fingerprint and asked == []
    same_maps(EncoderSpec("tiny_sam", original), spec)
    files = ["model.safetensors", "pytorch_model.bin"]
    assert asked == [
        ("owner/name.of-it", file, revision, cached) for cached in (True, False) for file in files
    ]


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
    key = "image_encoder.patch_embed.seq.0"
    parts = {f"{key}.bn.{name}": torch.ones(3) for name in ("weight", "bias", "running_mean", "running_var")}
    torch.save({f"{key}.c.weight": torch.zeros(4, 3, 1, 1)} | parts, tmp_path / "odd.pth")
    refuse(
        "its batch normalisation is not of 4 channels",
        name="tiny_lite_medsam",
        checkpoint=tmp_path / "odd.pth",
        side=64,
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
def test_no_encoder_takes_such_a_side(entry, side):
    with pytest.raises(SamAdaptError, match=f"side is {side}; expected 1 to 4096 pixels"):
        spec_of(entry, side=side)


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
    refuse("differs from this network in 1 of .* such as 'neck.0.weight'", checkpoint=tmp_path / "less.pth")


def test_a_training_scripts_checkpoint_is_unwrapped(original, tmp_path):
    """The same maps and decoder; files of other bytes are told apart all the same."""
    torch.save({"model": torch.load(original), "epoch": 3}, tmp_path / "run.pth")
    one, two = (EncoderSpec("tiny_sam", path) for path in (original, tmp_path / "run.pth"))
    same_maps(one, two)
    decoders = one.decoder_state(), two.decoder_state()
    assert decoders[0].keys() == decoders[1].keys() and len(decoders[0]) > 50
    assert all(torch.equal(value, decoders[1][key]) for key, value in decoders[0].items())
    assert one.fingerprint != two.fingerprint
