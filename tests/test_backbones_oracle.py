"""EfficientNet-Lite, as a backbone and as an encoder, against its authors' network on the same weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fixtures.known import known_normal, known_picture, known_sample, known_weights
from samadapt.backbones import build_backbone, published_weights
from samadapt.encoders import EncoderSpec

ORACLE = np.load(Path(__file__).parent / "fixtures" / "efficientnet_lite.npz")


def equal(found: dict[str, torch.Tensor], case: str) -> None:
    """Every map against the sample of it that the recipe kept; to five digits where values are large."""
    assert found
    for name, x in found.items():
        expected = ORACLE[f"{case}/{name}"]
        sample = known_sample(name, x, len(expected))
        atol = 1e-5 * max(10.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(sample, expected, atol=atol, rtol=0, err_msg=f"{case}/{name}")


def compare(name: str, weights: Path, picture: torch.Tensor, case: str) -> None:
    """The backbone, then, where an encoder can have this side, the same weights with folded normalisations."""
    found: dict[str, torch.Tensor] = {}
    backbone = build_backbone(name, str(weights)).eval()

    def look(stage: str, x: torch.Tensor) -> torch.Tensor:
        found[stage] = x.clone()  # activations work in place
        return x

    with torch.no_grad():
        found["features"] = backbone(picture, look)
        assert list(found) == [*backbone.stages, "features"]
        equal(found, case)
        side = picture.shape[-1]
        if side % 32 == 0:
            maps = EncoderSpec(name.replace("efficientnet", "imagenet"), weights, side).load()(picture)
            del maps["pixels"]
            equal(dict(zip(backbone.stages, maps.values(), strict=True)), case)


@pytest.mark.parametrize(("number", "side"), [("0", 224), ("0", 256), ("2", 256), ("2", 260)])
def test_published_weights(number, side):
    name = f"efficientnet_lite{number}"
    published = published_weights(name)
    path = published.find()
    if path is None:
        pytest.skip(f"the weights of {name} are not on this machine: {published.how()}")
    compare(name, path, (known_picture(side) * 255 - 127) / 128, f"lite{number}@{side}")


@pytest.mark.parametrize("side", [100, 128])
def test_known_weights(tmp_path, side):
    """In the original layout, batch normalisations with statistics of their own; at 100 odd grids are halved."""
    case, path = f"lite0_known@{side}", tmp_path / "known.pth"
    torch.save(known_weights(json.loads(str(ORACLE[f"{case}/layout"]))), path)
    compare("efficientnet_lite0", path, known_normal("picture", (1, 3, side, side)), case)
