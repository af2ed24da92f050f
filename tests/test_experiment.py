"""The study: cells, resuming, failures, refusals, and numbers that depend on the cell alone."""

import dataclasses
import gc
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fakes import TinyNetwork
from samadapt import experiment
from samadapt.datasets import open_dataset
from samadapt.experiment import (
    Grid,
    Method,
    TrainedMethod,
    build_methods,
    encoder_note,
    known_methods,
    make_study,
    preset_names,
    read_settings,
    run_experiment,
    run_part,
)
from samadapt.experiment import cells as cells_module
from samadapt.experiment import grid as grid_module
from samadapt.experiment.grid import make_cells
from samadapt.experiment.methods import Fitted, one_by_one
from samadapt.experiment.registry import reading_heads
from samadapt.features import FeatureStore, Pairs
from samadapt.features.encoding import default_batch
from samadapt.heads import HEADS
from samadapt.learner import Learner
from samadapt.metrics import read_scores
from samadapt.phantom import make_phantom
from samadapt.report import read_study, results_table
from samadapt.settings import CellOptions
from samadapt.training import TrainConfig
from samadapt.types import SamAdaptError

ROOT = Path(__file__).parents[1]
CONFIG = TrainConfig(steps=3, batch_size=2, check_every=3, device="cpu", precision="32")
SMALL_UNET = TrainedMethod(Learner("unet", "pixels", side=32, options={"width": 2}))
PROBE = TrainedMethod(Learner("probe", "tiny", views=2))


@dataclasses.dataclass(frozen=True)
class Constant(Method):
    """Answers the truth, shifted; or fails."""

    shift: int = 0
    fails: bool = False
    learns = False
    role = "oracle"

    @property
    def spec(self):
        return {"kind": "constant", **dataclasses.asdict(self)}

    def fit(self, job):
        if self.fails:
            raise RuntimeError("no such luck")
        return Fitted(one_by_one(lambda case: np.roll(case.label.numpy(), self.shift, axis=2)), 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("phantom") / "data"
    make_phantom(path, patients=5, size=48, slices=3)
    return path


@pytest.fixture
def data(folder):
    return open_dataset(folder)


@pytest.fixture
def tiny(tiny_encoder):
    """An encoder of one convolution in the table."""
    return tiny_encoder


def study(data, out, learners, labels=(1,), seeds=(0,), config=CONFIG, jobs=1, **options):
    grid = Grid(learners, labels, seeds, threads=1, **options)
    lines = []
    outcome = run_experiment(data, grid, config, out, FeatureStore(out.parent / "store"), jobs, lines.append)
    return outcome, lines


def scores_of(out):
    """{(learner, labels, seed): text of scores.csv}."""
    cells = json.loads((out / "experiment.json").read_text())["cells"]
    return {
        (c["learner"], c["labels"], c["seed"]): (out / digest / "scores.csv").read_text()
        for digest, c in cells.items()
        if (out / digest / "scores.csv").is_file()
    }


def test_a_grid_becomes_cells_with_scores_and_costs(data, tmp_path, tiny):
    outcome, _ = study(
        data, tmp_path / "e", {"probe": PROBE, "unet": SMALL_UNET, "truth": Constant()}, (1, 2), (0, 1)
    )
    assert (outcome.done, outcome.failed) == (9, {})  # 2 learners x 2 x 2, and one that learns nothing
    note = json.loads((tmp_path / "e/experiment.json").read_text())
    cases = {
        tuple(line.split(",")[0] for line in text.splitlines()[1:])
        for text in scores_of(tmp_path / "e").values()
    }
    assert len(cases) == 1 and set(cases.pop()) == set(note["scored"])
    for digest, cell in note["cells"].items():
        cost = json.loads((tmp_path / "e" / digest / "cost.json").read_text())
        assert cost["learner"] == cell["learner"] and cost["training"]["wall_s"] >= 0
        assert cost["training"]["peak_rss_mib"] > 50
        if cell["learner"] == "probe":
            assert cost["parameters"] == 8 * 4 + 4 and cost["steps"] == 3
            assert len(cell["patients"]) == cell["labels"]
        with np.load(tmp_path / "e" / digest / "slices.npz") as slices:
            assert set(slices.files) == set(note["scored"])
    perfect = [s.value for s in read_scores_of(tmp_path / "e", "truth") if s.metric == "dsc"]
    assert np.nanmin(perfect) == 1.0


def read_scores_of(out, learner):
    cells = json.loads((out / "experiment.json").read_text())["cells"]
    return [
        s for d, c in cells.items() if c["learner"] == learner for s in read_scores(out / d / "scores.csv")
    ]


def test_the_encoder_runs_once_over_each_image_and_view(data, tmp_path, tiny):
    before, built = TinyNetwork.calls, TinyNetwork.built
    study(data, tmp_path / "a", {"probe": PROBE}, (1, 2), (0, 1))
    calls = TinyNetwork.calls - before
    assert TinyNetwork.built == built + 2  # once for the views of training cases, once for the scored cases
    trained = {i for n in (1, 2) for s in (0, 1) for i in data.split(n, s).train}
    passes = [(i, 2) for i in trained] + [(i, 1) for i in data.split(1).val]  # two views of training cases
    inputs = [sum(v * data[i].image.shape[1] for i, v in passes if v == views) for views in (2, 1)]
    assert calls == sum(-(-count // default_batch(64)) for count in inputs)  # batches run across cases
    encoded = json.loads((tmp_path / "a/encoding.json").read_text())  # all of it before the first cell
    assert encoded["slices"] == sum(views * data[i].image.shape[1] for i, views in passes)
    built = TinyNetwork.built
    study(data, tmp_path / "b", {"probe": PROBE}, (1, 2), (0, 1))
    assert TinyNetwork.built == built  # a study whose maps are stored loads no network


def test_no_stored_views_means_a_new_one_in_every_step(data, tmp_path, tiny):
    config = dataclasses.replace(CONFIG, batch_size=1)
    learners = {"drawn": TrainedMethod(Learner("probe", "tiny", views=0)), "probe": PROBE}
    study(data, tmp_path / "e", learners, config=config)
    encoded = json.loads((tmp_path / "e/encoding.json").read_text())
    split = data.split(1)
    passes = [(i, 2) for i in split.train] + [(i, 1) for i in split.val]  # of the other one, and for scoring
    assert encoded["slices"] == sum(views * data[i].image.shape[1] for i, views in passes)
    notes = [json.loads(path.read_text()) for path in (tmp_path / "e").glob("*/cost.json")]
    found = {note["learner"]: note["augmentation"] for note in notes}
    assert found == {
        "drawn": "default, new views in every step",
        "probe": "default, 2 stored views of a slice",
    }
    runs = [json.loads(path.read_text())["stored_maps"] for path in (tmp_path / "e").glob("*/config.json")]
    assert sorted(runs) == [False, True]


@pytest.mark.parametrize(("views", "told"), [(0, False), (2, True), (200, False)])
def test_few_stored_pictures_are_said_aloud(data, tmp_path, tiny, views, told):
    _, lines = study(data, tmp_path / "e", {"probe": TrainedMethod(Learner("probe", "tiny", views=views))})
    slices = sum(data[i].image.shape[1] for i in data.split(1).train)
    assert any(f"{slices} slices: with {views} stored views" in line for line in lines) == told
    assert any("stored views" in line for line in lines) == told


@pytest.mark.parametrize(
    ("precision", "fast", "told"), [("bf16", False, True), ("bf16", True, False), ("32", False, False)]
)
def test_emulated_bfloat16_is_said_aloud(data, tmp_path, monkeypatch, precision, fast, told):
    monkeypatch.setattr("samadapt.runs.has_bf16", lambda device: fast)
    config = dataclasses.replace(CONFIG, precision=precision)
    _, lines = study(data, tmp_path / "e", {"unet": SMALL_UNET}, config=config)
    assert any("bf16 is slower here than 32" in line for line in lines) == told


def test_a_finished_cell_lets_go_of_its_maps(data, tmp_path, tiny):
    gc.collect()
    gc.disable()  # else it is chance whether they are gone
    try:
        study(data, tmp_path / "e", {"probe": PROBE})
        assert not any(type(thing) is Pairs for thing in gc.get_objects())
    finally:
        gc.enable()


def test_rerunning_does_only_what_is_missing(data, tmp_path, monkeypatch):
    study(data, tmp_path / "e", {"unet": SMALL_UNET}, (1,), (0, 1))
    before = scores_of(tmp_path / "e")
    gone = next(iter(tmp_path.glob("e/*/scores.csv")))
    gone.unlink()
    ran = []
    original = cells_module._run
    monkeypatch.setattr(
        cells_module, "_run", lambda s, cell, out: (ran.append(str(cell)), original(s, cell, out))
    )
    outcome, _ = study(data, tmp_path / "e", {"unet": SMALL_UNET}, (1,), (0, 1))
    assert (outcome.found, outcome.done, len(ran)) == (1, 1, 1)
    assert scores_of(tmp_path / "e") == before


def test_a_finished_cell_is_not_run_again(data, tmp_path, monkeypatch):
    grid = Grid({"truth": Constant()}, (1,), (0,))
    (cell,) = make_cells(data, grid, CONFIG)
    shared = cells_module.Study(data, tmp_path, FeatureStore(tmp_path / "store"))
    assert cells_module.run_cell(shared, cell) == "done"
    monkeypatch.setattr(cells_module, "_run", None)
    assert cells_module.run_cell(shared, cell) == "done"


def test_order_and_company_change_no_digit(data, tmp_path):
    study(data, tmp_path / "a", {"unet": SMALL_UNET, "truth": Constant()}, (1, 2), (0,))
    study(data, tmp_path / "b", {"unet": SMALL_UNET}, (2, 1), (1, 0))
    a, b = scores_of(tmp_path / "a"), scores_of(tmp_path / "b")
    for labels in (1, 2):
        assert a["unet", labels, 0] == b["unet", labels, 0]
    assert b["unet", 1, 0] != b["unet", 1, 1]


def test_a_failed_cell_is_recorded_and_tried_again(data, tmp_path):
    outcome, lines = study(data, tmp_path / "e", {"bad": Constant(fails=True), "truth": Constant()})
    assert outcome.failed == {"bad": "RuntimeError: no such luck"} and outcome.done == 1
    assert any("FAILED: RuntimeError: no such luck" in line for line in lines)
    (failed,) = tmp_path.glob("e/*/failed.json")
    assert "no such luck" in json.loads(failed.read_text())["traceback"]
    again, _ = study(data, tmp_path / "e", {"bad": Constant(fails=True), "truth": Constant()})
    assert (again.found, again.failed) == (1, outcome.failed)


def test_weights_that_are_not_numbers_are_a_failure(data, tmp_path, monkeypatch):
    from samadapt.experiment import methods

    def spoil(run, device, **options):
        model = original(run, device)
        next(model.head.parameters()).data.fill_(float("nan"))
        return model

    original = methods.load_run
    monkeypatch.setattr(methods, "load_run", spoil)
    outcome, _ = study(data, tmp_path / "e", {"unet": SMALL_UNET})
    assert "not finite" in next(iter(outcome.failed.values()))


def test_stacked_scores_are_by_patient(data, tmp_path):
    study(data, tmp_path / "e", {"shifted": Constant(shift=1)}, stacked=True)
    rows = read_scores_of(tmp_path / "e", "shifted")
    assert {s.metric for s in rows} == {"dsc"}
    assert {s.case for s in rows} == {data.groups[i] for i in data.split(1).val}
    patient = rows[0].case
    ids = [i for i in data.split(1).val if data.groups[i] == patient]
    truth = np.concatenate([data[i].label.numpy().ravel() for i in ids])
    moved = np.concatenate([np.roll(data[i].label.numpy(), 1, axis=2).ravel() for i in ids])
    value = list(data.classes).index(rows[0].target)
    expected = (
        2 * np.sum((truth == value) & (moved == value)) / (np.sum(truth == value) + np.sum(moved == value))
    )
    assert rows[0].value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": dataclasses.replace(CONFIG, steps=4)}, "another steps: 3 there, 4 now"),
        ({"stacked": True}, "another stacked: false there, true now"),
        ({"learners": {"truth": Constant(shift=2)}}, "another spec of learner 'truth'"),
    ],
)
def test_another_study_in_the_folder_is_refused(data, tmp_path, change, words):
    study(data, tmp_path / "e", {"truth": Constant()})
    with pytest.raises(SamAdaptError, match=words):
        study(**{"data": data, "out": tmp_path / "e", "learners": {"truth": Constant()}, **change})


def test_weights_that_changed_under_their_name_are_refused(data, tmp_path):
    """The digest of a cell holds the name of a checkpoint, not what is in it."""

    class Moved(Constant):
        @property
        def starts_from(self):
            return SimpleNamespace(
                spec=lambda: SimpleNamespace(fingerprint=self.weights), overlaps=lambda data, cases: []
            )

    learner = Moved()
    learner.weights = "aaa"
    study(data, tmp_path / "s", {"truth": learner}, (1,))
    study(data, tmp_path / "s", {"truth": learner}, (1,))
    learner.weights = "bbb"
    with pytest.raises(SamAdaptError, match='another encoder of \'truth\': "aaa" there, "bbb" now'):
        study(data, tmp_path / "s", {"truth": learner}, (1,))


def test_a_study_notes_the_weights_that_its_learners_start_from(tiny):
    base, built = Learner("cnn", "tiny"), TinyNetwork.built
    methods = {
        "a": TrainedMethod(base),
        "b": TrainedMethod(dataclasses.replace(base, head="linear", side=32)),
        "drawn": TrainedMethod(dataclasses.replace(base, checkpoint="random")),
        "c": Constant(),
    }
    found = grid_module.fingerprints(methods)
    assert found == {"a": base.spec().fingerprint, "b": methods["b"].learner.spec().fingerprint}
    assert found["a"] != found["b"] and TinyNetwork.built == built


def test_another_data_set_or_version_is_refused(data, tmp_path, monkeypatch):
    study(data, tmp_path / "e", {"truth": Constant()})
    other = dataclasses.replace(data, entries=data.entries[2:], folds=())
    with pytest.raises(SamAdaptError, match="another data hash"):
        study(other, tmp_path / "e", {"truth": Constant()})
    monkeypatch.setattr(experiment.grid, "version", lambda name: "9.9")
    with pytest.raises(SamAdaptError, match=r"another version: .* there, \"9.9\" now"):
        study(data, tmp_path / "e", {"truth": Constant()})


def test_more_of_the_same_study_is_added(data, tmp_path):
    study(data, tmp_path / "e", {"truth": Constant()})
    outcome, _ = study(data, tmp_path / "e", {"unet": SMALL_UNET}, (2,))
    note = json.loads((tmp_path / "e/experiment.json").read_text())
    assert outcome.done == 1 and set(note["learners"]) == {"truth", "unet"} and len(note["cells"]) == 2


def test_edited_scores_are_refused(data, tmp_path):
    study(data, tmp_path / "e", {"truth": Constant()})
    (scores,) = tmp_path.glob("e/*/scores.csv")
    scores.write_text(scores.read_text().replace("1.0", "0.9", 1))
    with pytest.raises(SamAdaptError, match="cut short or edited"):
        study(data, tmp_path / "e", {"truth": Constant()})


def test_bad_grids_are_refused_before_anything_runs(data, tmp_path):
    with pytest.raises(SamAdaptError, match="99 labelled patients were asked for"):
        study(data, tmp_path / "e", {"unet": SMALL_UNET}, (1, 99))
    assert not (tmp_path / "e").exists()
    with pytest.raises(SamAdaptError, match="unknown learner 'unett' for segmentation; known: autosam"):
        build_methods(["unett"], "segmentation")
    with pytest.raises(SamAdaptError, match="each once"):
        Grid({"u": SMALL_UNET}, (1, 1))
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("mine")
    with pytest.raises(SamAdaptError, match="not empty and not an experiment"):
        study(data, tmp_path / "full", {"truth": Constant()})


def test_names_become_methods_on_the_users_encoder():
    made = build_methods(
        ["cnn", "unet", "autosam_faithful", "scratch"],
        "segmentation",
        Learner("fused", "sam_vit_b", side=512),
    )
    assert made["cnn"].learner.encoder == "sam_vit_b" and made["cnn"].learner.head == "cnn"
    assert made["unet"].learner.encoder == "pixels"
    assert made["autosam_faithful"].learner.prepare == "autosam"
    assert (
        made["scratch"].train == {"tune": "all", "encoder_lr": HEADS["fused"].lr}
        and made["scratch"].learner.checkpoint == "random"
    )


@pytest.mark.slow
def test_cells_side_by_side_give_the_same_numbers(data, tmp_path):
    learners = {"unet": SMALL_UNET, "truth": Constant()}
    study(data, tmp_path / "one", learners, (1, 2))
    outcome, _ = study(data, tmp_path / "two", learners, (1, 2), jobs=2)
    assert outcome.failed == {} and scores_of(tmp_path / "one") == scores_of(tmp_path / "two")


def test_a_job_array_gives_what_one_command_gives(data, tmp_path):
    """List, prepare, then each cell by a command of its own, two of them at once; the numbers are those of one command."""
    learners, words = {"unet": SMALL_UNET, "truth": Constant()}, (1, 2)
    study(data, tmp_path / "one", learners, words)
    grid, out = Grid(learners, words, (0,), threads=1), tmp_path / "array"

    def part(**asked):
        return run_part(data, grid, CONFIG, out, FeatureStore(tmp_path / "store"), CellOptions(**asked))

    listed = part(list_cells=True).cells
    assert [cell["state"] for cell in listed] == ["waiting"] * 3 and not list(out.glob("*/scores.csv"))
    assert part(prepare=True).done == 0 and not list(out.glob("*/scores.csv"))
    before = (out / "experiment.json").read_bytes()
    for cell in listed[:2]:
        assert part(cell=(cell["digest"],)).done == 1
    assert [cell["state"] for cell in part(list_cells=True).cells] == ["done", "done", "waiting"]
    assert part(cell=(listed[2]["digest"], listed[0]["digest"])).found == 1
    assert {c["digest"] for c in listed} == set(json.loads(before)["cells"])
    assert part().found == 3 and scores_of(out) == scores_of(tmp_path / "one")


def test_cells_of_a_job_array_do_not_write_what_they_share(data, tmp_path):
    grid, out = Grid({"truth": Constant()}, (1,), (0,)), tmp_path / "array"

    def part(**asked):
        return run_part(data, grid, CONFIG, out, FeatureStore(tmp_path / "store"), CellOptions(**asked))

    (cell,) = part(list_cells=True).cells
    path = out / "experiment.json"
    path.chmod(0o444)
    before = path.stat().st_mtime_ns, path.read_bytes()
    part(cell=(cell["digest"],))
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    with pytest.raises(SamAdaptError, match="the study has no cell 'none'; it has"):
        part(cell=("none",))
    with pytest.raises(SamAdaptError, match="--list-cells and --cell are different parts of a study"):
        part(list_cells=True, cell=("x",))


@pytest.mark.parametrize(
    ("learner", "train", "role"),
    [
        (Learner("fused", "sam_nano"), {}, "contender"),
        (Learner("fused", "sam_nano"), {"tune": "all"}, "contender"),
        (Learner("slca", "sam_nano"), {}, "contender"),
        (Learner("unet", "pixels"), {}, "baseline"),
        (Learner("unet_pretrained", "pixels"), {}, "baseline"),
        (Learner("plain", "sam_nano"), {}, "baseline"),  # reads the encoder's pixels only
        (Learner("se", "sam_nano", "random"), {}, "baseline"),
        (Learner("fused", "sam_nano", "random"), {}, "control"),
        (Learner("fused", "sam_nano", "random"), {"tune": "all"}, "baseline"),
        (Learner("slca", "sam_nano", options={"shuffle": True}), {}, "control"),
        (Learner("slca", "sam_nano", options={"source": "own"}), {}, "control"),
    ],
)
def test_a_learner_has_the_role_of_what_it_reads(learner, train, role):
    assert TrainedMethod(learner, train).role == role
    assert TrainedMethod(learner, train, "oracle").role == "oracle"  # unless it is declared


@pytest.mark.parametrize("task", ["segmentation", "classification"])
def test_every_method_that_can_be_named_has_a_role(task):
    base = Learner("fused" if task == "segmentation" else "slca", "sam_nano")
    roles = {name: method.role for name, method in build_methods(known_methods(task), task, base).items()}
    expected = {
        name: "baseline" for name, head in HEADS.items() if head.task == task and not head.uses_encoder
    }
    expected |= {"scratch": "baseline", "random": "control"}
    if task == "segmentation":
        expected |= {"simclr": "baseline", "nnunet": "baseline"}
        expected |= {"zero_shot": "oracle", "zero_shot_points": "oracle"}
    assert {name: role for name, role in roles.items() if role != "contender"} == expected


def test_roles_are_written_and_another_one_is_refused(data, tmp_path):
    unet = {"unet": SMALL_UNET, "truth": Constant()}
    study(data, tmp_path / "e", unet)
    path = tmp_path / "e/experiment.json"
    roles = {name: of["role"] for name, of in json.loads(path.read_text())["learners"].items()}
    assert roles == {"unet": "baseline", "truth": "oracle"}
    with pytest.raises(
        SamAdaptError, match='another role of learner \'unet\': "baseline" there, "control" now'
    ):
        study(data, tmp_path / "e", {"unet": dataclasses.replace(SMALL_UNET, declared="control")})


def test_a_folder_from_before_roles_is_refused_by_the_report_and_given_them_by_the_same_command(
    data, tmp_path
):
    study(data, tmp_path / "e", {"unet": SMALL_UNET, "truth": Constant()})
    path = tmp_path / "e/experiment.json"
    note = json.loads(path.read_text())
    for of in note["learners"].values():
        of["uses_truth"] = of.pop("role") == "oracle"
    path.write_text(json.dumps(note))
    with pytest.raises(
        SamAdaptError, match=r"written by samadapt 0\.1\.0, does not say what unet, truth are there for"
    ):
        read_study(tmp_path / "e")
    outcome, _ = study(data, tmp_path / "e", {"unet": SMALL_UNET, "truth": Constant()})
    assert (outcome.found, outcome.done) == (2, 0)
    assert {name: of.role for name, of in read_study(tmp_path / "e").learners.items()} == {
        "unet": "baseline",
        "truth": "oracle",
    }


def test_a_learner_of_ones_own_may_declare_its_role():
    table = {"head": "fused", "encoder": "sam_nano"}
    grid, _ = make_study({"learner": {"a": table, "b": {**table, "role": "control"}}}, "segmentation")
    assert [grid.methods[name].role for name in "ab"] == ["contender", "control"]
    assert grid.methods["a"].spec == grid.methods["b"].spec  # it changes no number, so no cell
    with pytest.raises(SamAdaptError, match=r"learner\.b\.role is 'rival'; known: baseline, contender"):
        make_study({"learner": {"b": {**table, "role": "rival"}}}, "segmentation")


def test_settings_make_a_study():
    grid, config = make_study(
        {
            "learners": ["cnn", "mine", "unet", "simclr"],
            "labels": [1, 0.5, "all"],
            "seeds": [3, 4],
            "encoder": {"encoder": "sam_vit_b", "side": 256},
            "train": {"steps": 7},
            "unet": {"width": 4},
            "learner": {"mine": {"head": "fused", "views": 2, "train": {"tune": "all"}}},
        },
        "segmentation",
    )
    assert (grid.labels, grid.seeds, config.steps) == ((1, 0.5, None), (3, 4), 7)
    assert grid.learners["mine"] == TrainedMethod(
        Learner("fused", "sam_vit_b", side=256, views=2), {"tune": "all"}
    )
    assert grid.learners["unet"].learner.options == {"width": 4}
    assert grid.learners["simclr"].trained.learner == grid.learners["unet"].learner
    for name in preset_names():
        make_study(read_settings(name), "segmentation")


@pytest.mark.parametrize(
    ("learners", "expected"),
    [
        (["fused"], "imagenet_lite0"),
        (["fused", "unet", "nnunet"], "imagenet_lite0"),
        (["fused", "autosam"], "lite_medsam"),
        (["fused", "autosam_faithful"], "lite_medsam"),
        (["fused", "zero_shot_points"], "lite_medsam"),  # it needs the decoder
        (["fused", "random"], "imagenet_lite0"),
    ],
)
def test_a_study_reads_an_encoder_that_suits_all_its_learners(monkeypatch, learners, expected):
    monkeypatch.setattr("samadapt.weights.PublishedFile.find", lambda self: "here")
    settings = {"learners": learners}
    grid, _ = make_study(settings, "segmentation")
    assert grid.encoder == expected
    assert encoder_note(settings, grid).startswith(f"encoder {expected}, since none was named (--encoder)")
    monkeypatch.setattr("samadapt.weights.PublishedFile.find", lambda self: None)
    grid, _ = make_study(settings, "segmentation")
    assert grid.encoder == "sam_nano"
    assert f"and the weights of {expected} are not on this machine" in encoder_note(settings, grid)


def test_a_learner_of_ones_own_on_the_pixels_is_not_given_the_encoder():
    tables = {"learner": {"u": {"head": "unet_pretrained"}, "p": {"head": "plain"}}}
    grid, _ = make_study({"encoder": {"encoder": "sam_vit_b"}, **tables}, "segmentation")
    assert grid.learners["u"].learner.encoder == "pixels"
    assert grid.learners["p"].learner.encoder == "sam_vit_b"  # whose preparation it shares with SLCA


def test_cheap_encoders_read_a_new_view_in_every_step():
    """Also beside one whose views are stored, and unless the number of views is given."""
    tables = {
        "encoder": {"encoder": "lite_medsam"},
        "learner": {"i": {"head": "fused", "encoder": "imagenet_lite0"}},
    }
    grid, _ = make_study({"learners": ["fused", "i"], **tables}, "segmentation")
    assert [grid.learners[n].learner.views for n in ("fused", "i")] == [6, 0]
    tables["encoder"]["views"] = 8
    grid, _ = make_study({"learners": ["fused", "i"], **tables}, "segmentation")
    assert [grid.learners[n].learner.views for n in ("fused", "i")] == [8, 8]
    assert Learner("fused", "sam_nano").views == 0
    assert Learner("fused", "sam_nano", augment="none").views == 6  # all views are the same: stored once


def test_a_checkpoint_needs_the_name_of_its_network():
    with pytest.raises(SamAdaptError, match="checkpoint 'random' is given and no encoder"):
        make_study({"learners": ["fused"], "encoder": {"checkpoint": "random"}}, "segmentation")


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.toml")), ids=lambda p: p.stem)
def test_benchmarks_do_not_depend_on_the_weights_that_are_here(path):
    settings = read_settings(path)
    own = settings.get("learner", {})
    read = reading_heads(settings.get("learners", list(own)), own)
    assert settings.get("encoder", {}).get("encoder") or not read


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learnerz": ["cnn"]}, "the study has no setting 'learnerz'"),
        ({"learners": ["cnn"], "train": {"stepz": 1}}, "train has no setting 'stepz'"),
        ({"learners": ["cnn"], "unet": {"depth": 1}}, "unet has no setting 'depth'; it has width, loss"),
        ({"learners": ["cnn"], "unet": 16}, "unet is 16; expected a table"),
        ({"learners": ["cnn"], "encoder": {"name": "x"}}, "encoder has no setting 'name'"),
        ({"learners": ["a"], "learner": {"a": {"heads": "cnn"}}}, "learner.a has no setting 'heads'"),
        ({"learners": "cnn"}, "learners is 'cnn'; expected a list"),
        (
            {"learners": ["cnn"], "labels": ["few"]},
            r"labels is \['few'\]; expected a list of numbers, or all",
        ),
    ],
)
def test_unknown_settings_are_errors(settings, words):
    with pytest.raises(SamAdaptError, match=words):
        make_study(settings, "segmentation")


def test_files_that_are_not_settings(tmp_path):
    (tmp_path / "a.toml").write_text("labels = [1")
    with pytest.raises(SamAdaptError, match="is not TOML"):
        read_settings(tmp_path / "a.toml")
    with pytest.raises(SamAdaptError, match="acdc_authors"):
        read_settings("acdc_auhors")


def test_the_table_for_the_terminal(data, tmp_path):
    study(data, tmp_path / "e", {"unet": SMALL_UNET, "truth": Constant()}, (2, 1), (0, 1))
    head, unet, truth = results_table(tmp_path / "e").splitlines()
    assert head.split("  ")[0] == "mean dsc [lowest to highest seed]" and head.split()[-3:] == ["-", "1", "2"]
    assert unet.split()[0] == "unet" and unet.count(" to ") == 2 and truth.split() == ["truth", "1.000"]
    with pytest.raises(SamAdaptError, match="not an experiment"):
        results_table(tmp_path)
