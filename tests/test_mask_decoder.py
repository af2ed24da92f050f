"""SAM's prompt encoder and mask decoder against the original authors' numbers, and in batches."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fixtures.known import known_normal, known_weights
from samadapt.heads.mask_decoder import PromptedDecoder

ORACLE = np.load(Path(__file__).parent / "fixtures" / "sam.npz")


def thin(x: torch.Tensor) -> np.ndarray:
    c, h, w = (max(1, n // k) for n, k in zip(x.shape[1:], (16, 11, 11), strict=True))
    return x[:, ::c, ::h, ::w].numpy()


@pytest.fixture(scope="module")
def decoder() -> PromptedDecoder:
    decoder = PromptedDecoder(grid=(16, 16), side=256)
    decoder.load_state_dict(known_weights(json.loads(str(ORACLE["decoder/layout"]))))
    return decoder.eval()


def prompts(count: int = 3) -> dict:
    labels = torch.tensor([[1, 0], [1, -1], [0, 1]])
    return {
        "points": (known_normal("points", (3, 2, 2)) * 60 + 128, labels),
        "boxes": known_normal("boxes", (3, 4)) * 60 + 128,
        "masks": known_normal("masks", (3, 1, 64, 64)),
    }


def test_the_layout_is_the_original_one():
    own = {key: list(value.shape) for key, value in PromptedDecoder().state_dict().items()}
    assert own == json.loads(str(ORACLE["decoder/layout"]))


@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize("case", ["points", "all"])
def test_the_original_numbers(decoder, case, multimask):
    asked = prompts() if case == "all" else {"points": prompts()["points"]}
    with torch.no_grad():
        masks, iou = decoder(known_normal("neck", (1, 256, 16, 16)), **asked, multimask=multimask)
    np.testing.assert_allclose(thin(masks), ORACLE[f"decoder/{case}/{multimask}/masks"], atol=1e-4)
    np.testing.assert_allclose(iou.numpy(), ORACLE[f"decoder/{case}/{multimask}/iou"], atol=1e-4)


def small() -> PromptedDecoder:
    torch.manual_seed(0)
    return PromptedDecoder(dim=32, grid=(4, 4), side=64, num_heads=4, mlp_dim=16)


def test_two_images_with_three_prompts_each_are_decoded_as_one_by_one():
    decoder, neck = small(), torch.randn(2, 32, 4, 4)
    boxes = torch.rand(6, 4) * 64
    together = decoder(neck, boxes=boxes)[0]
    alone = [decoder(neck[i : i + 1], boxes=boxes[3 * i : 3 * i + 3])[0] for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone))
    assert not torch.allclose(together[:3], together[3:])


def test_without_a_prompt_each_image_has_one_mask():
    assert small()(torch.randn(3, 32, 4, 4))[0].shape == (3, 1, 16, 16)


def test_another_grid_and_side_than_the_constructors():
    decoder, neck, box = small(), torch.randn(1, 32, 8, 8), torch.tensor([[8.0, 8.0, 40.0, 100.0]])
    assert decoder(neck, boxes=box, side=128)[0].shape == (1, 1, 32, 32)
    wide = decoder.prompt_encoder(boxes=box, side=128)[0]
    narrow = decoder.prompt_encoder(boxes=(box + 0.5) / 2 - 0.5)[0]  # the same place in half as many pixels
    torch.testing.assert_close(wide, narrow)


def test_a_padding_point_says_nothing_but_that_it_is_one():
    encoder = small().prompt_encoder
    labels = torch.tensor([[-1]])
    here, there = (encoder(points=(torch.full((1, 1, 2), at), labels))[0] for at in (3.0, 50.0))
    torch.testing.assert_close(here, there)


def test_every_weight_learns():
    decoder = small()
    points = (torch.rand(3, 2, 2) * 64, torch.tensor([[0, 1], [1, -1], [1, 1]]))
    neck = torch.randn(1, 32, 4, 4)
    total = torch.zeros(())
    for asked in (
        {"points": points},
        {"boxes": torch.rand(3, 4) * 64, "masks": torch.randn(3, 1, 16, 16)},
    ):
        for multimask in (False, True):
            masks, iou = decoder(neck, **asked, multimask=multimask)
            total = total + masks.square().mean() + iou.square().mean()
    total.backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()] == []
