"""Augmented views of gated heads: pixels and gates always show the same view of the image."""

import pytest
import torch

from fakes import tiny
from samadapt.features import FeatureStore, MapSpec, Pairs
from samadapt.heads import build_head
from samadapt.transforms import pool_taps
from samadapt.types import Case

pytestmark = pytest.mark.usefixtures("tiny_encoder")


class Pictures:
    """Four pictures with a class each."""

    window, classes, name, hash = "none", ("a", "b"), "pictures", "0"
    slice_axis = channels = None
    multilabel = False

    def __init__(self):
        rng = torch.Generator().manual_seed(0)
        images = [255 * torch.rand(1, 1, 48, 40, generator=rng) for _ in range(4)]
        self.cases = [
            Case(f"c{i}", x, torch.tensor(i % 2), None, None, f"c{i}") for i, x in enumerate(images)
        ]
        self.ids = [case.id for case in self.cases]

    def __len__(self):
        return len(self.ids)

    def case(self, case_id):
        return self.cases[self.ids.index(case_id)]


@pytest.mark.parametrize("stored", [True, False])
def test_gates_come_from_the_view_of_the_pixels(tmp_path, stored):
    data, encoder = Pictures(), tiny()
    head = build_head("slca", encoder.taps, 2, small_input=True)
    store = FeatureStore(tmp_path)
    maps, network = MapSpec(encoder, head.reads, "none", 4, "default"), encoder.load()
    if stored:
        store.encode(data.cases, maps)
    pairs = Pairs(data, maps, store if stored else None)
    seen = []
    for step in range(12):
        features, target = pairs.batch([0, 1, 2, 3], key=(step,))
        assert target.tolist() == [0, 1, 0, 1]
        if stored:  # what is on disk is what these very pixels give
            again = pool_taps(network(features["pixels"]), head.reads)
            assert set(features) == set(again)
            for tap in again:
                torch.testing.assert_close(features[tap], again[tap], atol=2e-3, rtol=2e-3)
        else:  # the learner sends these pixels through the encoder: one view by construction
            assert set(features) == {"pixels"} and pairs.encoder_in_loop
        seen.append(features["pixels"][0])
    distinct = len({x.numpy().tobytes() for x in seen})
    assert distinct == (maps.views if stored else 12)  # a store has as many views as were made, no more
    torch.testing.assert_close(
        pairs[0][0]["pixels"], encoder.view("none").preprocess(data.cases[0].image[:, 0])[0]
    )
