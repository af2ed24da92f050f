"""SAM 2.1 and DINOv3: the maps are transformers' own, from every layout of their folders; what is no such folder."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from samadapt.encoders import ENCODERS, EncoderSpec, load_encoder
from samadapt.encoders.dinov3 import DINOV3_MODELS
from samadapt.encoders.sam2 import SAM2_MODELS
from samadapt.heads import build_head
from samadapt.heads.fused import choose_reads
from samadapt.types import LABEL_GRID, SamAdaptError
from samadapt.views.prepare import PREPARES

MODELS = {entry.name: entry for entry in SAM2_MODELS + DINOV3_MODELS}
TINY = {entry.tiny.name: entry.tiny for entry in MODELS.values()}
NAMES = sorted(TINY)


@pytest.fixture(autouse=True)
def tiny_table(monkeypatch):
    for name, entry in TINY.items():
        monkeypatch.setitem(ENCODERS, name, entry)


def same_maps(name: str, one: Path, two: Path) -> None:
    """From two checkpoints, to the last digit."""
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps, others = (EncoderSpec(name, path, side=64).load()(x) for path in (one, two))
    assert list(maps) == list(others) and all(torch.equal(maps[tap], others[tap]) for tap in maps)


def sam2_config():
    """Of `tiny_sam2`, written out."""
    from transformers.models.sam2.configuration_sam2 import Sam2HieraDetConfig, Sam2VisionConfig

    backbone = Sam2HieraDetConfig(
        hidden_size=8, num_attention_heads=1, blocks_per_stage=[1, 1, 2, 1], embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 2, 4, 8], window_size_per_stage=[8, 4, 6, 3], global_attention_blocks=[3],
        window_positional_embedding_background_size=[7, 7],
    )  # fmt: skip
    return Sam2VisionConfig(
        backbone_config=backbone, backbone_channel_list=[64, 32, 16, 8], fpn_hidden_size=16
    )


def draw(model):
    """Every weight by chance, also those that transformers leaves at zero or one."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * 0.3)
    return model.eval()


def tiny_sam2():
    from transformers.models.sam2.modeling_sam2 import Sam2VisionModel

    return draw(Sam2VisionModel(sam2_config()))


def tiny_dinov3():
    from transformers.models.dinov3_vit.configuration_dinov3_vit import DINOv3ViTConfig
    from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTModel

    config = DINOv3ViTConfig(
        hidden_size=16,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_register_tokens=3,
    )
    return draw(DINOv3ViTModel(config))


@pytest.fixture
def folders(tmp_path):
    """A folder for each encoder, as transformers saves it."""
    for name, model in (("tiny_sam2", tiny_sam2()), ("tiny_dinov3", tiny_dinov3())):
        model.save_pretrained(tmp_path / name)
    return {name: tmp_path / name for name in NAMES}


# ---------------------------------------------------------------- the same network


def test_sam2_gives_the_maps_of_transformers(folders):
    from transformers.models.sam2.modeling_sam2 import Sam2VisionModel

    model = Sam2VisionModel.from_pretrained(folders["tiny_sam2"]).eval()
    encoder, x = (
        load_encoder("tiny_sam2", checkpoint=folders["tiny_sam2"], side=96),
        torch.randn(2, 3, 96, 96),
    )
    with torch.no_grad():
        maps, expected = encoder(x), model(x).fpn_hidden_states
    assert [y.shape[-1] for y in expected] == [24, 12, 6]
    for tap, y in zip(("stride4", "stride8", "neck"), expected, strict=True):
        torch.testing.assert_close(maps[tap], y)


def test_dinov3_gives_the_patches_of_transformers(folders):
    from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTModel

    model = DINOv3ViTModel.from_pretrained(folders["tiny_dinov3"]).eval()
    encoder, x = (
        load_encoder("tiny_dinov3", checkpoint=folders["tiny_dinov3"], side=96),
        torch.randn(2, 3, 96, 96),
    )
    with torch.no_grad():
        maps, expected = encoder(x), model(x, output_hidden_states=True)
    tokens = dict(zip(("block0", "block1", "block2"), expected.hidden_states[1:], strict=False))
    tokens["neck"] = expected.last_hidden_state  # after the last normalisation
    assert list(maps) == ["pixels", *tokens]
    for tap, y in tokens.items():
        for i in (0, 7, 35):  # one class token and three registers come first; rows of six patches
            torch.testing.assert_close(maps[tap][:, :, i // 6, i % 6], y[:, 4 + i])


def test_a_whole_model_holds_the_same_encoder(folders, tmp_path):
    """The hub's folders are of SAM 2's model for videos, the encoder's weights under a prefix."""
    from transformers.models.sam2_video.configuration_sam2_video import Sam2VideoConfig
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoModel

    whole = Sam2VideoModel(Sam2VideoConfig(vision_config=sam2_config()))
    whole.vision_encoder.load_state_dict(tiny_sam2().state_dict())
    whole.save_pretrained(tmp_path / "whole")
    kept = load_file(tmp_path / "whole" / "model.safetensors")
    assert {key.split(".")[0] for key in kept} > {"vision_encoder", "mask_decoder"}
    same_maps("tiny_sam2", folders["tiny_sam2"], tmp_path / "whole")


def test_both_layouts_of_dinov3_and_a_folder_without_settings(folders, tmp_path):
    """Published files say `layer.0`, the network of today `model.layer.0`; the hub gives the weights alone."""
    state = load_file(folders["tiny_dinov3"] / "model.safetensors")
    (tmp_path / "other").mkdir()
    renamed = {("model." + k if k.startswith("layer.") else k): v for k, v in state.items()}
    assert renamed.keys() != state.keys()
    save_file(renamed, tmp_path / "other" / "model.safetensors")
    same_maps("tiny_dinov3", folders["tiny_dinov3"], tmp_path / "other")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_read_by_its_keys(folders, tmp_path, name):
    """Of either format, whatever lies beside it."""
    file = folders[name] / "model.safetensors"
    torch.save(load_file(file), tmp_path / "w.pth")
    (folders[name] / "config.json").write_text(json.dumps({"model_type": "sam"}))
    same_maps(name, file, tmp_path / "w.pth")


@pytest.mark.parametrize("name", NAMES)
def test_training_mode_changes_nothing(name):
    """DINOv3's positions are shaken in training mode."""
    encoder, x = load_encoder(name, checkpoint="random", side=64), torch.randn(1, 3, 64, 64)
    before = encoder(x)["neck"]
    assert torch.equal(encoder.train()(x)["neck"], before) and not encoder.network.training


@pytest.mark.parametrize("name", NAMES)
def test_fewer_taps(name):
    spec, x = EncoderSpec(name, "random", side=64), torch.randn(1, 3, 64, 64)
    found = spec.load({"neck": 1})(x)
    assert list(found) == ["pixels", "neck"] and len(spec.taps) > 3
    torch.testing.assert_close(found["neck"], spec.load()(x)["neck"])


@pytest.mark.parametrize("head", ["fused", "probe", "autosam"])
@pytest.mark.parametrize("name", NAMES)
def test_heads_read_them(name, head):
    spec = EncoderSpec(name, "random", side=64)
    model = build_head(head, spec.taps, n_classes=3, pretrained=spec.decoder_state())
    target = torch.rand(2, 3, LABEL_GRID, LABEL_GRID).softmax(1)
    assert model.loss(spec.load(model.reads)(torch.randn(2, 3, 64, 64)), target).isfinite()


def test_fused_reads_every_map_as_it_is():
    taps = {name: EncoderSpec(name).taps for name in MODELS}
    assert choose_reads(taps["sam2_tiny"]) == {"pixels": 1, "stride4": 1, "stride8": 1, "neck": 1}
    assert choose_reads(taps["dinov3_vits16"]) == dict.fromkeys(
        ["pixels", "block2", "block5", "block8", "neck"], 1
    )
    assert taps["sam2_base_plus"]["neck"] == (256, 64, 64) and taps["dinov3_vitb16"]["neck"] == (768, 32, 32)


# ---------------------------------------------------------------- the published ones


def test_the_tables_are_pinned():
    assert {name: entry.published.repo for name, entry in MODELS.items()} == {
        "sam2_tiny": "facebook/sam2.1-hiera-tiny",
        "sam2_small": "facebook/sam2.1-hiera-small",
        "sam2_base_plus": "facebook/sam2.1-hiera-base-plus",
        "dinov3_vits16": "facebook/dinov3-vits16-pretrain-lvd1689m",
        "dinov3_vitb16": "facebook/dinov3-vitb16-pretrain-lvd1689m",
    }
    assert all(re.fullmatch("[0-9a-f]{40}", entry.published.revision) for entry in MODELS.values())
    gated = {name for name, entry in MODELS.items() if entry.published.gated}
    assert gated == {entry.name for entry in DINOV3_MODELS}


@pytest.mark.parametrize(
    ("name", "megabytes"), [("sam2_tiny", 156), ("sam2_small", 184), ("sam2_base_plus", 323)]
)
def test_sam2s_files_have_the_published_size(name, megabytes):
    """Of the whole model, since that is what is published."""
    from transformers.models.sam2_video.configuration_sam2_video import Sam2VideoConfig
    from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoModel

    with torch.device("meta"):
        whole = Sam2VideoModel(Sam2VideoConfig(vision_config=MODELS[name].config()))
    assert round(4e-6 * sum(p.numel() for p in whole.state_dict().values())) == megabytes


@pytest.mark.parametrize(
    ("name", "parameters"), [("dinov3_vits16", 21_596_544), ("dinov3_vitb16", 85_660_416)]
)
def test_dinov3s_networks_have_the_published_size(name, parameters):
    entry = MODELS[name]
    with torch.device("meta"):
        found = sum(p.numel() for p in entry.build().parameters())
    assert found + entry.width == parameters  # the token of masked patches is left out


def test_pictures_are_prepared_as_published():
    bars = torch.linspace(0, 255, 64).expand(3, 32, 64)
    square, frame = PREPARES["imagenet_stretched"](bars, 64)
    assert frame.input_size == (64, 64) and frame.original_size == (32, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(square[:, 40], ((bars[:, 0] / 255).T.sub(mean).div(std)).T, atol=1e-4, rtol=0)
    assert all(entry.prepare == "imagenet_stretched" for entry in MODELS.values())


# ---------------------------------------------------------------- bad input


def refuse(message: str, name: str, **arguments) -> None:
    with pytest.raises(SamAdaptError, match=message):
        load_encoder(name, **arguments)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_another_model(folders, name):
    other = folders[NAMES[1 - NAMES.index(name)]]
    refuse(
        "holds a model of type '(dinov3_vit|sam2_vision_model)', and '.*' is expected", name, checkpoint=other
    )
    config = folders[name] / "config.json"
    config.write_text(json.dumps({"model_type": "sam"}))
    refuse("holds a model of type 'sam', and ", name, checkpoint=folders[name])
    config.write_text("[]")
    refuse("holds a model of type '', and ", name, checkpoint=folders[name])
    config.write_text("{")
    refuse("config.json is not JSON", name, checkpoint=folders[name])


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_another_size_too_few_or_too_many(folders, name):
    path = folders[name] / "model.safetensors"
    state = load_file(path)
    key = sorted(state)[0]
    told = r"differs from this network in \d+ of \d+ weights, such as '(backbone|embeddings|layer|neck)"
    for changed in (
        {k: v for k, v in state.items() if k != key},
        state | {key: torch.zeros(3)},
        state | {f"{key.split('.')[0]}.another": torch.zeros(3)},
    ):
        save_file(changed, path)
        refuse(told, name, checkpoint=folders[name])


@pytest.mark.parametrize(("name", "step"), [("tiny_sam2", 32), ("tiny_dinov3", 16)])
def test_sides_that_do_not_fit(name, step):
    for side in (step, 3 * step + 8):
        refuse(
            f"side {side} does not fit encoder '{name}'; give a multiple of {step}",
            name,
            checkpoint="random",
            side=side,
        )


def test_no_folder(tmp_path):
    refuse(
        "'.*none.pth' of encoder 'tiny_sam2' is neither a file nor a folder, .* a folder as transformers saves it",
        "tiny_sam2",
        checkpoint=tmp_path / "none.pth",
    )
    refuse("neither model.safetensors nor pytorch_model.bin", "tiny_dinov3", checkpoint=tmp_path)
    refuse("unknown prepare 'squash'", "tiny_dinov3", checkpoint="random", prepare="squash")


def test_no_network_and_no_cache(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    refuse(
        "cannot get the weights facebook/sam2.* nor find them in its cache .*; check the name and the revision, connect "
        "once, or give --checkpoint and a file or a folder with the weights",
        "tiny_sam2",
    )
    refuse(
        "weights facebook/dinov3.*, accept the licence on its page and log in, connect once, or",
        "tiny_dinov3",
    )
    refuse("cannot get the weights facebook/sam2.1-hiera-tiny ", "sam2_tiny")
