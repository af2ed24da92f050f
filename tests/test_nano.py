"""`sam_nano`: SAM's contract at a small size, and weights that travel as a file."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from samadapt.encoders.nano import (
    BACKBONE_KEY,
    DECODER,
    TAPS,
    VERSION,
    WEIGHTS,
    NanoBackbone,
    build_sam_nano,
    normalise,
)
from samadapt.heads.mask_decoder import PromptedDecoder
from samadapt.types import SamAdaptError

NOTE = {"samadapt": f'{{"version": {VERSION}}}'}


def test_it_gives_the_taps_that_it_declares():
    for side in (64, 96):
        encoder = build_sam_nano("random", side=side).eval()
        maps = encoder(torch.randn(2, 3, side, side))
        assert {tap: tuple(m.shape[1:]) for tap, m in maps.items()} == dict(encoder.taps)
        assert encoder.taps["pixels"] == (3, side, side)
        assert encoder.taps["neck"] == (128, side // 8, side // 8)


def test_it_is_small():
    assert sum(p.numel() for p in NanoBackbone().parameters()) <= 4_000_000


def test_prepare_keeps_the_aspect_ratio_and_pads_with_zero_at_the_bottom_or_right():
    encoder = build_sam_nano("random", side=64)
    x, frame = encoder.prepare(torch.full((1, 20, 40), 200.0))
    assert frame.input_size == (32, 64)
    assert torch.allclose(x[:, :32], normalise(torch.tensor(200.0)))
    assert (x[:, 32:] == 0).all()


def test_an_image_answers_alike_alone_and_in_a_batch():
    encoder = build_sam_nano("random", side=64).eval()
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        together, alone = encoder(x)["neck"][1], encoder(x[1:2])["neck"][0]
    assert torch.allclose(together, alone, atol=1e-4)


def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, again, other = (build_sam_nano("random", side=64, seed=s).fingerprint for s in (0, 0, 1))
    assert torch.rand(1) == expected
    assert first == again != other


def test_the_fingerprint_tells_sides_and_changed_weights_apart():
    encoder = build_sam_nano("random", side=64)
    before = encoder.fingerprint
    assert before != build_sam_nano("random", side=96).fingerprint
    with torch.no_grad():
        next(encoder.image_encoder.parameters()).add_(1.0)
    changed = encoder.fingerprint
    assert changed != before
    encoder.train()(torch.randn(2, 3, 64, 64))  # moves the batch statistics alone
    assert encoder.fingerprint not in (before, changed)


def test_weights_of_a_file_are_loaded_with_their_decoder(tmp_path):
    torch.manual_seed(0)
    backbone, decoder = NanoBackbone(), PromptedDecoder(**DECODER)
    own = {f"{BACKBONE_KEY}.{name}": value for name, value in backbone.state_dict().items()}
    state = {name: value.half().contiguous() for name, value in (own | decoder.state_dict()).items()}
    save_file(state, tmp_path / "w.safetensors", metadata=NOTE)
    encoder = build_sam_nano(tmp_path / "w.safetensors", side=64)
    kept = encoder.image_encoder.stem[0].weight
    assert kept.dtype == torch.float32
    assert torch.allclose(kept, backbone.stem[0].weight, atol=1e-3)
    fresh = PromptedDecoder(**DECODER)
    fresh.load_state_dict(encoder.decoder_state())
    assert torch.allclose(
        fresh.mask_decoder.mask_tokens.weight, decoder.mask_decoder.mask_tokens.weight, atol=1e-2
    )


def test_mistakes_are_told(tmp_path):
    with pytest.raises(SamAdaptError, match="side 100"):
        build_sam_nano("random", side=100)
    with pytest.raises(SamAdaptError, match="nowhere"):
        build_sam_nano(tmp_path / "nowhere.safetensors")
    part = {f"{BACKBONE_KEY}.stem.0.weight": torch.zeros(1)}
    save_file(part, tmp_path / "w.safetensors", metadata=NOTE)
    with pytest.raises(SamAdaptError, match="does not hold weights"):
        build_sam_nano(tmp_path / "w.safetensors")
    save_file(part, tmp_path / "w.safetensors", metadata={"samadapt": '{"version": 1}'})
    with pytest.raises(SamAdaptError, match="written for version 1 of"):
        build_sam_nano(tmp_path / "w.safetensors")
    save_file(part, tmp_path / "w.safetensors")
    with pytest.raises(SamAdaptError, match="written for version None"):
        build_sam_nano(tmp_path / "w.safetensors")
    with pytest.raises(SamAdaptError, match="channels"):
        build_sam_nano("random", side=64).prepare(torch.zeros(2, 8, 8))


def test_the_packages_own_weights_are_whole_and_small():
    assert WEIGHTS.stat().st_size <= 10_000_000
    encoder = build_sam_nano(side=64).eval()
    maps = encoder(torch.randn(1, 3, 64, 64))
    assert all(m.isfinite().all() for m in maps.values())
    PromptedDecoder(**DECODER).load_state_dict(encoder.decoder_state())
    assert set(maps) == {"pixels", *TAPS}
