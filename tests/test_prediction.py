import json

import nibabel as nib
import numpy as np
import pytest
import torch

from fakes import TinyHead, TinyNetwork, disc_case, fake_data, tiny, tiny_model
from samadapt import prediction
from samadapt.features import FeatureStore, MapSpec, Pairs
from samadapt.heads.classification import SaliencyHead
from samadapt.opening import Opening
from samadapt.prediction import Classifier, Segmenter, build_predictor, load_run
from samadapt.scoring import score_labels
from samadapt.training import TrainConfig, train
from samadapt.types import Head, SamAdaptError

pytestmark = pytest.mark.usefixtures("tiny_encoder")
DISCS = Opening("segmentation", ("background", "disc"))
BRIGHTNESS = Opening("classification", ("dark", "bright"), window="none")


class BrightHead(Head):
    """Calls bright pixels class 1, without training: what goes in comes out, if the geometry is right."""

    task = "segmentation"

    def __init__(self):
        super().__init__()
        self.reads, self.spec = {"pixels": 1}, {"name": "bright", "n_classes": 2}

    def forward(self, features):
        bright = features["pixels"].mean(1)  # the tiny encoder: 0..255 -> -0.5..0.5
        return torch.stack([-bright, bright], dim=1)

    def loss(self, features, target):
        raise NotImplementedError


class MeanHead(BrightHead):
    """Class scores from the mean brightness."""

    task = "classification"

    def forward(self, features):
        return super().forward(features).mean((-2, -1))


def counted(monkeypatch, head):
    """A list that gets the size of every batch asked of such heads."""
    seen, original = [], head.forward

    def counting(self, features):
        seen.append(len(features["pixels"]))
        return original(self, features)

    monkeypatch.setattr(head, "forward", counting)
    return seen


def segmenter(head=None, **options):
    return Segmenter(tiny_model(head or BrightHead(), side=128), DISCS, **options)


@pytest.fixture
def oblique_scan(tmp_path):
    """A volume that is wider than high, sliced along its first axis, on an oblique affine."""
    array = np.zeros((4, 50, 30), np.float32)
    array[1:3, 10:30, 5:25] = 100
    array += np.random.default_rng(0).normal(0, 1, array.shape)
    affine = np.array([[0.1, -1, 0.2, 5], [6, 0.1, 0, -7], [0.3, 0.1, -1, 9], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(array, affine), tmp_path / "scan_0000.nii.gz")
    return tmp_path / "scan_0000.nii.gz"


def test_a_bright_block_is_found_where_it_is(oblique_scan, tmp_path):
    model = segmenter()
    case = model.case(oblique_scan)
    assert case.id == "scan"
    model.predict_to(case, tmp_path / "scan.nii.gz", tmp_path / "scan.npy")
    source, written = nib.load(oblique_scan), nib.load(tmp_path / "scan.nii.gz")
    assert np.allclose(source.affine, written.affine)
    truth, found = source.get_fdata() > 50, written.get_fdata() == 1
    dice = 2 * (truth & found).sum() / (truth.sum() + found.sum())
    assert dice > 0.9
    mirrored = found[:, ::-1]
    assert 2 * (truth & mirrored).sum() / (truth.sum() + mirrored.sum()) < 0.8  # the test would see it
    probabilities = np.load(tmp_path / "scan.npy")
    assert probabilities.shape == (2, *truth.shape)
    assert np.allclose(probabilities.astype(np.float32).sum(0), 1, atol=2e-3)
    assert ((probabilities[1] > probabilities[0]) == found).mean() > 0.999


def test_batches_change_nothing(oblique_scan):
    one, many = segmenter(batch_size=1), segmenter(batch_size=3)
    assert np.array_equal(one.predict(oblique_scan), many.predict(oblique_scan))


def test_from_the_store_as_from_the_image(tmp_path):
    wanted, case = MapSpec(tiny(), {"neck": 1}), disc_case(1, depth=5)
    store = FeatureStore(tmp_path)
    store.encode([case], wanted)
    model = Segmenter(tiny_model(TinyHead().eval()), DISCS)
    maps, _ = store.read(case, wanted)
    built = TinyNetwork.built
    stored = model.predict(case, maps)
    assert TinyNetwork.built == built and model.model.extractor is None
    assert (stored == model.predict(case)).mean() > 0.999


def test_full_size_logits_exist_for_one_batch_of_slices_at_a_time(monkeypatch):
    """Memory stays flat with the number of slices: what is asked of the head is a few slices."""
    seen = counted(monkeypatch, BrightHead)
    segmenter().predict(disc_case(1, depth=11))
    assert seen == [4, 4, 3]


def test_cases_pass_the_network_together_and_each_answers_for_itself(monkeypatch):
    """An answer that is not finite, or a case that cannot be seen, is an error of its case alone. Volumes share no batch."""
    model = segmenter()
    cases = [disc_case(n, depth=depth) for n, depth in enumerate((1, 2, 3, 1, 1, 1))]
    alone = [model.predict(case) for case in cases]
    cases[1].image[0, 1, 0, 0] = torch.nan
    inputs = Segmenter.inputs

    def refuse(self, seen, *rest):
        if seen.case is cases[4]:
            raise SamAdaptError("cannot be seen")
        return inputs(self, seen, *rest)

    monkeypatch.setattr(Segmenter, "inputs", refuse)
    seen = counted(monkeypatch, BrightHead)
    found = {}
    for case, answers in model.all_answers(cases):
        try:
            found[case.id] = torch.stack([logits.argmax(0) for logits in answers]).numpy()
        except SamAdaptError as error:
            found[case.id] = str(error)
    assert list(found) == [case.id for case in cases]
    assert seen == [1, 2, 3, 2]  # the last batch has the pictures but that which cannot be seen
    assert "is not finite in slice" in found[cases[1].id] and found[cases[4].id] == "cannot be seen"
    for n in (0, 2, 3, 5):
        assert np.array_equal(found[cases[n].id], alone[n])


def test_the_next_case_is_read_while_one_is_computed(monkeypatch):
    cases, read = [disc_case(n, depth=4) for n in range(5)], []
    answers = segmenter().all_answers(read.append(case.id) or case for case in cases)
    next(answers)
    assert cases[1].id in read and cases[4].id not in read


def test_a_classifier_averages_the_slices():
    model = Classifier(tiny_model(MeanHead()), BRIGHTNESS)
    dark, bright = disc_case(1), disc_case(2)
    dark.image[:] = 10
    bright.image[:] = 250
    assert model.predict(dark).argmax() == 0
    assert model.predict(bright).argmax() == 1
    assert model.predict(bright).sum() == pytest.approx(1)
    both = disc_case(3, depth=2)
    both.image[0, 0], both.image[0, 1] = 10, 250
    expected = (model.predict(dark) + model.predict(bright)) / 2
    assert np.allclose(model.predict(both), expected, atol=1e-5)


def test_pictures_pass_the_network_together(monkeypatch):
    """One by one, small pictures take several times as long; the answers are the same, and each its own."""
    model = Classifier(tiny_model(MeanHead()), BRIGHTNESS)
    cases = [disc_case(n, depth=1) for n in range(24)]
    for n, case in enumerate(cases):
        case.image[:] = 10 * n
    alone = [model.predict_slices(case) for case in cases]
    seen = counted(monkeypatch, MeanHead)
    found = list(model.predict_all((case, None) for case in cases))
    assert seen == [16, 8]  # the head reads pixels alone
    assert [case.id for case, _ in found] == [case.id for case in cases]
    for (_, slices), expected in zip(found, alone, strict=True):
        assert torch.allclose(slices, expected, atol=1e-6)
    assert list(model.predict_all([])) == []


class LookingHead(MeanHead, SaliencyHead):
    """Looks at what is bright, or dark, as its answer is; on a grid of its own."""

    def saliency(self, features, target=None):
        sign = 2 * target[:, None, None] - 1
        return {"seen": sign * torch.nn.functional.avg_pool2d(features["pixels"].mean(1), 4)}


def test_a_classifier_shows_the_slice_that_speaks_most_for_its_answer():
    model = Classifier(tiny_model(LookingHead()), BRIGHTNESS)
    case = disc_case(1, depth=6)
    case.image[:], case.image[0, 4] = 200, 250
    case.image[0, 4, :20] = 240
    look = model.saliency_maps(case, model.predict_slices(case))
    assert look.slice_index == 4 and np.array_equal(look.image, case.image[:, 4].numpy())
    seen = look.maps["seen"]
    assert seen.shape == (40, 32) and seen.dtype == np.float32
    inner = seen[:, :26]  # the last cells of the map's grid reach into the padding
    assert inner[30].min() > inner[10].max() and inner[30, 20] == pytest.approx(250 / 255 - 0.5, abs=0.01)
    dark = disc_case(2, depth=3)
    dark.image[:], dark.image[0, 2] = 30, 5
    look = model.saliency_maps(dark, model.predict_slices(dark))  # the map follows the answer for the case
    assert look.slice_index == 2 and look.maps["seen"][20, 20] == pytest.approx(0.5 - 5 / 255, abs=0.01)


def test_looking_from_the_store_as_from_the_image(tmp_path):
    wanted, case = MapSpec(tiny(), {"neck": 1}), disc_case(1, depth=5)
    head = LookingHead()
    head.reads = {"pixels": 1, "neck": 1}
    head.saliency = lambda features, target: {"seen": features["neck"].mean(1)}
    store = FeatureStore(tmp_path)
    store.encode([case], wanted)
    model = Classifier(tiny_model(head), Opening("classification", ("dark", "bright")))
    slices = model.predict_slices(case)
    maps, _ = store.read(case, wanted)
    calls = TinyNetwork.calls
    stored = model.saliency_maps(case, slices, maps)
    assert TinyNetwork.calls == calls
    assert np.allclose(stored.maps["seen"], model.saliency_maps(case, slices).maps["seen"], atol=1e-2)


def test_a_head_without_maps_says_so():
    model = Classifier(tiny_model(MeanHead()), Opening("classification", ("dark", "bright")))
    case = disc_case(1)
    assert not model.has_saliency
    with pytest.raises(SamAdaptError, match="'bright' cannot say where it looked"):
        model.saliency_maps(case, model.predict_slices(case))


@pytest.fixture
def known(monkeypatch):
    """`load_run` finds the small head under its name."""
    monkeypatch.setattr(prediction, "build_head", lambda taps, name, n_classes: TinyHead(n_classes=n_classes))


def trained(tmp_path, **options):
    pairs = Pairs(fake_data(1), MapSpec(tiny(), {"neck": 1}))
    config = TrainConfig(**{"steps": 5, "batch_size": 2, "device": "cpu", **options})
    model = tiny_model(TinyHead())
    return model, pairs, train(model, pairs, config=config, out=tmp_path / "run")


def test_a_run_folder_can_be_moved_and_loaded(tmp_path, known):
    direct, pairs, run = trained(tmp_path)
    moved = run.rename(tmp_path / "elsewhere")
    model = load_run(moved, device="cpu")
    assert isinstance(model, Segmenter)
    direct = build_predictor(direct, pairs.data.opening)
    assert np.array_equal(model.predict(disc_case(4)), direct.predict(disc_case(4)))


def test_a_tuned_encoder_comes_back(tmp_path, known):
    trained_model, _, run = trained(tmp_path, tune="all", encoder_lr=0.1)
    weight = load_run(run, device="cpu").model.extractor.network.conv.weight
    assert torch.equal(weight, trained_model.extractor.network.conv.weight)
    assert not torch.equal(weight, tiny().load().network.conv.weight)


def test_a_tuned_run_needs_no_other_weights(tmp_path, known, tiny_encoder, monkeypatch):
    """Its folder holds the whole encoder; the weights that it started from may be gone."""
    _, _, run = trained(tmp_path, tune="all", encoder_lr=0.1)
    monkeypatch.setattr(type(tiny_encoder), "loaded", None)
    assert load_run(run, device="cpu").model.extractor is not None


def test_a_frozen_encoder_is_never_in_training_mode():
    model = tiny_model(TinyHead())
    model.features({"pixels": torch.zeros(2, 3, 64, 64)})  # loads it, before anybody called train or eval
    assert model.training and not model.extractor.training


def test_other_encoder_weights_are_refused(tmp_path, known):
    _, _, run = trained(tmp_path)
    with pytest.raises(SamAdaptError, match=r"fingerprint .* expected"):
        load_run(run, device="cpu", checkpoint="random")


def test_a_run_on_an_encoder_of_another_version_says_to_train_again(tmp_path, known):
    _, _, run = trained(tmp_path)
    note = json.loads((run / "config.json").read_text())
    name, version, rest = note["encoder_fingerprint"].split(" ", 2)
    note["encoder_fingerprint"] = f"{name} older-0 {rest}"
    (run / "config.json").write_text(json.dumps(note))
    with pytest.raises(SamAdaptError, match=rf"other maps .*\(older-0 there, {version} now\); train again"):
        load_run(run)


def test_unfinished_and_damaged_runs_are_refused(tmp_path, known):
    with pytest.raises(SamAdaptError, match=r"no config\.json"):
        load_run(tmp_path)
    _, _, run = trained(tmp_path)
    weights = run / "head.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SamAdaptError, match="cannot be read"):
        load_run(run, device="cpu")
    weights.unlink()
    with pytest.raises(SamAdaptError, match="did not finish"):
        load_run(run, device="cpu")


def test_scores_need_labels_and_the_same_grid():
    case = disc_case(1)
    scores = score_labels([(case, case.label.numpy())], ("background", "disc"))
    assert {s.value for s in scores if s.metric == "dsc"} == {1.0}
    shifted = np.roll(case.label.numpy(), 3, axis=2)
    scores = score_labels([(case, shifted)], ("background", "disc"))
    assert all(s.value < 0.9 for s in scores if s.metric == "dsc")
    with pytest.raises(SamAdaptError, match="resampled"):
        score_labels([(case, case.label.numpy()[:, :-1])], ("background", "disc"))
