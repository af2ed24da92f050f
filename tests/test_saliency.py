"""Where classifiers of a study looked: which cases are kept, what is kept of them, and the page that shows them."""

import json
import re

import numpy as np
import pytest

from fakes import disc_case, two_class_archive
from samadapt.datasets import open_dataset
from samadapt.experiment import Grid, TrainedMethod, run_experiment
from samadapt.experiment.previews import drawn_cases, save_saliency, sure_mistakes
from samadapt.features import FeatureStore
from samadapt.learner import Learner
from samadapt.prediction import Saliency
from samadapt.report import read_study, write_report
from samadapt.report.attention import saliency_section
from samadapt.training import TrainConfig
from synthetic_study import keep_saliency, make_classification_study

IDS = [f"eye{i:02d}" for i in range(12)]


# ---------------------------------------------------------------- which cases


def test_the_drawn_cases_depend_on_names_alone_and_show_every_class():
    truth = np.array([0] * 9 + [1, 2, 2])
    drawn = drawn_cases(IDS, truth)
    assert len(set(drawn)) == 4 and {truth[IDS.index(i)] for i in drawn} == {0, 1, 2}
    assert drawn_cases(IDS[::-1], truth[::-1]) == drawn
    assert len(drawn_cases(IDS[:2], truth[:2])) == 2
    several = np.zeros((12, 3), int)
    several[3], several[7] = [1, 0, 1], [0, 1, 0]
    assert {"eye03", "eye07"} < set(drawn_cases(IDS, several))  # each combination has its turn


def test_the_surest_mistakes_come_first():
    truth = np.array([0, 0, 1, 1])
    p = np.array([[0.9, 0.1], [0.3, 0.7], [0.95, 0.05], [0.6, 0.4]])
    assert sure_mistakes(IDS[:4], p, truth) == ["eye02", "eye01"]
    assert sure_mistakes(IDS[:4], p, truth, count=9) == ["eye02", "eye01", "eye03"]
    assert sure_mistakes(IDS[:1], p[:1], truth[:1]) == []
    labels = np.array([[1, 0], [1, 1], [0, 0]])
    several = np.array([[0.9, 0.2], [0.9, 0.1], [0.3, 0.6]])
    assert sure_mistakes(IDS[:3], several, labels) == ["eye01", "eye02"]


# ---------------------------------------------------------------- what is kept


def test_kept_maps_are_small_and_lie_on_their_picture(tmp_path):
    rows = np.broadcast_to(np.linspace(0.2, 0.8, 200)[:, None], (200, 300)).astype(np.float32)
    look = Saliency(1, np.stack([255 * rows] * 3), {"stem": rows, "Grad-CAM": 0 * rows})
    save_saliency(tmp_path / "attention.npz", [(disc_case(1, depth=3), look)], 1)
    with np.load(tmp_path / "attention.npz", allow_pickle=False) as kept:
        assert kept["cases"].tolist() == ["p1_a"] and int(kept["drawn"]) == 1
        assert kept["0.image"].shape == (50, 75, 3) and kept["0.maps"].shape == (2, 50, 75)
        assert kept["0.slice"].tolist() == [1, 3]
        assert kept["0.titles"].tolist() == ["stem\n0.20 to 0.80", "Grad-CAM\nflat: 0"]
        assert (kept["0.maps"][0].min(), kept["0.maps"][1].max()) == (0, 0) and kept["0.maps"][0].max() > 250
        shown = (kept["0.image"][..., 0] - 51.0) / (204 - 51)
        assert np.abs(kept["0.maps"][0] / 255 - shown).max() < 0.02
    assert [path.name for path in tmp_path.iterdir()] == ["attention.npz"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A study of two learners that look, and one that cannot say where."""
    root = tmp_path_factory.mktemp("looks")
    common = {"encoder": "sam_nano", "checkpoint": "random", "side": 32, "views": 1}
    learners = {
        "se": TrainedMethod(Learner("se", options={"image_size": 32, "small_input": True}, **common)),
        "attentive_probe": TrainedMethod(Learner("attentive_probe", **common)),
        "linear_probe": TrainedMethod(Learner("linear_probe", **common)),
    }
    config = TrainConfig(steps=2, batch_size=4, device="cpu", precision="32")
    grid = Grid(learners, (6,), (0,), threads=1)
    outcome = run_experiment(
        open_dataset(two_class_archive(root / "two.npz")),
        grid,
        config,
        root / "e",
        FeatureStore(root / "store"),
    )
    assert outcome.failed == {}
    return root / "e"


def cell_of(folder, learner):
    cells = json.loads((folder / "experiment.json").read_text())["cells"]
    return next(folder / digest for digest, cell in cells.items() if cell["learner"] == learner)


def test_a_cell_keeps_where_its_learner_looked(folder):
    kept = {}
    for learner in ("se", "attentive_probe"):
        with np.load(cell_of(folder, learner) / "attention.npz", allow_pickle=False) as file:
            kept[learner] = dict(file)
    assert not (cell_of(folder, "linear_probe") / "attention.npz").exists()
    drawn = [of["cases"][: int(of["drawn"])].tolist() for of in kept.values()]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 4 and len(kept["se"]["cases"]) <= 6
    names = [title.split("\n")[0] for title in kept["se"]["0.titles"]]
    assert names == ["stem", "stage1", "stage2", "stage3", "stage4", "Grad-CAM"]
    assert kept["se"]["0.maps"].shape == (6, 28, 28)
    study = read_study(folder)
    (cell,) = [c for c in study.cells if c.learner == "se"]
    p, y = (study.values(cell, name) for name in ("probability", "truth"))
    for case in kept["se"]["cases"][4:]:
        row = study.cases.index(case)
        assert p[row].argmax() != y[row].argmax()


def test_the_page_of_a_real_study_shows_them(folder, tmp_path):
    page = write_report(folder, tmp_path).read_text()
    section = page[page.index(">Saliency maps", page.index("</nav>")) : page.index(">Results per class</h2>")]
    assert section.count("data:image/png") >= 4 and "http" not in re.sub(r"base64,[A-Za-z0-9+/=]*", "", page)


# ---------------------------------------------------------------- the page


@pytest.fixture
def eyes(tmp_path):
    learners = {"slca": 1.8, "plain": 0.0, "linear_probe": 1.2}
    return make_classification_study(tmp_path / "e", learners, labels=(5,), seeds=(0, 1))


def test_the_best_learner_leads_and_the_others_stand_below(eyes):
    keep_saliency(eyes, "plain", ["eye001", "eye002", "eye004"], ["Grad-CAM"], drawn=2)
    keep_saliency(eyes, "slca", ["eye001", "eye002", "eye003"], ["stem", "stage1", "Grad-CAM"], drawn=2)
    study = read_study(eyes)
    found = saliency_section(study, study.levels[-1], ["slca", "plain"])
    assert found.lead == "slca"
    assert [(x.case, x.mistake) for x in found.pictures] == [
        ("eye001", False), ("eye002", False), ("eye003", True),
    ]  # fmt: skip
    cell = next(iter(study.seeds("slca", study.levels[-1]).values()))
    for looked in found.pictures:
        truth = study.values(cell, "truth")[study.cases.index(looked.case)]
        assert looked.truth == study.targets[int(truth.argmax())]
    assert saliency_section(study, study.levels[-1], ["plain"]).lead == "plain"
    page = write_report(eyes).read_text()
    section = page[page.index(">Saliency maps", page.index("</nav>")) : page.index(">Results per class</h2>")]
    assert (
        section.count("data:image/png") == 3
        and section.count("one of the most confident errors of slca") == 1
    )


def test_maps_of_one_name_stand_below_each_other(eyes, monkeypatch):
    keep_saliency(eyes, "slca", ["eye001"], ["stem", "stage1", "Grad-CAM"], drawn=1)
    keep_saliency(eyes, "plain", ["eye001"], ["Grad-CAM"], drawn=1)
    keep_saliency(eyes, "linear_probe", ["eye001"], ["neck"], drawn=1, flat=True)
    drawn = []
    monkeypatch.setattr("samadapt.report.attention.inline_png", lambda figure: drawn.append(figure) or "x")
    study = read_study(eyes)
    saliency_section(study, study.levels[-1], ["slca", "plain"])
    titles = [axes.get_title().split("\n")[0] for axes in drawn[0].axes]
    assert titles == [
        "image", "stem", "stage1", "Grad-CAM",
        "image", "", "", "Grad-CAM",
        "image", "neck", "", "",
    ]  # fmt: skip
    layers = [len(axes.images) for axes in drawn[0].axes]
    assert layers == [1, 2, 2, 2, 1, 0, 0, 2, 1, 1, 0, 0]  # what is flat has no colours
    said = drawn[0].axes[0].texts[0].get_text()
    cell = study.seeds("slca", study.levels[-1])[0]
    p = study.values(cell, "probability")[study.cases.index("eye001")]
    assert said == f"slca\n{study.targets[int(p.argmax())]} ({p.max():.2f})\nslice 2"


def test_a_study_without_maps_says_so(eyes):
    assert "No method of this study stored saliency maps" in write_report(eyes).read_text()
