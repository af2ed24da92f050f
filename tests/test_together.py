"""Several encoders read together: each sees and stores what it would alone, and a head reads the maps of all."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from fakes import Nowhere, TinyEncoder, TinyNetwork, disc_case, fake_data
from samadapt import load_run, names
from samadapt.encoders import ENCODERS, EncoderSpec
from samadapt.experiment import make_study
from samadapt.features import FeatureStore, MapSpec, Pairs
from samadapt.heads import HEADS, build_head
from samadapt.heads.fused import choose_reads
from samadapt.learner import Learner
from samadapt.options import declared
from samadapt.overlap import TRAININGS, overlaps
from samadapt.phantom import make_phantom
from samadapt.settings import LearnerSettings
from samadapt.tuning import TUNINGS
from samadapt.types import SamAdaptError
from test_cli import FAST, type_

READS = {"tiny:neck": 1, "other:neck": 2}
BOTH = "sam_nano+imagenet_lite0"
SMALL = ("--side", "64", "--labels", "1", "--set", "width=8", *FAST)


class OtherNetwork(TinyNetwork):
    """Counts for itself how often it is built."""

    built = 0

    def __init__(self, generator=None):
        super().__init__(generator)
        TinyNetwork.built -= 1
        OtherNetwork.built += 1


@pytest.fixture(autouse=True)
def two(tiny_encoder, monkeypatch):
    """Another tiny encoder, which sees pictures otherwise."""
    other = TinyEncoder(name="other", prepare="unit", kind=OtherNetwork, published=Nowhere("other"))
    monkeypatch.setitem(ENCODERS, "other", other)
    return other


@pytest.fixture
def real():
    """Encoders with weights of a training, where these are installed."""
    if ENCODERS["imagenet_lite0"].missing_file is not None:
        pytest.skip("the weights of imagenet_lite0 are not installed")


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return make_phantom(tmp_path_factory.mktemp("phantom") / "data", patients=4, size=48, slices=3)


def snapshot(root):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in root.rglob("*") if p.is_file()}


# ---------------------------------------------------------------- maps


@pytest.mark.parametrize("checkpoint", [None, "random"])
def test_each_gives_the_maps_that_it_gives_alone(checkpoint):
    pair = EncoderSpec("tiny+other", checkpoint, seed=3)
    slice_ = torch.rand(1, 40, 32, generator=torch.Generator().manual_seed(0)) * 255
    square, frame = pair.view("none").preprocess(slice_)
    found = pair.load()(square[None])
    assert pair.taps == {"pixels": (6, 64, 64), "tiny:neck": (8, 16, 16), "other:neck": (8, 16, 16)}
    for number, name in enumerate(("tiny", "other")):
        alone = EncoderSpec(name, checkpoint, seed=3)
        pixels, same = alone.view("none").preprocess(slice_)
        assert same == frame and torch.equal(square[3 * number : 3 * number + 3], pixels)
        assert torch.equal(found[f"{name}:neck"], alone.load()(pixels[None])["neck"])
    assert not torch.equal(found["tiny:neck"], found["other:neck"])


def test_real_encoders_give_the_maps_that_they_give_alone(real):
    pair = EncoderSpec(BOTH, side=64)
    slice_ = torch.rand(1, 50, 64, generator=torch.Generator().manual_seed(0)) * 255
    with torch.inference_mode():
        found = pair.load()(pair.view("none").preprocess(slice_)[0][None])
        for name in BOTH.split("+"):
            alone = EncoderSpec(name, side=64)
            maps = alone.load()(alone.view("none").preprocess(slice_)[0][None])
            assert all(torch.equal(found[f"{name}:{tap}"], maps[tap]) for tap in alone.entry.taps(64))


def test_an_encoder_that_nobody_reads_does_not_run():
    before = TinyNetwork.calls
    extractor = EncoderSpec("tiny+other").load({"other:neck": 1})
    assert set(extractor(torch.zeros(1, 6, 64, 64))) == {"pixels", "other:neck"}
    assert TinyNetwork.calls == before + 1


# ---------------------------------------------------------------- the store


def test_a_store_is_shared_with_studies_of_one_encoder(tmp_path):
    store, cases = FeatureStore(tmp_path), [disc_case(1), disc_case(2)]
    recipe = {"views": 3, "augmentation": "default"}
    store.encode(cases[:1], MapSpec(EncoderSpec("tiny"), {"neck": 1}, **recipe))
    before, built = snapshot(tmp_path), (TinyNetwork.built, OtherNetwork.built)
    pair = MapSpec(EncoderSpec("tiny+other"), READS, **recipe)
    report = store.encode(cases[:1], pair)
    assert (report.cases, report.written, report.slices) == (1, 1, 9)
    assert (TinyNetwork.built, OtherNetwork.built) == (
        built[0],
        built[1] + 1,
    )  # only the other one was needed
    assert before.items() <= snapshot(tmp_path).items()
    report = store.encode(iter(cases), pair)  # what can be gone through once is gone through by both
    assert (report.cases, report.written, report.slices) == (2, 1, 18)
    for name, tap, window in (("tiny", "neck", 1), ("other", "neck", 2)):
        alone = MapSpec(EncoderSpec(name), {tap: window}, **recipe)
        assert store.encode(cases, alone).written == 0
        for case in cases:
            maps, frame = store.read(case, alone)
            together, same = store.read(case, pair)
            assert same == frame and np.array_equal(maps["neck"], together[f"{name}:neck"])


def test_what_is_missing_of_one_encoder_is_missing(tmp_path):
    store, case = FeatureStore(tmp_path), disc_case(1)
    store.encode([case], MapSpec(EncoderSpec("tiny"), {"neck": 1}))
    with pytest.raises(SamAdaptError, match="no stored maps"):
        store.read(case, MapSpec(EncoderSpec("tiny+other"), READS))
    assert store.read(case, MapSpec(EncoderSpec("tiny+other"), {"tiny:neck": 1}))


def test_stored_and_live_pairs_are_the_same(tmp_path):
    data, reads = fake_data(1), {**READS, "pixels": 1}
    pair = MapSpec(EncoderSpec("tiny+other"), reads)
    FeatureStore(tmp_path).encode([data.case("p1_a")], pair)
    stored, live = Pairs(data, pair, FeatureStore(tmp_path)), Pairs(data, pair)
    extractor = pair.encoder.load(reads)
    for index in range(3):
        features, target = stored[index]
        given, same = live[index]
        expected = extractor(given["pixels"][None])
        assert torch.equal(target, same) and features.keys() == expected.keys()
        for tap, x in features.items():
            torch.testing.assert_close(x, expected[tap][0], rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------- what does not go together


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"name": "tiny+nobody"}, "unknown encoder 'nobody' in 'tiny\\+nobody'"),
        ({"name": "tiny+"}, "unknown encoder ''"),
        ({"name": "tiny+tiny"}, "names one encoder twice"),
        ({"name": "tiny+pixels"}, "'pixels' gives no maps"),
        ({"name": "sam_vit_b+imagenet_lite0"}, r"sam_vit_b 1024, imagenet_lite0 256\); give --side"),
        ({"name": BOTH, "side": 100}, "side 100 does not fit encoder 'sam_nano'"),
        ({"name": "sam_vit_b+medsam_vit_b"}, "different places of the square"),
        ({"name": "tiny+other", "checkpoint": "a.pth"}, "several encoders.*'a.pth' is for one"),
        ({"name": "tiny+other", "prepare": "sam"}, "leave out prepare 'sam'"),
    ],
)
def test_what_does_not_go_together_is_refused(options, problem):
    with pytest.raises(SamAdaptError, match=problem):
        EncoderSpec(**options)


def test_a_common_side_may_be_asked_for():
    assert EncoderSpec("sam_vit_b+imagenet_lite0", side=512).taps["sam_vit_b:neck"] == (256, 32, 32)


@pytest.mark.parametrize("head", sorted(set(HEADS) - {"fused", "unet"}))
def test_heads_that_read_one_encoder_refuse_several(head):
    with pytest.raises(SamAdaptError, match="name one encoder"):
        Learner(head, BOTH).build(3)


@pytest.mark.parametrize("head", ["probe", "linear_probe", "attentive_probe"])
def test_a_head_of_one_map_may_name_it(head):
    built = build_head(head, EncoderSpec(BOTH).taps, 2, tap="imagenet_lite0:stride16")
    assert list(built.reads) == ["imagenet_lite0:stride16"]


def test_fused_reads_of_each_what_it_reads_of_it_alone():
    for pair in (BOTH, "lite_medsam+imagenet_lite0", "imagenet_lite0+sam_vit_b"):
        expected = {"pixels": 1}
        for name in pair.split("+"):
            alone = choose_reads(EncoderSpec(name, side=256).taps)
            expected |= {f"{name}:{tap}": window for tap, window in alone.items() if tap != "pixels"}
        assert choose_reads(EncoderSpec(pair, side=256).taps) == expected


def test_a_typed_name_may_be_several():
    option = declared(LearnerSettings)["encoder"]
    assert option.read("lite_medsam+imagenet_lite0", "--encoder") == "lite_medsam+imagenet_lite0"
    with pytest.raises(
        SamAdaptError, match=r"'sam_nona\+imagenet_lite0'; known: .* \(did you mean sam_nano\?\)"
    ):
        option.read("sam_nona+imagenet_lite0", "--encoder")
    assert "sam_nano+imagenet_lite0" not in names.ENCODERS


def test_views_are_new_where_all_are_cheap():
    assert Learner("fused", BOTH).views == 0
    assert Learner("fused", "lite_medsam+imagenet_lite0").views == Learner("fused", "lite_medsam").views > 0


# ---------------------------------------------------------------- what was seen


def test_several_have_seen_what_any_of_them_has():
    cases = [f"patient{n:03d}_frame01" for n in range(3)]
    found = overlaps("imagenet_lite0+lite_medsam", ["ACDC"], cases)
    assert found == overlaps("lite_medsam", ["ACDC"], cases) and found[0].warns
    both = overlaps("medsam_vit_b+lite_medsam", ["ACDC"], cases)
    assert [one.encoder for one in both] == ["medsam_vit_b", "lite_medsam"]


# ---------------------------------------------------------------- a run


@pytest.fixture
def run(real, phantom, tmp_path):
    words = ("train", phantom, "--encoder", BOTH, "--views", "2", "--store", tmp_path / "store", *SMALL)
    type_(*words, "--out", tmp_path / "run")
    return tmp_path / "run"


def test_a_run_is_restored_with_both(run, phantom, tmp_path):
    config = json.loads((run / "config.json").read_text())
    assert config["encoder"]["name"] == BOTH and config["stored_maps"]
    assert config["encoder_fingerprint"].count("side=64") == 2
    assert len(list((tmp_path / "store").iterdir())) == 2  # a folder for each encoder
    model = load_run(run.rename(tmp_path / "moved"))
    case = model.case(next(phantom.glob("imagesTr/*")))
    spec = model.model.spec
    store = FeatureStore(tmp_path / "again")
    maps = MapSpec(spec, model.head.reads, model.opening.window)
    store.encode([case], maps)
    live, stored = (
        torch.stack([x for x, _ in model.logits(case, given)]) for given in (None, store.read(case, maps)[0])
    )
    torch.testing.assert_close(live, stored, rtol=0.05, atol=0.05)  # maps are stored in half precision
    type_("predict", tmp_path / "moved", phantom, "--out", tmp_path / "p", "--device", "cpu")
    assert json.loads((tmp_path / "p" / "predictions.json").read_text())["encoder"] == BOTH


def test_other_weights_of_one_are_refused(run, monkeypatch):
    entry = ENCODERS["sam_nano"]
    monkeypatch.setitem(ENCODERS, "sam_nano", dataclasses.replace(entry, published=Nowhere("others")))
    with pytest.raises(SamAdaptError, match=r"not those that it was trained with.*all of them"):
        load_run(run)


def test_a_network_of_another_version_is_refused(run):
    config = json.loads((run / "config.json").read_text())
    config["encoder_fingerprint"] = config["encoder_fingerprint"].replace("imagenet-1", "imagenet-0")
    (run / "config.json").write_text(json.dumps(config))
    with pytest.raises(SamAdaptError, match=r"encoder 'imagenet_lite0' of another version"):
        load_run(run)


@pytest.mark.parametrize("tune", sorted(set(TUNINGS) - {"none"}))
def test_both_can_be_tuned(real, phantom, tmp_path, tune):
    words = ("train", phantom, "--encoder", BOTH, "--tune", tune, *SMALL)
    type_(*words, "--out", tmp_path / "run")
    model = load_run(tmp_path / "run").model
    x = torch.rand(1, 6, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tuned, before = model.extractor(x), model.spec.load()(x)
    for name in BOTH.split("+"):
        assert not torch.equal(tuned[f"{name}:stride32"], before[f"{name}:stride32"])


def test_a_study_may_have_them_as_a_learner(monkeypatch):
    own = {"both": {"encoder": "lite_medsam+imagenet_lite0"}, "one": {"encoder": "imagenet_lite0"}}
    grid, _ = make_study({"learner": own, "labels": [1], "seeds": 1}, "segmentation")
    assert grid.methods["both"].spec["encoder"] == "lite_medsam+imagenet_lite0"
    assert grid.methods["both"].role == "contender"


def test_check_speaks_of_each(phantom):
    text = type_("check", phantom, "--encoder", "lite_medsam+imagenet_lite0")
    assert TRAININGS["imagenet_lite0"].text in " ".join(text.split())
    assert "lite_medsam" in text
