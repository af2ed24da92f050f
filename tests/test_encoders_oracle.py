"""Encoders, and the decoders behind them, against the authors' networks on the same weights, through the `.pth` loader."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fixtures.known import known_boxes, known_normal, known_picture, known_sample, known_weights
from samadapt.baselines.zero_shot import load_decoder
from samadapt.encoders import ENCODERS, EncoderSpec, Extractor
from samadapt.encoders.sam_network import SamViT

ORACLE = np.load(Path(__file__).parent / "fixtures" / "sam.npz")
TINY_ORACLE = np.load(Path(__file__).parent / "fixtures" / "tiny_vit.npz")


def thin(x: torch.Tensor) -> np.ndarray:
    c, h, w = (max(1, n // k) for n, k in zip(x.shape[1:], (16, 11, 11), strict=True))
    return x[:, ::c, ::h, ::w].numpy()


def compare(name: str, side: int, folder: Path) -> None:
    oracle = {key.split("/")[1]: ORACLE[key] for key in ORACLE if key.startswith(f"{name}@{side}/")}
    path = folder / "sam.pth"
    torch.save(known_weights(json.loads(str(oracle.pop("layout")))), path)
    extractor = EncoderSpec(f"sam_{name}", path, side).load(dict.fromkeys(oracle, 1))
    with torch.no_grad():
        found = extractor(known_normal("picture", (1, 3, side, side)))
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
    with torch.device("meta"):
        network = SamViT(ENCODERS[f"sam_{name}"].architecture, side)
    own = {f"image_encoder.{key}": list(value.shape) for key, value in network.state_dict().items()}
    assert own == json.loads(str(ORACLE[f"{name}@{side}/layout"]))


# ---------------------------------------------------------------- TinyViT


def tiny_oracle(case: str) -> dict[str, np.ndarray]:
    """What the recipe kept of one case: the stages and `neck`, and of LiteMedSAM what its decoder answers."""
    return {key.split("/")[1]: TINY_ORACLE[key] for key in TINY_ORACLE if key.startswith(f"{case}/")}


def with_known_weights(name: str, case: str, folder: Path) -> Extractor:
    path = folder / "known.pth"
    torch.save(known_weights(json.loads(str(TINY_ORACLE[f"{case}/layout"]))), path)
    return EncoderSpec(name, path).load()


def equal(found: torch.Tensor, oracle: dict[str, np.ndarray], name: str, atol: float = 1e-4) -> None:
    sample = known_sample(name, found, len(oracle[name]))
    np.testing.assert_allclose(sample, oracle[name], atol=atol, rtol=0, err_msg=name)


def compare_maps(encoder: Extractor, picture: torch.Tensor, oracle: dict[str, np.ndarray]) -> torch.Tensor:
    with torch.no_grad():
        maps = encoder(picture)
    names = [tap for tap in maps if tap not in ("pixels", "neck")]
    assert len(names) == 4
    for i, tap in enumerate(names):
        equal(maps[tap], oracle, f"stage{i}")
    equal(maps["neck"], oracle, "neck")
    return maps["neck"]


def compare_masks(encoder: Extractor, neck: torch.Tensor, oracle: dict[str, np.ndarray]) -> None:
    """Two boxes: the prompt encoder's tokens, the logits, the masks cell by cell, the predicted IoU."""
    decoder, boxes = load_decoder(encoder.spec), known_boxes(256)
    with torch.no_grad():
        equal(decoder.prompt_encoder(boxes=boxes)[0], oracle, "tokens")
        equal(decoder.prompt_encoder.dense_pe(), oracle, "places")
        logits, iou = decoder(neck, boxes=boxes)
    assert logits.shape == (2, 1, 256, 256)
    equal(logits, oracle, "logits", atol=1e-4 * max(1, float(logits.std())))
    inside = torch.from_numpy(np.unpackbits(oracle["inside"])).view(logits.shape).bool()
    wrong = ((logits > 0) != inside) & (logits.abs() > 1e-3)  # nearer to zero the last digits may decide
    assert int(wrong.sum()) == 0
    np.testing.assert_allclose(iou.numpy(), oracle["iou"], atol=1e-4)


def test_lite_medsam_with_its_own_weights():
    published = ENCODERS["lite_medsam"].published
    if published.find() is None:
        pytest.skip(f"the weights of LiteMedSAM are not on this machine: {published.how()}")
    encoder, oracle = EncoderSpec("lite_medsam").load(), tiny_oracle("lite_medsam")
    neck = compare_maps(encoder, known_picture(256), oracle)
    compare_masks(encoder, neck, oracle)


def test_lite_medsam_with_known_weights(tmp_path):
    """In the original layout, batch normalisations with statistics of their own."""
    oracle = tiny_oracle("lite_medsam_known")
    encoder = with_known_weights("lite_medsam", "lite_medsam_known", tmp_path)
    neck = compare_maps(encoder, known_normal("picture", (1, 3, 256, 256)), oracle)
    compare_masks(encoder, neck, oracle)


def test_mobile_sam_with_known_weights(tmp_path):
    """Its published weights come in no package; the layout includes the classifier that they still carry."""
    encoder = with_known_weights("mobile_sam", "mobile_sam_known", tmp_path)
    picture = known_normal("picture", (1, 3, 1024, 1024))
    compare_maps(encoder, picture, tiny_oracle("mobile_sam_known"))
