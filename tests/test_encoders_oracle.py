"""SAM's encoders against the original authors' network on the same weights, through the `.pth` loader."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fixtures.known import known_normal, known_weights
from samadapt.encoders import load_encoder
from samadapt.encoders.checkpoints import original_key
from samadapt.encoders.sam import SAM_MODELS, _config

ORACLE = np.load(Path(__file__).parent / "fixtures" / "sam.npz")


def thin(x: torch.Tensor) -> np.ndarray:
    c, h, w = (max(1, n // k) for n, k in zip(x.shape[1:], (16, 11, 11), strict=True))
    return x[:, ::c, ::h, ::w].numpy()


def compare(name: str, side: int, folder: Path) -> None:
    oracle = {key.split("/")[1]: ORACLE[key] for key in ORACLE if key.startswith(f"{name}@{side}/")}
    path = folder / "sam.pth"
    torch.save(known_weights(json.loads(str(oracle.pop("layout")))), path)
    encoder = load_encoder(f"sam_{name}", checkpoint=path, side=side)
    with torch.no_grad():
        found = encoder.only(oracle)(known_normal("picture", (1, 3, side, side)))
    assert "neck" in oracle and len(oracle) > 1
    for tap, expected in oracle.items():
        np.testing.assert_allclose(thin(found[tap]), expected, atol=1e-4, rtol=0, err_msg=tap)


def test_vit_b(tmp_path):
    compare("vit_b", 256, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "side"), [("vit_l", 128), ("vit_h", 128), ("vit_b", 1024)])
def test_the_large_ones(tmp_path, name, side):
    compare(name, side, tmp_path)


@pytest.mark.parametrize(("name", "side"), [("vit_b", 256), ("vit_l", 128), ("vit_h", 128)])
def test_every_weight_of_the_original_has_its_place(name, side):
    """Names and shapes only, without memory: none missing, none left over."""
    from transformers.models.sam.modeling_sam import SamVisionModel

    with torch.device("meta"):
        model = SamVisionModel(_config(SAM_MODELS[f"sam_{name}"].architecture, side))
    own = {original_key(key): list(value.shape) for key, value in model.state_dict().items()}
    assert own == json.loads(str(ORACLE[f"{name}@{side}/layout"]))
