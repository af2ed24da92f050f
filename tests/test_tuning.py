"""Low-rank adapters of an encoder: nothing at first, a few megabytes, and after the training a part of the weights."""

import math

import pytest
import torch

from samadapt import load_run
from samadapt.encoders import ENCODERS, EncoderSpec
from samadapt.tuning import TUNINGS, LowRank
from samadapt.types import SamAdaptError
from test_extending import NANO, data, trained  # noqa: F401  # the fixture

LORA = TUNINGS["lora"]
#: What stands for each encoder that has weights: the tiny one of its family where there is one.
SMALL = {e.name: e for e in (entry.tiny or entry for entry in ENCODERS.values()) if e.published is not None}


@pytest.fixture(params=sorted(SMALL))
def adapted(request, monkeypatch):
    """An encoder with adapters that were moved, a fresh one without, and a picture."""
    entry = SMALL[request.param]
    monkeypatch.setitem(ENCODERS, entry.name, entry)
    monkeypatch.setattr(type(LORA), "rank", 2)
    side = math.ceil(max(64, entry.least) / entry.step) * entry.step
    spec = EncoderSpec(entry.name, "random", side)
    extractor, fresh = spec.load(), spec.load()
    LORA.begin(extractor)
    return extractor, fresh, torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))


def moved(extractor):
    with torch.no_grad():
        for name, tensor in LORA.tensors(extractor).items():
            if name.endswith("up"):
                tensor.normal_(std=0.05, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_adapters_change_nothing_at_first_and_then_the_maps(adapted):
    extractor, fresh, x = adapted
    before, expected = extractor(x), fresh(x)
    assert all(torch.equal(before[tap], expected[tap]) for tap in expected)
    moved(extractor)
    last = list(expected)[-1]
    assert (extractor(x)[last] - expected[last]).norm() > 1e-3 * expected[last].norm()


@torch.no_grad()
def test_merged_they_are_part_of_the_weights(adapted):
    """The same maps, by the very network that a frozen encoder has, so in the same time."""
    extractor, fresh, x = adapted
    moved(extractor)
    expected = extractor(x)
    LORA.merge(extractor)
    for tap, y in extractor(x).items():
        torch.testing.assert_close(y, expected[tap], atol=1e-5, rtol=1e-5)
    assert extractor.network.state_dict().keys() == fresh.network.state_dict().keys()
    assert not any(isinstance(module, LowRank) for module in extractor.modules())
    assert not any(p.requires_grad for p in extractor.parameters())


@pytest.mark.parametrize("name", ["sam_vit_b", "lite_medsam", "sam_nano"])
def test_adapters_take_a_few_megabytes(name):
    with torch.device("meta"):
        network = ENCODERS[name].network(ENCODERS[name].side)
    sizes = [LORA.rank * (m.weight.shape[0] + m.weight[0].numel()) * 4 for _, m in LORA.adapted(network)]
    assert len(sizes) > 10 and 1e5 < sum(sizes) < 5e6


def test_a_run_with_adapters_holds_them_alone_and_answers_elsewhere(data, tmp_path):  # noqa: F811
    run = trained(data, tmp_path / "run", "--head", "probe", "--tune", "lora", *NANO)
    assert not (run / "encoder.safetensors").exists()
    assert (run / "adapters.safetensors").stat().st_size < 5e6
    elsewhere = run.rename(tmp_path / "moved")
    model = load_run(elsewhere)
    assert model.model.encoder_trained > 0
    frozen = model.model.spec.load(model.head.reads)
    x = torch.randn(1, 3, model.model.spec.side, model.model.spec.side)
    with torch.no_grad():
        ours, its = model.model.extractor(x), frozen(x)
    assert any((ours[tap] - its[tap]).abs().max() > 0 for tap in its)
    (elsewhere / "adapters.safetensors").unlink()
    with pytest.raises(SamAdaptError, match=r"adapters.safetensors is missing; copy the whole run folder"):
        load_run(elsewhere)


def test_what_the_statistics_of_an_untrained_encoder_became_is_kept(tmp_path):
    """Its batch normalisation counts in training mode, and a run that forgot it would answer otherwise."""
    extractor = EncoderSpec("sam_nano", "random", 64).load({"neck": 1})
    LORA.begin(extractor)
    extractor.train()
    extractor(torch.randn(2, 3, 64, 64))
    LORA.save_to(extractor, tmp_path)
    fresh = EncoderSpec("sam_nano", "random", 64).load({"neck": 1})
    LORA.restore(fresh, tmp_path)
    mean = "running_mean"
    moved = {n: x for n, x in extractor.network.state_dict().items() if mean in n}
    assert moved and any(x.abs().max() > 0 for x in moved.values())
    assert all(torch.equal(fresh.network.state_dict()[name], x) for name, x in moved.items())
