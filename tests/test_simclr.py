"""SimCLR: the loss by hand, two independent views, the scored patients kept out, resuming, what the U-Net inherits."""

import dataclasses
import json
import math

import pytest
import torch

from samadapt import simclr
from samadapt.adapted import AdaptedModel
from samadapt.datasets import open_dataset
from samadapt.encoders import EncoderSpec
from samadapt.experiment import Grid, TrainedMethod, build_methods, make_study, run_experiment
from samadapt.experiment.baselines import SimclrMethod
from samadapt.features import FeatureStore
from samadapt.heads import build_head
from samadapt.learner import Learner
from samadapt.phantom import make_phantom
from samadapt.runs import load_state
from samadapt.simclr import SimclrConfig
from samadapt.training import TrainConfig
from samadapt.transforms import build_augmentation, seeded
from samadapt.types import Case, SamAdaptError
from samadapt.views import View

CONFIG = TrainConfig(steps=2, batch_size=2, check_every=2, device="cpu", precision="32")
RECIPE = SimclrConfig(steps=4, batch_size=3, projection=8, check_every=2)
SMALL_UNET = TrainedMethod(Learner("unet", "pixels", side=32, options={"width": 2}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("phantom") / "data"
    make_phantom(path, patients=5, size=48, slices=3)
    return path


@pytest.fixture
def data(folder):
    return open_dataset(folder)


@pytest.fixture
def encoder():
    return EncoderSpec("pixels", side=32)


@pytest.fixture
def slices():
    return list(
        torch.randint(0, 256, (5, 1, 20, 30), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    )


def unet(encoder, seed=0):
    torch.manual_seed(seed)
    return AdaptedModel(encoder, build_head("unet", encoder.taps, 2, width=2))


def study(data, out, learners, labels=(1,), seeds=(0,), jobs=1):
    grid = Grid(learners, labels, seeds, threads=1)
    lines = []
    outcome = run_experiment(data, grid, CONFIG, out, FeatureStore(out.parent / "store"), jobs, lines.append)
    return outcome, lines


def test_the_loss_by_hand():
    """Two slices, their views in two directions: every term of the sum written out."""
    a = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    b = torch.tensor([[0.0, 5.0], [1.0, 0.0]])
    # Cosines: a0-b0 0, a0-a1 0, a0-b1 1, a1-b0 1, a1-b1 0, b0-b1 0. Everybody's own is 0, one other is 1, one is 0.
    expected = -math.log(math.exp(0 / 0.5) / (math.exp(0 / 0.5) + math.exp(0 / 0.5) + math.exp(1 / 0.5)))
    assert float(simclr.nt_xent(a, b, 0.5)) == pytest.approx(expected)
    same = -math.log(math.exp(1 / 0.5) / (math.exp(1 / 0.5) + 2 * math.exp(0.0)))
    assert float(simclr.nt_xent(a, 7 * a, 0.5)) == pytest.approx(same)  # cosine: lengths do not matter
    softer = -math.log(math.exp(1) / (math.exp(1) + 2))
    assert float(simclr.nt_xent(a, a, 1.0)) == pytest.approx(softer)


def test_views_are_independent_and_seeded(slices):
    one, two = simclr.two_views(slices[0], "default", ("key", 3), 32)
    again = simclr.two_views(slices[0], "default", ("key", 3), 32)
    assert torch.equal(one, again[0]) and torch.equal(two, again[1])
    assert not torch.equal(one, two)
    assert not torch.equal(one, simclr.two_views(slices[0], "default", ("key", 4), 32)[0])


def test_each_view_is_made_from_the_slice_itself(slices, monkeypatch):
    """The authors' second view was an augmentation of the first (METHODS A.8, 11)."""
    seen = []

    class Spy:
        def __call__(self, image, label, rng, side):
            seen.append((image.clone(), rng.initial_seed()))
            return image * 0, label

    monkeypatch.setattr(simclr, "build_augmentation", lambda name: Spy())
    simclr.two_views(slices[1], "default", (0,), 32)
    (first, seed_one), (second, seed_two) = seen
    assert torch.equal(first, slices[1].float()) and torch.equal(second, slices[1].float())
    assert seed_one != seed_two


def test_a_round_shows_every_slice_once_and_no_batch_shows_one_twice():
    batches = [simclr.draw_slices(7, 3, seed=1, step=step) for step in range(4)]
    assert all(len(set(batch)) == 3 for batch in batches)
    assert len({*batches[0], *batches[1]}) == 6
    assert batches[2] + batches[3] != batches[0] + batches[1]
    assert simclr.draw_slices(7, 3, seed=2, step=0) != batches[0]


def test_slices_are_windowed_thinned_and_shrunk():
    image = torch.arange(8.0)[None, :, None, None] * torch.ones(1, 8, 64, 32)
    case = Case("a", image, None, None, None, "a")
    slices = simclr.gather_slices([case], View("0,7", "unit", 16), most_per_case=4)
    assert [s.shape for s in slices] == [(1, 16, 8)] * 4 and slices[0].dtype == torch.uint8
    assert [int(s[0, 0, 0]) for s in slices] == [round(255 * n / 7) for n in (0, 2, 4, 6)]
    assert len(simclr.gather_slices([case], View("0,7", "unit", 16), most_per_case=99)) == 8


def test_pretraining_moves_the_contracting_path_alone(encoder, slices, tmp_path):
    model = unet(encoder)
    head = model.head
    before = {k: v.clone() for k, v in head.state_dict().items()}
    cost = simclr.pretrain(model, slices, RECIPE, tmp_path)
    moved = {k for k, v in head.state_dict().items() if not torch.equal(v, before[k])}
    path = {k for k in before if k.split(".")[1] in simclr.CONTRACTING}
    assert moved and moved <= path
    assert {k.split(".")[1] for k in moved} == set(simclr.CONTRACTING)
    assert cost["steps"] == 4 and cost["batch_size"] == 3 and cost["wall_s"] > 0
    assert cost["parameters"] == sum(before[k].numel() for k in path)
    fresh = unet(encoder, seed=9).head
    simclr.load_contracting(fresh, tmp_path)
    assert all(torch.equal(fresh.state_dict()[k], head.state_dict()[k]) for k in path)
    assert any(not torch.equal(fresh.state_dict()[k], head.state_dict()[k]) for k in set(before) - path)


def test_the_loss_falls(encoder, tmp_path, monkeypatch):
    """Stripes of five widths, seen through noise: what tells them apart can be learnt."""
    columns = torch.arange(32)
    stripes = [(255 * ((columns // n) % 2)).expand(1, 32, 32).to(torch.uint8) for n in (1, 2, 4, 8, 16)]

    def noisy(slice_, augment, key, side):
        return tuple(slice_ + 20 * torch.randn(slice_.shape, generator=seeded(*key, n)) for n in (0, 1))

    monkeypatch.setattr(simclr, "two_views", noisy)  # the real ones take a hundred times as long
    recipe = SimclrConfig(steps=40, batch_size=5, lr=1e-2, projection=8)
    cost = simclr.pretrain(unet(encoder), stripes, recipe, tmp_path)
    assert cost["loss_last"] < cost["loss_first"] - 0.15, cost


def test_a_killed_pretraining_goes_on_and_ends_the_same(encoder, slices, tmp_path, monkeypatch):
    simclr.pretrain(unet(encoder), slices, RECIPE, tmp_path / "a")
    original, ran = simclr.StepLoop.update, []

    def dies(*arguments, **options):
        ran.append(1)
        if len(ran) == 4:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(simclr.StepLoop, "update", dies)
    with pytest.raises(KeyboardInterrupt):
        simclr.pretrain(unet(encoder), slices, RECIPE, tmp_path / "b")
    assert not simclr.is_finished(tmp_path / "b")
    simclr.pretrain(unet(encoder), slices, RECIPE, tmp_path / "b")
    assert len(ran) == 6  # three before the kill, the fourth died; steps three and four after it
    one, two = ((tmp_path / name / "contracting.safetensors").read_bytes() for name in "ab")
    assert one == two
    monkeypatch.setattr(simclr.StepLoop, "update", None)
    assert simclr.pretrain(unet(encoder), slices, RECIPE, tmp_path / "b")["steps"] == 4


def test_what_cannot_be_pretrained_is_told(encoder, slices, tmp_path):
    with pytest.raises(SamAdaptError, match="head 'unet', not of 'linear'"):
        simclr.contracting_path(build_head("linear", {"neck": (8, 4, 4)}, 2))
    with pytest.raises(SamAdaptError, match="given 1 slices"):
        simclr.pretrain(unet(encoder), slices[:1], RECIPE, tmp_path)
    with pytest.raises(SamAdaptError, match="two equal views"):
        SimclrConfig(augment="none")
    with pytest.raises(SamAdaptError, match="steps is 0"):
        SimclrConfig(steps=0)
    with pytest.raises(SamAdaptError, match="batch_size is 1; expected a whole number from 2 on"):
        SimclrConfig(batch_size=1)


# ---------------------------------------------------------------- as a learner


def test_scored_patients_never_enter_and_labels_are_not_read(data, tmp_path, monkeypatch):
    seen = []
    original = simclr.gather_slices

    def spy(cases, *rest):
        cases = list(cases)
        seen.extend(cases)
        return original(cases, *rest)

    monkeypatch.setattr(simclr, "gather_slices", spy)
    outcome, _ = study(data, tmp_path / "e", {"simclr": SimclrMethod(SMALL_UNET, RECIPE)})
    assert outcome.failed == {}
    split = data.split(1)
    assert {case.id for case in seen} == set(split.pool)
    assert not {case.group for case in seen} & {data.groups[i] for i in split.val}
    assert all(case.label is None for case in seen)
    assert data.without_labels(split.pool).labelled_ids == ()


def test_one_pretraining_serves_all_label_counts_of_a_seed(data, tmp_path):
    _, lines = study(data, tmp_path / "e", {"simclr": SimclrMethod(SMALL_UNET, RECIPE)}, (1, 2), (0, 1))
    assert len(list(tmp_path.glob("e/shared/simclr-*/contracting.safetensors"))) == 2  # one a seed
    assert sum("pre-trained 4 steps on" in line for line in lines) == 2
    for path in tmp_path.glob("e/*/cost.json"):
        cost = json.loads(path.read_text())
        assert cost["pretraining"]["steps"] == 4 and cost["pretraining"]["wall_s"] > 0 and cost["steps"] == 2
        assert cost["role"] == "baseline"
    _, lines = study(data, tmp_path / "e", {"simclr": SimclrMethod(SMALL_UNET, RECIPE)}, (1, 2, 3), (0, 1))
    assert not any("pre-trained" in line for line in lines)


def test_fine_tuning_starts_from_the_pretrained_path(data, tmp_path):
    """With a learning rate of almost nothing the run ends where it began: in the pre-trained weights."""
    still = dataclasses.replace(SMALL_UNET, train={"lr": 1e-12, "weight_decay": 0.0})
    study(data, tmp_path / "e", {"simclr": SimclrMethod(still, RECIPE)})
    (shared,) = tmp_path.glob("e/shared/simclr-*")
    (run,) = tmp_path.glob("e/*/head.safetensors")
    trained, fresh = unet4(), unet4()
    load_state(trained, run)
    simclr.load_contracting(fresh, shared)
    for one, two in zip(*(simclr.contracting_path(h).parameters() for h in (trained, fresh)), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


def unet4():
    return build_head("unet", {"pixels": (3, 32, 32)}, 4, width=2)


def test_a_pretraining_that_fails_fails_its_cells_only(data, tmp_path, monkeypatch):
    def fails(*arguments):
        raise SamAdaptError("no such luck")

    monkeypatch.setattr(simclr, "pretrain", fails)
    outcome, lines = study(
        data, tmp_path / "e", {"simclr": SimclrMethod(SMALL_UNET, RECIPE), "unet": SMALL_UNET}
    )
    assert outcome.failed == {"simclr, 1 labelled, seed 0": "no such luck"} and outcome.done == 1
    assert any("could not be prepared: no such luck" in line for line in lines)


def test_by_name_and_by_settings():
    made = build_methods(["simclr", "unet"], "segmentation")
    assert made["simclr"].trained == made["unet"] and made["simclr"].recipe == SimclrConfig()
    grid, _ = make_study({"learners": ["simclr"], "simclr": {"steps": 7}}, "segmentation")
    assert grid.learners["simclr"].recipe.steps == 7
    assert grid.learners["simclr"].spec["pretraining"]["steps"] == 7
    with pytest.raises(SamAdaptError, match="simclr has no setting 'epochs'"):
        make_study({"learners": ["simclr"], "simclr": {"epochs": 7}}, "segmentation")
    with pytest.raises(SamAdaptError, match="unknown learner 'simclr' for classification"):
        build_methods(["simclr"], "classification")
    assert build_augmentation(SimclrConfig().augment) is not None
