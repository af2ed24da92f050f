"""The report: what it says, what it refuses, and that it needs nothing but the scores."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest

from samadapt.metrics import classification_metrics, mean_contributions
from samadapt.overlap import Overlap
from samadapt.records import SamAdaptError
from samadapt.report import read_study, write_report
from samadapt.report.comparisons import all_means, compare_all
from samadapt.report.measures import Side, contributions, paired_contributions
from samadapt.report.verdict import gains, judge
from samadapt.report.worst import case_means, seed_mean, shown_cases
from synthetic_study import fail, make_classification_study, make_study, write_cell

HEAD_WINS = {"linear": 0.70, "fused": 0.86, "unet": 0.78}
UNET_WINS = {"linear": 0.70, "fused": 0.76, "unet": 0.85, "simclr": 0.80}


@pytest.fixture(scope="module")
def unet_wins(tmp_path_factory):
    folder = make_study(tmp_path_factory.mktemp("unet") / "e", UNET_WINS, labels=(1, 5))
    return folder, write_report(folder).read_text()


@pytest.fixture(scope="module")
def eyes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eyes") / "e"
    return make_classification_study(folder, {"slca": 1.8, "linear_probe": 1.2, "plain": 0.0})


def verdict_of(folder, name="dsc"):
    study = read_study(folder)
    means = all_means(study, name)
    return judge(study, means, compare_all(study, means, name), name)


def first_sentence(page):
    return re.search(r"<h1>(.*?)</h1>", page).group(1)


# ---------------------------------------------------------------- the verdict


def test_a_study_in_which_unet_wins_says_so_first(unet_wins):
    page = unet_wins[1]
    assert first_sentence(page).startswith(
        "Use U-Net: with 1 and 5 labelled patients, its mean Dice is higher"
    )
    assert "better method" not in first_sentence(page) and "fused" in first_sentence(page)
    before = page[page.index("<body>") : page.index("<h1>")]
    assert "." not in re.sub(r"<[^>]*>", "", before)  # no sentence comes before it


def test_nnunet_can_win_too(tmp_path):
    make_study(tmp_path / "e", {"fused": 0.70, "nnunet": 0.85, "unet": 0.72}, labels=(2,))
    assert verdict_of(tmp_path / "e").sentence.startswith("Use nnU-Net: with 2 labelled patients")


def test_a_head_that_wins_is_recommended(tmp_path):
    make_study(tmp_path / "e", HEAD_WINS, labels=(1, 5))
    assert verdict_of(tmp_path / "e").sentence.startswith("Use fused: ")


def test_equal_learners_cannot_be_told_apart(tmp_path):
    make_study(tmp_path / "e", {"fused": 0.8, "unet": 0.8}, labels=(1, 5), seed=1)
    verdict = verdict_of(tmp_path / "e")
    assert verdict.sentence.startswith("No difference shown")
    assert all(f.comparison.difference.low < 0 < f.comparison.difference.high for f in verdict.conclusions)


def test_few_patients_show_nothing_and_the_page_says_why(tmp_path):
    make_study(tmp_path / "e", HEAD_WINS, labels=(5,), patients=4)
    sentence = verdict_of(tmp_path / "e").sentence
    assert sentence.startswith(
        "4 test patients are too few to decide: with 5 labelled patients, fused and U-Net differ"
    )
    assert "with fewer than 7 patients no difference, however large," in sentence
    page = write_report(tmp_path / "e").read_text()
    assert "there are too few test patients to decide" in page and "No difference shown: with" not in page


def test_who_is_given_the_truth_is_no_rival(tmp_path):
    make_study(tmp_path / "e", {"fused": 0.8, "unet": 0.7, "zero_shot": 0.97}, labels=(5,))
    study = read_study(tmp_path / "e")
    comparisons = compare_all(study, all_means(study, "dsc"), "dsc")
    assert {c.baseline for c in comparisons} == {"unet"}
    shown = next(c for c in comparisons if c.learner == "zero_shot")
    assert math.isnan(shown.p_holm) and shown.verdict == "not tested" and shown.difference.mean > 0.1
    page = write_report(tmp_path / "e").read_text()
    assert first_sentence(page).startswith("Use fused") and "zero_shot (ground-truth prompt)" in page


def test_a_study_in_progress_speaks_of_the_levels_where_somebody_has_learned(tmp_path):
    folder = make_study(tmp_path / "e", {"fused": 0.8, "unet": 0.7, "zero_shot": 0.97}, labels=(1, 2))
    for digest, cell in json.loads((folder / "experiment.json").read_text())["cells"].items():
        if cell["labels"] == 2 and cell["learner"] != "zero_shot":
            (folder / digest / "scores.csv").unlink()
    verdict = verdict_of(folder)
    assert [f.level.patients for f in verdict.conclusions] == [1]
    page = write_report(folder).read_text()
    assert first_sentence(page).startswith(
        "Unfinished, 7 of 13 runs have scores: use fused: with 1 labelled patient, "
    )


def test_the_truth_alone_decides_nothing(tmp_path):
    make_study(tmp_path / "e", {"zero_shot": 0.97}, labels=(1,))
    assert "only methods that are prompted with the ground truth were run" in first_sentence(
        write_report(tmp_path / "e").read_text()
    )


def test_nor_the_rival_that_a_baseline_must_beat(tmp_path):
    make_study(tmp_path / "e", {"fused": 0.7, "unet": 0.8, "zero_shot": 0.97}, labels=(5,))
    sentence = verdict_of(tmp_path / "e").sentence
    assert sentence.startswith("Use U-Net") and "(fused)" in sentence


def test_without_a_baseline_nothing_is_decided(tmp_path):
    make_study(tmp_path / "e", {"fused": 0.8, "cnn": 0.7}, labels=(5,))
    assert verdict_of(tmp_path / "e").sentence.startswith("Nothing to decide: this study has no baseline")
    assert "There is nothing to compare" in write_report(tmp_path / "e").read_text()


def test_all_can_be_compared_with_one_that_is_asked_for(tmp_path):
    """A question about controls: what does each lack? The verdict is not touched by it."""
    quality = {"slca": 0.80, "linear": 0.70, "unet": 0.78, "zero_shot": 0.97}
    folder = make_study(tmp_path / "e", quality, labels=(1, 5))
    plain = write_report(folder).read_text()
    page = write_report(folder, against="slca").read_text()
    assert (
        "Comparison with slca" in page
        and "Comparison with slca" not in plain
        and first_sentence(page) == first_sentence(plain)
    )
    with open(folder / "comparisons.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["compared_with"] == "slca"]
    assert sorted((row["learner"], row["labels"]) for row in rows) == [
        (name, n) for name in ("linear", "unet", "zero_shot") for n in ("1", "5")
    ]
    study = read_study(folder)
    for row in rows:
        mean = dict(
            zip(("ours", "theirs"), (float(row["mean"]), float(row["mean_compared_with"])), strict=True)
        )
        difference = float(row["difference"])
        assert difference == pytest.approx(mean["ours"] - mean["theirs"], abs=1e-4)
        assert float(row["ci95_low"]) < difference < float(row["ci95_high"])
        level = next(level for level in study.levels if str(level.labels) == row["labels"])
        ours, others = paired_contributions(study, Side(row["learner"], level), Side("slca", level), "dsc")
        assert difference == pytest.approx((ours - others).mean(), abs=1e-5)
    assert {row["verdict"] for row in rows if row["learner"] == "linear"} == {"worse"}
    assert {row["p_holm"] for row in rows if row["learner"] == "zero_shot"} == {""}
    write_report(folder, against="unet")  # the best baseline itself: every comparison stands there once
    with open(folder / "comparisons.csv") as file:
        assert len(list(csv.DictReader(file))) == 6
    with pytest.raises(SamAdaptError, match=r"no method 'cbam'.*slca, linear, unet"):
        write_report(folder, against="cbam")


def test_a_random_encoder_is_a_baseline(tmp_path):
    folder = make_study(tmp_path / "e", {"fused": 0.7, "scratch": 0.7, "random": 0.9}, labels=(5,))
    learners = read_study(folder).learners
    assert [name for name, of in learners.items() if of.baseline] == ["scratch", "random"]
    assert [name for name, of in learners.items() if of.role == "control"] == [
        "random"
    ]  # frozen: nobody would use it
    assert verdict_of(folder).sentence.startswith(
        "Do not use fused: with 5 labelled patients, the mean Dice of a control"
    )


def test_roles_are_read_and_never_guessed(tmp_path):
    """Not from names, and not from what a method is made of."""
    folder = make_study(tmp_path / "e", {"fused": 0.9, "unet": 0.7, "linear": 0.6}, labels=(5,))
    note = json.loads((folder / "experiment.json").read_text())
    for name, role in (("fused", "oracle"), ("unet", "contender"), ("linear", "baseline")):
        note["learners"][name]["role"] = role
    (folder / "experiment.json").write_text(json.dumps(note))
    assert verdict_of(folder).sentence.startswith(
        "Use U-Net: with 5 labelled patients, its mean Dice is higher"
    )
    assert "the best baseline (linear)" in verdict_of(folder).sentence
    note["learners"]["fused"]["role"] = "rival"
    (folder / "experiment.json").write_text(json.dumps(note))
    with pytest.raises(SamAdaptError, match="does not say what fused is there for"):
        read_study(folder)


def test_gates_that_know_nothing_of_the_picture_are_a_baseline(tmp_path):
    folder = make_classification_study(
        tmp_path / "e", {"slca": 0.5, "shuffled": 2.0, "own": 0.5, "plain": 0.0}
    )
    study = read_study(folder)
    assert {name for name, of in study.learners.items() if of.baseline} == {"shuffled", "own", "plain"}
    assert {name for name, of in study.learners.items() if of.role == "control"} == {"shuffled", "own"}
    assert "do not use slca: a control (shuffled) does better" in verdict_of(folder, "auc").sentence


def test_answers_may_differ_with_the_number_of_labels(tmp_path):
    folder = make_study(tmp_path / "e", {"fused": 0.80, "unet": 0.80}, labels=(1, 5))
    note = json.loads((folder / "experiment.json").read_text())
    for digest, cell in note["cells"].items():
        gain = 0.15 if (cell["learner"], cell["labels"]) in (("fused", 1), ("unet", 5)) else 0.0
        rows = list(csv.reader((folder / digest / "scores.csv").read_text().splitlines()))[1:]
        better = [(*r[:3], float(r[3]) + gain * (r[2] == "dsc" and float(r[3]) > 0)) for r in rows]
        write_cell(folder / digest, better, cell["learner"], cell["labels"], cell["seed"])
    sentence = verdict_of(folder).sentence
    assert sentence.startswith(
        "With 1 labelled patient, use fused rather than U-Net; with 5 labelled patients, use U-Net rather than fused"
    )


# ---------------------------------------------------------------- numbers


def test_the_mean_is_over_classes_of_the_defined_cases():
    values = np.array([[0.5, math.nan, math.nan], [1.0, 0.2, math.nan], [0.0, 0.4, math.nan]])
    assert mean_contributions(values).mean() == pytest.approx((0.5 + 0.3) / 2)
    assert np.isnan(mean_contributions(values[:, 2:])).all()


def test_a_side_of_a_classification_study_has_the_auc_and_the_accuracy_of_the_metrics(eyes):
    study = read_study(eyes)
    cell = study.done[0]
    p, truth = study.values(cell, "probability"), study.values(cell, "truth")
    right = classification_metrics(p, truth.argmax(1), study.targets)
    side = Side(cell.learner, next(x for x in study.levels if x.labels == cell.labels))
    for target in study.targets:
        first = contributions(study, side, "auc", target)[:, 0]
        assert first.mean() == pytest.approx(right[target, "auc"])
    for metric in ("auc", "acc"):
        assert contributions(study, side, metric)[:, 0].mean() == pytest.approx(right["all", metric])


def test_a_difference_pairs_cases_and_seeds(tmp_path):
    folder = make_study(tmp_path / "e", {"fused": 0.8, "unet": 0.7}, labels=(5,))
    fail(folder, "unet", 5, 1, "no such luck")
    study = read_study(folder)
    sides = paired_contributions(study, Side("fused", study.levels[0]), Side("unet", study.levels[0]), "dsc")
    matrix = sides[0] - sides[1]
    assert matrix.shape == (8, 2)  # seed 1 has no partner
    ours, theirs = (study.seeds(n, study.levels[0])[2] for n in ("fused", "unet"))
    paired = study.values(ours, "dsc") - study.values(theirs, "dsc")
    assert matrix[:, 1].mean() == pytest.approx(np.nanmean(paired, 0).mean())


def test_the_difference_is_that_of_the_means_beside_it(tmp_path):
    """Also where one learner has no value for some cases: both means are over those that both have."""
    folder = make_study(tmp_path / "e", {"fused": 0.8, "unet": 0.7}, labels=(5,))
    for digest, cell in json.loads((folder / "experiment.json").read_text())["cells"].items():
        if cell["learner"] != "fused":
            continue
        with open(folder / digest / "scores.csv", newline="") as file:
            rows = [(*list(row.values())[:3], float(row["value"] or "nan")) for row in csv.DictReader(file)]
        kept = [(*row[:3], math.nan if row[2] == "dsc" and row[0] < "p03" else row[3]) for row in rows]
        write_cell(folder / digest, kept, "fused", 5, cell["seed"])
    study = read_study(folder)
    (row,) = compare_all(study, all_means(study, "dsc"), "dsc")
    assert row.ours - row.theirs == pytest.approx(row.difference.mean, abs=1e-9)
    assert row.theirs != pytest.approx(all_means(study, "dsc")["unet", row.level].mean, abs=1e-3)


def test_one_more_patient_is_worth_the_slope(tmp_path):
    folder = make_study(tmp_path / "e", {"fused": 0.8, "unet": 0.8}, labels=(1, 2, 5), seed_sd=0.0)
    found = {
        (g.learner, g.low.patients, g.high.patients): g.per_patient for g in gains(read_study(folder), "dsc")
    }
    assert set(found) == {(n, *s) for n in ("fused", "unet") for s in ((1, 2), (2, 5))}
    slope = found["fused", 1, 2]  # simulated: 0.09 for each doubling; one of 48 masks is always 0
    assert slope.low < 0.09 * 47 / 48 < slope.high and slope.mean == pytest.approx(0.088, abs=0.01)
    assert found["fused", 2, 5].mean == pytest.approx(0.09 * np.log2(2.5) / 3, abs=0.006)


# ---------------------------------------------------------------- files


def test_the_tidy_table_equals_the_scores(unet_wins):
    folder, _ = unet_wins
    rows = list(csv.DictReader((folder / "table.csv").read_text().splitlines()))
    note = json.loads((folder / "experiment.json").read_text())
    expected = [
        (c["learner"], str(c["labels"]), str(c["seed"]), *row)
        for digest, c in note["cells"].items()
        for row in list(csv.reader((folder / digest / "scores.csv").read_text().splitlines()))[1:]
    ]
    found = [
        tuple(r[k] for k in ("learner", "labels", "seed", "case", "target", "metric", "value")) for r in rows
    ]
    assert found == expected
    assert all(r["patient"] == r["case"].split("_")[0] for r in rows)


def test_the_page_stands_alone(unet_wins):
    folder, page = unet_wins
    text = re.sub(r"base64,[A-Za-z0-9+/=]*", "", page)  # in which four letters of any kind may meet
    assert "http" not in text and "//" not in text
    links = set(re.findall(r'href="(?!#)([^"]*)"', page))
    assert links and all((folder / link).exists() for link in links)  # files of the study alone
    assert not re.findall(r'src="(?!data:)', page) and "@media print" in page
    assert page.count("<svg") == 2 and page.count("data:image/png") == 7
    assert (folder / "dice_vs_labels.svg").read_text().startswith("<?xml")
    assert (folder / "dice_vs_labels.png").read_bytes()[:4] == b"\x89PNG"


def test_ids_of_the_figures_do_not_meet(unet_wins):
    ids = re.findall(r'\bid="([^"]*)"', unet_wins[1])
    assert len(ids) == len(set(ids)) > 50
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', unet_wins[1])) <= set(ids)


def test_the_contents_name_every_chapter(unet_wins):
    page = unet_wins[1]
    listed = re.findall(r'<li><a href="#([\w-]+)">(.*?)</a>', page)
    assert listed == re.findall(r'<h2 id="([\w-]+)">(.*?)</h2>', page) and len(listed) > 10


def test_words_intervals_and_distances_are_explained_and_not_folded_away(unet_wins):
    page = unet_wins[1]
    words = re.search(r'<dl class="glossary">(.*?)</dl>', page, re.DOTALL)[1]
    assert all(
        f"<dt>{w}</dt>" in words for w in ("fused", "view", "draw, seed", "head", "tap", "HD95", "Dice")
    )
    assert "<dt>SLCA</dt>" not in words  # no method of this study
    assert "an interval can therefore leave the range of the values that were observed" in page
    assert "over the scored patients and over the draws of labelled patients" in page
    open_ = re.sub(r"<details>.*?</details>", "", page, flags=re.DOTALL)
    assert "Mean Hausdorff distance, 95th percentile (mm)" in open_ and "<caption>Hausdorff distance" in open_
    assert re.search(r"<td[^>]*>RV</td><td[^>]*>16</td>", page)  # test cases with the class


def test_predictions_are_linked_where_a_run_kept_them(tmp_path):
    folder = make_study(tmp_path / "e", {"fused": 0.8, "unet": 0.7}, labels=(5,))
    assert "and no predictions" in write_report(folder).read_text()
    study = read_study(folder)
    (digest,) = [c.digest for c in study.cells if (c.learner, c.seed) == ("fused", 0)]
    (folder / digest / "predictions").mkdir()
    (folder / digest / "predictions/p01_ES.nii.gz").write_bytes(b"")
    page = write_report(folder).read_text()
    assert f'<a href="{digest}/predictions/p01_ES.nii.gz">label map</a>' in page
    assert page.count("predictions</a>") == 1 and "and no predictions" not in page


def test_a_report_is_the_same_when_made_again(unet_wins, tmp_path):
    folder, page = unet_wins
    links = re.compile(r'href="(?!#)[^"]*"')  # they are relative
    assert links.sub("", write_report(folder, tmp_path / "again").read_text()) == links.sub("", page)
    assert sorted(p.name for p in (tmp_path / "again").iterdir()) == [
        "comparisons.csv", "dice_vs_labels.png", "dice_vs_labels.svg", "report.html", "table.csv",
    ]  # fmt: skip


def test_names_are_text_not_markup(tmp_path):
    folder = make_study(tmp_path / "e", {"fused": 0.8, "unet": 0.7}, labels=(5,), seeds=(0,))
    text = (folder / "experiment.json").read_text()
    (folder / "experiment.json").write_text(text.replace("Simulated", "<script>alert(1)</script>"))
    assert "<script>alert" not in write_report(folder).read_text()


def test_no_torch_and_nothing_of_ours_that_needs_it(unet_wins, tmp_path):
    program = (
        "import sys; from samadapt.report import write_report; write_report(*sys.argv[1:]); "
        "import json; print(json.dumps([m for m in sys.modules if m.split('.')[0] in ('torch', 'monai', 'samadapt')]))"
    )
    arguments = [sys.executable, "-c", program, str(unet_wins[0]), str(tmp_path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    assert loaded and not [m for m in loaded if m.split(".")[0] != "samadapt"]
    assert {m.split(".")[1] for m in loaded if "." in m} == {
        "files",
        "metrics",
        "overlap",
        "records",
        "report",
        "statistics",
    }


def test_failed_cells_are_shown_with_their_message(tmp_path):
    folder = make_study(tmp_path / "e", {"fused": 0.8, "unet": 0.7}, labels=(5,))
    fail(folder, "fused", 5, 1, "weights that are <nan>; lower --lr")
    page = write_report(folder).read_text()
    assert "weights that are &lt;nan&gt;; lower --lr" in page and "1 of 6 runs have no scores" in page


def test_what_is_missed_and_undefined_is_counted(unet_wins):
    _, page = unet_wins
    section = page[page.index(">Missed structures and undefined scores</h2>") :]
    row = re.search(r"<td[^>]*>fused</td>(.*?)</tr>", section, re.S).group(1)
    counts = [re.sub("<.*?>", "", x) for x in re.findall(r"<td.*?>(.*?)</td>", row)]
    assert counts == ["1", "144", "3", "0", "0", "0"]  # 16 cases x 3 classes x 3 seeds; one RV missed each


def test_the_encoders_are_named(tmp_path):
    """Also in the command, where a default chose one: it may be another one on another machine."""
    folder = make_study(tmp_path / "e", {"fused": 0.8, "unet": 0.7, "random": 0.4}, labels=(5,))
    note = json.loads((folder / "experiment.json").read_text()) | {"encoder": "sam_nano"}
    (folder / "experiment.json").write_text(json.dumps(note))
    page = write_report(folder).read_text()
    assert "sam_nano: fused; sam_nano (random weights): random" in page
    assert "--out e --encoder sam_nano" in page


def test_budget_environment_and_command_are_there(unet_wins):
    page = unet_wins[1]
    for text in (
        "1 234 567",
        "62.2",
        "118.0",
        "912",
        "6 stored views",
        "no checkpoint selection: the averaged final weights are used",
        "torch 2.13",
        "5e1f5e1f",
    ):
        assert text in page, text
    assert "samadapt experiment &#39;my data&#39; --heads cnn --out e" in page and "/home/me" not in page
    hashes = [json.loads(p.read_text())["scores_sha256"] for p in unet_wins[0].glob("*/cost.json")]
    assert all(h in page for h in hashes)


def test_the_worst_case_comes_first(unet_wins):
    study = read_study(unet_wins[0])
    found = shown_cases(study, [Side("unet", study.levels[-1]), Side("fused", study.levels[-1])], "dsc")
    values = [float(w.values[0][1]) for w in found]
    assert [w.place for w in found] == [*["worst"] * 5, "median", "best"] and values == sorted(values)
    assert found[0].case == "p01_ES"
    means = sorted(case_means(seed_mean(study, Side("unet", study.levels[-1]), "dsc")))
    assert values[5:] == [round(float(x), 3) for x in (means[8], means[-1])]  # of 16 cases
    assert [name for name, _ in found[0].values] == ["U-Net", "fused"] and found[0].slice_index == 4


def test_stacked_scans_show_their_patients(tmp_path):
    folder = make_study(tmp_path / "e", {"fused": 0.8, "unet": 0.7}, labels=(5,), seeds=(0,))
    note = json.loads((folder / "experiment.json").read_text())
    note["protocol"]["stacked"] = True
    for digest, cell in note["cells"].items():
        rows = list(csv.reader((folder / digest / "scores.csv").read_text().splitlines()))[1:]
        kept = [(r[0].split("_")[0], *r[1:]) for r in rows if r[0].endswith("ES") and r[2] == "dsc"]
        write_cell(folder / digest, kept, cell["learner"], cell["labels"], cell["seed"])
    (folder / "experiment.json").write_text(json.dumps(note))
    page = write_report(folder).read_text()
    assert (
        page.count("data:image/png") == 6 and "scans stacked" in page and "Only one seed has finished" in page
    )


# ---------------------------------------------------------------- classification


def test_a_classification_study_has_its_own_figures(eyes):
    page = write_report(eyes).read_text()
    assert first_sentence(page).startswith("Use slca: with 5 and 10 labelled cases, its mean AUC")
    for title in ("ROC curves", "Reliability diagram", "Confusion matrices", "Accuracy"):
        assert f">{title}" in page
    assert (eyes / "auc_vs_labels.svg").is_file() and "http" not in re.sub(
        r"base64,[A-Za-z0-9+/=]*", "", page
    )


# ---------------------------------------------------------------- refusals


def change(path, old, new):
    path.write_text(path.read_text().replace(old, new, 1))


@pytest.fixture
def small(tmp_path):
    return make_study(tmp_path / "e", {"fused": 0.8, "unet": 0.7}, labels=(5,), seeds=(0,), patients=3)


@pytest.mark.parametrize("how", ["edited", "truncated", "no cost"])
def test_scores_that_are_not_the_cells_own_are_refused(small, how):
    path = next(small.glob("*/scores.csv"))
    if how == "edited":
        change(path, "LV,dsc,0.", "LV,dsc,1.")
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        (path.parent / "cost.json").unlink()
    with pytest.raises(
        SamAdaptError, match=re.escape(str(path)) + r".*cut short or edited.*remove that folder"
    ):
        write_report(small)
    assert not (small / "report.html").exists()


def test_folders_that_are_no_study_are_refused(small, tmp_path):
    with pytest.raises(SamAdaptError, match=r"no experiment\.json"):
        write_report(tmp_path)
    change(small / "experiment.json", '"format": 1', '"format": 9')
    with pytest.raises(SamAdaptError, match=r"format 9.*reads 1"):
        write_report(small)
    (small / "experiment.json").write_text("{")
    with pytest.raises(SamAdaptError, match="cannot be read"):
        write_report(small)


def test_a_study_without_any_scores_is_refused(small):
    for path in small.glob("*/scores.csv"):
        path.unlink()
    with pytest.raises(SamAdaptError, match="no finished cell"):
        write_report(small)


def test_cells_that_score_other_cases_are_refused(small):
    note = json.loads((small / "experiment.json").read_text())
    digest, cell = next(iter(note["cells"].items()))
    rows = list(csv.reader((small / digest / "scores.csv").read_text().splitlines()))[1:]
    write_cell(small / digest, [r for r in rows if r[0] != "p00_ED"], cell["learner"], 5, 0)
    with pytest.raises(SamAdaptError, match="other cases or classes"):
        write_report(small)


def test_the_error_is_the_one_the_command_line_catches():
    from samadapt import types

    assert types.SamAdaptError is SamAdaptError


# ---------------------------------------------------------------- what encoders have seen


def saw(folder, seen):
    """Note that the encoder of `fused` has seen these cases of a public data set; None: all may be."""
    note = json.loads((folder / "experiment.json").read_text())
    overlap = Overlap("lite_medsam", "ISIC 2016-2018", "seen", "they are listed", "a list", seen, 16)
    note["overlaps"] = {"fused": [overlap.to_json()], "unet": []}
    (folder / "experiment.json").write_text(json.dumps(note))
    return write_report(folder).read_text()


def test_learners_whose_encoder_has_seen_the_scored_cases_are_marked(tmp_path):
    folder = make_study(tmp_path / "e", HEAD_WINS, labels=(1, 5))
    assert "may be better than on new patients" not in write_report(folder).read_text()
    page = saw(folder, None)
    assert "The training of encoder lite_medsam has seen ISIC 2016-2018: they are listed [a list]." in page
    assert "fused *" in first_sentence(page) and "linear *" not in page and "U-Net *" not in page
    assert (
        "Scores on cases that no encoder was trained on" not in page
    )  # nobody knows which cases that would be


def test_scores_on_unseen_cases_are_shown_beside_those_on_all(tmp_path):
    folder = make_study(tmp_path / "e", HEAD_WINS, labels=(5,))
    cases = read_study(folder).cases
    page = saw(folder, tuple(cases[:10]))
    part = page[page.index("Scores on cases that no encoder was trained on</h2>") :]
    assert "6 of 16 cases" in part and "(10 of these 16 cases)" in page
    study = read_study(folder)
    left = [np.nanmean([study.values(c, "dsc")[10:].mean() for c in study.done if c.learner == "fused"])]
    row = re.search(r"fused \*</t[dh]>\s*<td[^>]*>([\d.]+)", part)
    assert abs(float(row.group(1)) - left[0]) < 6e-4


def test_nothing_is_left_where_everything_was_seen(tmp_path):
    folder = make_study(tmp_path / "e", HEAD_WINS, labels=(5,))
    page = saw(folder, tuple(read_study(folder).cases))
    assert "Scores on cases that no encoder was trained on" not in page and "(16 of these 16 cases)" in page
