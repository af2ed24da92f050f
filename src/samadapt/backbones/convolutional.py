"""ResNet through transformers, SENet-154 and DenseNet-121 through MONAI, cut into stem and four stages.

The two libraries are imported when a network is built: they take seconds, which `samadapt --help` should not.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from samadapt.backbones.backbone import Backbone
from samadapt.types import SamAdaptError

STAGES = ("stem", "stage1", "stage2", "stage3", "stage4")
SMALL_SIDE = 28


def _resnet(layer: str, depths: Sequence[int], small_input: bool) -> Backbone:
    from transformers.models.resnet import ResNetConfig, ResNetModel

    widths = [64, 128, 256, 512] if layer == "basic" else [256, 512, 1024, 2048]
    config = ResNetConfig(depths=list(depths), hidden_sizes=widths, layer_type=layer)
    model = ResNetModel(config)
    stem = model.embedder
    if small_input:  # as MedMNIST's own networks for 28 px: 3x3, no stride, no pooling
        stem.embedder.convolution = nn.Conv2d(3, config.embedding_size, 3, padding=1, bias=False)
        stem.pooler = nn.Identity()  # type: ignore[assignment]
        for module in model.modules():  # theirs start from torch's own, smaller weights, and fit more slowly
            if isinstance(module, nn.Conv2d):
                module.reset_parameters()
    parts = dict(zip(STAGES, [stem, *model.encoder.stages], strict=True))
    channels = dict(zip(STAGES, [config.embedding_size, *widths], strict=True))
    return Backbone(parts, channels, side=SMALL_SIDE if small_input else 224, rename=_rename_resnet)


def _rename_resnet(key: str) -> str:
    key = key.removeprefix("resnet.")
    key = re.sub(r"^embedder\.", "parts.stem.", key)
    return re.sub(r"^encoder\.stages\.(\d)", lambda m: f"parts.stage{int(m[1]) + 1}", key)


def resnet18(small_input: bool) -> Backbone:
    return _resnet("basic", (2, 2, 2, 2), small_input)


def resnet50(small_input: bool) -> Backbone:
    return _resnet("bottleneck", (3, 4, 6, 3), small_input)


def resnet152(small_input: bool) -> Backbone:
    return _resnet("bottleneck", (3, 8, 36, 3), small_input)


def refuse_small(name: str, small_input: bool) -> None:
    """For networks without a first layer for small pictures."""
    if small_input:
        raise SamAdaptError(
            f"backbone {name!r} has no stem for small inputs; use a ResNet, or leave small_input out: "
            "small pictures are then enlarged"
        )


def senet154(small_input: bool) -> Backbone:
    refuse_small("senet154", small_input)
    from monai.networks.nets.senet import SENet154

    model = SENet154(spatial_dims=2, in_channels=3, num_classes=2)
    layers = [model.layer0, model.layer1, model.layer2, model.layer3, model.layer4]
    widths = (128, 256, 512, 1024, 2048)
    return Backbone(
        dict(zip(STAGES, layers, strict=True)), dict(zip(STAGES, widths, strict=True)), rename=_rename_senet
    )


def _rename_senet(key: str) -> str:
    """From the names of the authors' and timm's `legacy_senet154`, or MONAI's own."""
    key = re.sub(r"^(layer\d+\.\d+)\.conv(\d)\.(weight)$", r"\1.conv\2.conv.\3", key)
    key = re.sub(r"^(layer\d+\.\d+)\.bn(\d)\.(\w+)$", r"\1.conv\2.adn.N.\3", key)
    key = re.sub(r"\.se_module\.fc1\.", ".se_layer.fc.0.", key)
    key = re.sub(r"\.se_module\.fc2\.", ".se_layer.fc.2.", key)
    key = re.sub(r"\.downsample\.0\.", ".project.conv.", key)
    key = re.sub(r"\.downsample\.1\.", ".project.adn.N.", key)
    return re.sub(r"^layer(\d)\.", lambda m: f"parts.{STAGES[int(m[1])]}.", key)


def densenet121(small_input: bool) -> Backbone:
    refuse_small("densenet121", small_input)
    from monai.networks.nets.densenet import DenseNet121

    f: nn.Sequential = DenseNet121(spatial_dims=2, in_channels=3, out_channels=2).features
    rows = {"stem": _row(f, "conv0", "norm0", "relu0", "pool0"), "stage1": _row(f, "denseblock1")}
    rows |= {f"stage{n}": _row(f, f"transition{n - 1}", f"denseblock{n}") for n in (2, 3, 4)}
    channels = {"stem": 64, "stage1": 256, "stage2": 512, "stage3": 1024, "stage4": 1024}
    return Backbone(
        rows, channels, nn.Sequential(f.get_submodule("norm5"), nn.ReLU()), rename=_rename_densenet
    )


def _row(features: nn.Module, *names: str) -> nn.Sequential:
    """Some of the modules in a row, under their own names, which are those of published weights."""
    return nn.Sequential(OrderedDict((name, features.get_submodule(name)) for name in names))


def _rename_densenet(key: str) -> str:
    """From torchvision's names (with or without the dots of its first release), or MONAI's."""
    key = re.sub(r"(denselayer\d+)\.(?:layers\.)?(norm|relu|conv)\.?(\d)\.", r"\1.layers.\2\3.", key)
    key = key.removeprefix("features.")
    homes = {"stem": r"(conv|norm|relu|pool)0\.", "stage1": r"denseblock1\."}
    homes |= {f"stage{n}": rf"(transition{n - 1}|denseblock{n})\." for n in (2, 3, 4)}
    for stage, pattern in homes.items():
        if re.match(pattern, key):
            return f"parts.{stage}.{key}"
    return re.sub(r"^norm5\.", "last.0.", key)
