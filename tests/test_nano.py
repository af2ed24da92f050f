"""`sam_nano`: SAM's contract at a small size, and weights that travel as a file."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from samadapt.encoders import EncoderSpec
from samadapt.encoders.nano import BACKBONE_KEY, DECODER, TAPS, VERSION, WEIGHTS, NanoBackbone
from samadapt.heads.mask_decoder import PromptedDecoder
from samadapt.types import SamAdaptError
from samadapt.views.prepare import NANO_MEAN, NANO_STD

NOTE = {"samadapt": f'{{"version": {VERSION}}}'}


def spec(checkpoint="random", side: int = 64, seed: int = 0) -> EncoderSpec:
    return EncoderSpec("sam_nano", checkpoint, side, seed=seed)


def test_it_gives_the_taps_that_it_declares():
    for side in (64, 96):
        encoder = spec(side=side).load()
        maps = encoder(torch.randn(2, 3, side, side))
        assert {tap: tuple(m.shape[1:]) for tap, m in maps.items()} == dict(encoder.taps)
        assert encoder.taps["pixels"] == (3, side, side)
        assert encoder.taps["neck"] == (128, side // 8, side // 8)


def test_it_is_small():
    assert sum(p.numel() for p in NanoBackbone().parameters()) <= 4_000_000


def test_prepare_keeps_the_aspect_ratio_and_pads_with_zero_at_the_bottom_or_right():
    x, frame = spec().view("none").preprocess(torch.full((1, 20, 40), 200.0))
    assert frame.input_size == (32, 64)
    assert torch.allclose(x[:, :32], torch.tensor((200.0 - NANO_MEAN) / NANO_STD))
    assert (x[:, 32:] == 0).all()


def test_an_image_answers_alike_alone_and_in_a_batch():
    encoder = spec().load()
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        together, alone = encoder(x)["neck"][1], encoder(x[1:2])["neck"][0]
    assert torch.allclose(together, alone, atol=1e-4)


def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first, again, other = (spec(seed=s).load().network.stem[0].weight for s in (0, 0, 1))
    assert torch.rand(1) == expected
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert spec().fingerprint == spec(seed=0).fingerprint != spec(seed=1).fingerprint


def test_the_fingerprint_tells_sides_and_weights_apart(tmp_path):
    """Those of a file by its bytes: the package's own are told from those that differ in one number."""
    prints = {spec().fingerprint, spec(side=96).fingerprint, spec(None).fingerprint}
    state = load_file(WEIGHTS)
    for change in (0, 1):
        state[next(iter(state))].view(-1)[:1] += change
        save_file(state, tmp_path / f"{change}.safetensors", metadata=NOTE)
        prints.add(spec(tmp_path / f"{change}.safetensors").fingerprint)
    assert len(prints) == 5


def test_weights_of_a_file_are_loaded_with_their_decoder(tmp_path):
    torch.manual_seed(0)
    backbone, decoder = NanoBackbone(), PromptedDecoder(**DECODER)
    own = {f"{BACKBONE_KEY}.{name}": value for name, value in backbone.state_dict().items()}
    state = {name: value.half().contiguous() for name, value in (own | decoder.state_dict()).items()}
    save_file(state, tmp_path / "w.safetensors", metadata=NOTE)
    loaded = spec(tmp_path / "w.safetensors")
    kept = loaded.load().network.stem[0].weight
    assert kept.dtype == torch.float32
    assert torch.allclose(kept, backbone.stem[0].weight, atol=1e-3)
    fresh = PromptedDecoder(**DECODER)
    fresh.load_state_dict(loaded.decoder_state())
    assert torch.allclose(
        fresh.mask_decoder.mask_tokens.weight, decoder.mask_decoder.mask_tokens.weight, atol=1e-2
    )


def test_mistakes_are_told(tmp_path):
    with pytest.raises(SamAdaptError, match="side 100"):
        spec(side=100)
    with pytest.raises(
        SamAdaptError, match=r"nowhere\.safetensors' of encoder 'sam_nano' is neither a file nor a folder"
    ):
        spec(tmp_path / "nowhere.safetensors").load()
    with pytest.raises(SamAdaptError, match=r"is a folder; give a \.safetensors file written by"):
        spec(tmp_path).load()
    part = {f"{BACKBONE_KEY}.stem.0.weight": torch.zeros(1)}
    save_file(part, tmp_path / "w.safetensors", metadata=NOTE)
    with pytest.raises(SamAdaptError, match="differs from this network in"):
        spec(tmp_path / "w.safetensors").load()
    save_file(part, tmp_path / "w.safetensors", metadata={"samadapt": '{"version": 1}'})
    with pytest.raises(SamAdaptError, match="written for version 1 of"):
        spec(tmp_path / "w.safetensors").load()
    save_file(part, tmp_path / "w.safetensors")
    with pytest.raises(SamAdaptError, match="written for version None"):
        spec(tmp_path / "w.safetensors").load()
    with pytest.raises(SamAdaptError, match="channels"):
        spec().view("none").preprocess(torch.zeros(2, 8, 8))


def test_the_packages_own_weights_are_whole_and_small():
    assert WEIGHTS.stat().st_size <= 10_000_000
    maps = spec(None).load()(torch.randn(1, 3, 64, 64))
    assert all(m.isfinite().all() for m in maps.values())
    PromptedDecoder(**DECODER).load_state_dict(spec(None).decoder_state())
    assert set(maps) == {"pixels", *TAPS}
