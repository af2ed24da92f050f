"""Backbones: they give the stages they declare, and hold published weights."""

import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from samadapt.backbones import BACKBONES, Backbone, build_backbone
from samadapt.backbones.convolutional import _rename_densenet, _rename_senet
from samadapt.types import SamAdaptError

SLOW = pytest.mark.slow
LARGE = {"resnet152", "senet154", "swinv2_base"}
NAMES = [pytest.param(n, marks=SLOW) if n in LARGE else n for n in sorted(BACKBONES)]


def stages_of(backbone, side):
    found = {}

    def note(stage, x):
        found[stage] = tuple(x.shape[1:])
        return x

    with torch.no_grad():
        last = backbone.eval()(torch.randn(1, 3, side, side), note)
    return found, last


@pytest.mark.parametrize("name", NAMES)
def test_gives_the_stages_it_declares(name):
    backbone = build_backbone(name)
    found, last = stages_of(backbone, 64)
    assert list(found) == ["stem", "stage1", "stage2", "stage3", "stage4"]
    assert {stage: shape[0] for stage, shape in found.items()} == backbone.stages
    stem = 32 if name.startswith("efficientnet") else 16  # these halve once before their first stage
    assert [shape[1] for shape in found.values()] == [stem, 16, 8, 4, 2]
    assert last.shape == (1, backbone.channels, 2, 2)


def test_a_stem_for_small_inputs_keeps_the_grid():
    backbone = build_backbone("resnet18", small_input=True)
    found, _ = stages_of(backbone, backbone.side)
    assert [shape[1] for shape in found.values()] == [28, 28, 14, 7, 4]  # as MedMNIST's ResNet for 28 px
    # ... and as theirs it starts from torch's own weights: uniform, up to 1 / sqrt(fan in).
    for module in backbone.modules():
        if isinstance(module, torch.nn.Conv2d):
            largest = module.weight[0].numel() ** -0.5
            assert 0.9 < float(module.weight.detach().abs().max()) / largest < 1.001
    with pytest.raises(SamAdaptError, match="no stem for small inputs"):
        build_backbone("senet154", small_input=True)


def test_what_follows_a_stage_reaches_the_next():
    backbone = build_backbone("resnet18").eval()
    x = torch.randn(1, 3, 64, 64)
    silenced = backbone(x, lambda stage, y: torch.zeros_like(y) if stage == "stage2" else y)
    plain = backbone(x)
    assert not torch.allclose(silenced, plain)
    assert torch.equal(silenced, backbone(2 * x, lambda stage, y: 0 * y if stage == "stage2" else y))


def test_holds_the_weights_of_a_transformers_resnet(tmp_path):
    from transformers.models.resnet import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(1)
    config = ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic")
    theirs = ResNetForImageClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = build_backbone("resnet18", weights=str(tmp_path)).eval()
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs.resnet(x).last_hidden_state)


def test_holds_the_weights_of_a_transformers_swin(tmp_path):
    from transformers.models.swinv2 import Swinv2Config, Swinv2Model

    torch.manual_seed(1)
    config = Swinv2Config(image_size=256, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=8)
    theirs = Swinv2Model(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = build_backbone("swinv2_tiny", weights=str(tmp_path)).eval()
    x = torch.randn(1, 3, 128, 128)
    tokens = theirs(x).last_hidden_state
    torch.testing.assert_close(ours(x).flatten(2).transpose(1, 2), tokens)


def test_holds_the_weights_of_torchvisions_densenet(tmp_path):
    from monai.networks.nets.densenet import DenseNet121

    torch.manual_seed(1)
    theirs = DenseNet121(spatial_dims=2, in_channels=3, out_channels=2).eval()
    # torchvision's first release: "denselayer1.norm.1.weight"; MONAI: "denselayer1.layers.norm1.weight"
    state = {re.sub(r"\.layers\.(norm|relu|conv)", r".\1.", k): v for k, v in theirs.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save(state, tmp_path / "densenet121.pth")
    ours = build_backbone("densenet121", weights=str(tmp_path / "densenet121.pth")).eval()
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(ours(x), theirs.features(x).relu())


@pytest.mark.parametrize(
    ("rename", "published", "ours"),
    [
        (_rename_senet, "layer0.conv1.weight", "parts.stem.conv1.weight"),
        (_rename_senet, "layer2.0.conv1.weight", "parts.stage2.0.conv1.conv.weight"),
        (_rename_senet, "layer3.35.bn2.running_var", "parts.stage3.35.conv2.adn.N.running_var"),
        (_rename_senet, "layer1.0.se_module.fc2.bias", "parts.stage1.0.se_layer.fc.2.bias"),
        (_rename_senet, "layer4.0.downsample.1.weight", "parts.stage4.0.project.adn.N.weight"),
        (_rename_densenet, "features.conv0.weight", "parts.stem.conv0.weight"),
        (
            _rename_densenet,
            "features.denseblock3.denselayer24.conv2.weight",
            "parts.stage3.denseblock3.denselayer24.layers.conv2.weight",
        ),
        (_rename_densenet, "features.transition3.norm.bias", "parts.stage4.transition3.norm.bias"),
        (_rename_densenet, "features.norm5.weight", "last.0.weight"),
    ],
)
def test_published_names_become_ours(rename, published, ours):
    assert rename(published) == ours


@pytest.mark.slow
def test_senet_knows_all_its_published_names():
    backbone = build_backbone("senet154")
    for key in backbone.state_dict():
        assert re.match(r"parts\.(stem|stage\d)\.", key)
        published = key.replace("parts.stem.", "layer0.").replace("parts.stage", "layer")
        published = re.sub(r"(layer[1-4]\.\d+)\.conv(\d)\.conv\.", r"\1.conv\2.", published)
        published = re.sub(r"\.conv(\d)\.adn\.N\.", r".bn\1.", published)
        published = re.sub(r"\.se_layer\.fc\.0\.", ".se_module.fc1.", published)
        published = re.sub(r"\.se_layer\.fc\.2\.", ".se_module.fc2.", published)
        published = re.sub(r"\.project\.conv\.", ".downsample.0.", published)
        published = re.sub(r"\.project\.adn\.N\.", ".downsample.1.", published)
        assert backbone.rename(published) == key


def test_what_is_wrong_with_weights_is_said(tmp_path):
    state = build_backbone("resnet18").state_dict()
    save_file({k: v.contiguous() for k, v in list(state.items())[:5]}, tmp_path / "part.safetensors")
    with pytest.raises(
        SamAdaptError, match=r"part.safetensors' differs from this network in \d+ of \d+ weights"
    ):
        build_backbone("resnet18", weights=str(tmp_path / "part.safetensors"))
    full = {k: v.contiguous() for k, v in state.items()}
    save_file(full, tmp_path / "full.safetensors")
    with pytest.raises(SamAdaptError, match=r"\(64, 3, 7, 7\) there, \(64, 3, 3, 3\) here"):
        build_backbone("resnet18", weights=str(tmp_path / "full.safetensors"), small_input=True)
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(SamAdaptError, match=r"text\.pth"):
        build_backbone("resnet18", weights=str(tmp_path / "text.pth"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SamAdaptError, match=r"holds neither model\.safetensors nor pytorch_model\.bin"):
        build_backbone("resnet18", weights=str(tmp_path / "empty"))
    told = "--set weights= 'microsoft/resnet-18' of backbone 'resnet18' is neither .* nor a model of the hub with its revision"
    with pytest.raises(SamAdaptError, match=told):
        build_backbone("resnet18", weights="microsoft/resnet-18")
    with pytest.raises(SamAdaptError, match="unknown backbone 'resnet'; known: densenet121"):
        build_backbone("resnet")


def test_another_backbone_is_a_function_and_a_line(monkeypatch):
    def tiny(small_input):
        parts = {"a": nn.Conv2d(3, 4, 3, stride=2, padding=1), "b": nn.Conv2d(4, 8, 3, stride=2, padding=1)}
        return Backbone(parts, {"a": 4, "b": 8}, side=32)

    monkeypatch.setitem(BACKBONES, "tiny", tiny)
    assert build_backbone("tiny")(torch.zeros(1, 3, 32, 32)).shape == (1, 8, 8, 8)
