"""The faithful heads and the loss against AutoSAM's own modules, on the same weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fixtures.known import known_normal, known_weights
from samadapt.heads import build_head
from samadapt.losses import LOSSES, to_grid

ORACLE = np.load(Path(__file__).parent / "fixtures" / "autosam.npz")
TAPS = {"pixels": (3, 1024, 1024), "neck": (256, 64, 64)}


def trainable(head) -> int:
    return sum(p.numel() for p in head.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["autosam", "linear", "cnn"])
def test_the_authors_weights_load_and_give_the_authors_logits(name):
    head = build_head(name, TAPS, 4, preset="faithful").eval()
    layout = json.loads(str(ORACLE[f"{name}/layout"]))
    head.load_state_dict(known_weights(layout))  # strict: the same keys and shapes, none more
    with torch.no_grad():
        logits = to_grid(head({"neck": known_normal("neck", (2, 256, 64, 64))}), (256, 256))
    np.testing.assert_allclose(
        logits[:, :, 3::16, 5::16].numpy(), ORACLE[f"{name}/logits"], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("linear", {"preset": "faithful"}, 75_140),
        ("linear", {}, 75_140),
        ("cnn", {"preset": "faithful"}, 20_686_340),
        ("cnn", {"preset": "faithful", "depth": 2}, 1_808_132),
        ("autosam", {"preset": "faithful"}, 3_646_880),
        ("autosam", {"preset": "faithful", "class_mode": "joint"}, 3_925_728),
        ("autosam", {}, 3_925_728 + 256),  # and SAM's no-mask embedding
    ],
)
def test_trainable_parameters(name, options, count):
    assert trainable(build_head(name, TAPS, 4, **options)) == count


def test_the_authors_loss():
    logits, labels = known_normal("logits", (2, 4, 16, 16)), known_normal("labels", (2, 16, 16)).abs().long()
    assert LOSSES["autosam"](logits, labels).item() == pytest.approx(float(ORACLE["loss"]), abs=1e-6)
