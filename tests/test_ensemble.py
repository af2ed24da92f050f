"""Several heads that answer together: the mean of their probabilities, how far they agree, and which cases are marked."""

import csv
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from samadapt import io
from samadapt.cli import app
from samadapt.datasets import Split
from samadapt.ensemble import Agreement, answers_together, joint_split, member_runs, read_agreement
from samadapt.evaluation import evaluate_folder
from samadapt.folders import predict_folder
from samadapt.predicted import read_predictions
from samadapt.prediction import load_run
from samadapt.types import SamAdaptError

FAST = ["--head", "unet", "--set", "width=4", "--side", "64", "--batch-size", "2", "--device", "cpu"]


def type_(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def heads(phantom, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "three"
    words = ("--labels", "2", "--steps", "12", "--heads-ensemble", "3", "--out", out)
    result = type_("train", phantom, *words, *FAST)
    assert result.exit_code == 0 and "3 heads that answer together" in result.stdout
    return out


def test_heads_learn_from_the_same_cases_and_differ(heads):
    runs = member_runs(heads)
    assert [run.name for run in runs] == ["head_0", "head_1", "head_2"]
    configs = [json.loads((run / "config.json").read_text()) for run in runs]
    assert len({tuple(config["data"]["train"]) for config in configs}) == 1
    assert len({config["train"]["seed"] for config in configs}) == 3
    weights = [load_run(run, "cpu").head.state_dict() for run in runs]
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_answer_is_the_mean_of_the_probabilities(heads, phantom, tmp_path):
    report = predict_folder(heads, phantom, tmp_path / "out", device="cpu", probabilities=True)
    members = [load_run(run, "cpu") for run in member_runs(heads)]
    image = next(iter(sorted((phantom / "imagesTr").glob(f"{next(iter(_cases(tmp_path / 'out')))}*"))))
    case = members[0].case(image)
    each = [torch.stack([x.softmax(0) for x in m.answers(case)], 1) for m in members]
    mean = torch.stack(each).mean(0)
    written = np.load(tmp_path / "out" / f"{case.id}.npy")
    assert np.allclose(np.sort(written.ravel()), np.sort(mean.numpy().ravel()), atol=2e-3)
    assert report.done == len(_cases(tmp_path / "out")) and not report.abstained
    alone = predict_folder(heads / "head_1", phantom, tmp_path / "alone", device="cpu")
    assert alone.done == report.done and not read_agreement(tmp_path / "alone")


def _cases(folder):
    found = read_predictions(folder)
    assert found is not None and found.finished
    return list(found.cases)


def test_agreement_by_hand():
    found = Agreement(2, ("background", "a", "b", "c"))
    found.add([torch.tensor([[1, 1, 0, 0]]), torch.tensor([[1, 0, 0, 2]])])
    found.add([torch.tensor([[1, 0, 0, 0]]), torch.tensor([[1, 0, 0, 0]])])
    dice = found.dice()
    assert dice["a"] == pytest.approx(2 * 2 / (3 + 2)) and dice["b"] == 0 and math.isnan(dice["c"])


def test_agreement_is_that_of_the_label_maps(heads, phantom):
    members = [load_run(run, "cpu") for run in member_runs(heads)]
    case = members[0].case(sorted((phantom / "imagesTr").iterdir())[0])
    found = Agreement(3, members[0].classes)
    list(answers_together(members, case, False, found))
    maps = [member.predict(case) for member in members]
    for value, name in enumerate(members[0].classes[1:], start=1):
        pairs = [
            2 * ((a == value) & (b == value)).sum() / max(1, (a == value).sum() + (b == value).sum())
            for a, b in ((maps[0], maps[1]), (maps[0], maps[2]), (maps[1], maps[2]))
        ]
        assert found.dice()[name] == pytest.approx(np.mean(pairs), abs=1e-6) or math.isnan(found.dice()[name])


def test_cases_below_the_bound_are_marked(heads, phantom, tmp_path):
    out = tmp_path / "marked"
    result = type_("predict", heads, phantom, "--out", out, "--abstain", "1", "--device", "cpu", "--json")
    report = json.loads(result.stdout)
    rows = list(csv.DictReader((out / "agreement.csv").read_text().splitlines()))
    assert {row["case"] for row in rows} == set(_cases(out)) == set(report["abstained"])
    assert all(row["abstained"] == "yes" and float(row["mean"]) < 1 for row in rows)
    assert all(io.find_label(out, row["case"]) for row in rows)  # marked, not taken away
    shown = type_("predict", heads, phantom, "--out", tmp_path / "none", "--abstain", "0", "--device", "cpu")
    assert "agree too little" not in shown.stdout
    assert "rank correlation" in " ".join(evaluate_folder(out, phantom).notes) or len(rows) < 5


def test_an_interrupted_prediction_keeps_its_rows(heads, phantom, tmp_path):
    out = tmp_path / "twice"
    predict_folder(heads, phantom, out, device="cpu")
    whole, case = read_agreement(out), _cases(out)[0]
    note = out / "predictions.json"
    note.write_text(note.read_text().replace('"finished": true', '"finished": false'))
    io.find_label(out, case).unlink()
    predict_folder(heads, phantom, out, device="cpu")
    assert read_agreement(out) == whole


def test_what_one_head_cannot_be_asked(heads, phantom, tmp_path):
    with pytest.raises(
        SamAdaptError, match=r"--abstain 0[.]5 asks how far the label maps of several heads agree"
    ):
        predict_folder(heads / "head_0", phantom, tmp_path / "x", device="cpu", abstain=0.5)
    assert not (tmp_path / "x").exists()


def test_heads_that_do_not_go_together_are_refused(heads, phantom, tmp_path):
    mixed = tmp_path / "mixed"
    shutil.copytree(heads, mixed)
    path = mixed / "head_1" / "config.json"
    config = json.loads(path.read_text())
    config["opening"]["classes"][1] = "liver"
    path.write_text(json.dumps(config))
    with pytest.raises(SamAdaptError, match="cannot answer together: their classes are"):
        predict_folder(mixed, phantom, tmp_path / "x", device="cpu")


def test_other_folders_are_refused(heads, phantom, tmp_path):
    words = ("--labels", "2", "--steps", "2", "--heads-ensemble", "2")
    for more, told in (
        (("--out", heads), r"holds other run folders \(head_2\), .*choose another --out"),
        (("--out", heads / "head_0"), "is the run folder of a single head"),
        (("--out", tmp_path / "f", "--fold", "all"), "leave out one of them"),
    ):
        result = type_("train", phantom, *words, *more, *FAST)
        assert result.exit_code and re.search(told, str(result.exception))


def test_of_several_splits_only_what_all_keep_is_scored(heads, tmp_path):
    runs = []
    for number, (train, val) in enumerate(((("a", "b"), ("c", "d")), (("c",), ("b", "d")))):
        run = tmp_path / f"head_{number}"
        shutil.copytree(heads / "head_0", run)
        split = Split(train, (), val, train, train, labels=None, seed=0, rule="")
        (run / "split.json").write_text(json.dumps(split.to_json()))
        runs.append(run)
    both = joint_split(runs)
    assert both.val == ("d",) and both.learned("a") and both.learned("c") and not both.learned("d")
