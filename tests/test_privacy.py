"""`--anonymous`: nothing that is written has a name of a patient, of a case or of a file, and the commands still meet."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import dicoms
from samadapt import io
from samadapt.cli import app
from samadapt.datasets import Dataset, Entry, open_dataset
from samadapt.datasets.anonymous import open_key
from samadapt.evaluation import evaluate_folder
from samadapt.folders import predict_folder
from samadapt.inputs import Taken
from samadapt.opening import Opening
from samadapt.phantom import make_phantom
from samadapt.types import SamAdaptError, SamAdaptWarning

NAMES = ("zebedee", "quentin", dicoms.BIRTH, dicoms.ACCESSION.lower(), "hospital-7")
SMALL = ("--head", "linear", "--encoder", "sam_nano", "--side", "64", "--device", "cpu")


def type_(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def planted(tmp_path) -> Path:
    """Scans whose headers, folders, files and PatientID name the patient."""
    for n in range(4):
        scan, uid = tmp_path / "data" / f"Zebedee_{n}" / f"Quentin{n}", str(n + 1)
        values = np.random.default_rng(n).integers(0, 900, (4, 32, 32)).astype(np.int16)
        names = [f"Zebedee{n}_{k}.dcm" for k in range(4)]
        dicoms.series(scan, values - 800, uid=uid, patient=f"HOSPITAL-7-{n}", names=names)
        found = np.zeros((1, 4, 32, 32), bool)
        found[:, 1:3, 8:20, 8:20] = True
        dicoms.seg(tmp_path / "data" / f"Zebedee{n}_liver.dcm", found, ["liver"], series_uid=uid)
    return tmp_path


def demand_no_names(folder: Path, given: Path) -> int:
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        content = path.read_bytes().lower().replace(str(given).lower().encode(), b"")
        found = [
            word
            for word in NAMES
            if word.encode() in content or word in str(path.relative_to(folder)).lower()
        ]
        assert not found, (path, found)
    return len(files)


def test_a_finished_project_has_no_names(planted):
    data, key = planted / "data", planted / "secret" / "names.csv"
    hide = ("--anonymous", key)
    train = (
        "train",
        data,
        "--labels",
        "2",
        "--steps",
        "2",
        "--views",
        "2",
        "--out",
        planted / "work" / "run",
    )
    said = type_("encode", data, "--store", planted / "work" / "store", *SMALL, *hide)
    said += type_(*train, "--store", planted / "work" / "store", *SMALL, *hide)
    said += type_(
        "predict", planted / "work" / "run", data, "--out", planted / "work" / "out", "--device", "cpu"
    )
    said += type_("evaluate", planted / "work" / "out", data)
    study = ("experiment", data, "--heads", "linear", "--labels", "1", "--seeds", "1", "--steps", "2")
    said += type_(*study, "--out", planted / "work" / "study", "--store", planted / "work" / "store", *hide,
                  "--encoder", "sam_nano", "--side", "64", "--device", "cpu")  # fmt: skip
    said += type_("report", planted / "work" / "study")
    assert demand_no_names(planted / "work", data) > 25
    assert not any(word in said.lower().replace(str(data).lower(), "") for word in NAMES), said
    # The names stand in the key alone, and the commands have met: what was held out was predicted and scored.
    split = json.loads((planted / "work" / "run" / "split.json").read_text())
    told = json.loads((planted / "work" / "out" / "predictions.json").read_text())
    assert set(told["cases"]) == set(split["val"]) and not any(c["trained"] for c in told["cases"].values())
    assert all(case.startswith("case_") for case in split["train"])
    written = key.read_text()
    assert all(f",HOSPITAL-7-{n}\n" in written for n in range(4))


def test_codes_are_the_same_with_the_same_file_and_others_with_another(planted):
    first, again, other = (
        open_dataset(planted / "data", anonymous=planted / f"{name}.csv") for name in ("a", "a", "b")
    )
    assert first.groups == again.groups and first.hash == again.hash
    assert not set(first.groups) & set(other.groups)
    plain = open_dataset(planted / "data")
    assert len(set(first.groups.values())) == len(set(plain.groups.values())) == 4


def test_a_run_whose_key_is_gone_says_so(planted):
    data, key, run = planted / "data", planted / "names.csv", planted / "run"
    type_("train", data, "--steps", "2", "--out", run, "--live", *SMALL, "--anonymous", key)
    key.rename(planted / "elsewhere.csv")
    predict = ("predict", run, data, "--device", "cpu", "--out")
    with pytest.raises(SamAdaptError, match=r"the names of the run are coded .* give --anonymous FILE"):
        type_(*predict, planted / "out")
    type_(*predict, planted / "out", "--anonymous", planted / "elsewhere.csv")
    with pytest.warns(SamAdaptWarning, match="coded otherwise than those of the run were"):
        type_(*predict, planted / "out2", "--anonymous", planted / "new.csv")
    type_(*predict, planted / "out3", "--anonymous", "none")
    assert any("HOSPITAL-7" in path.name for path in (planted / "out3").iterdir())
    key_back = ("evaluate", planted / "out", data)
    type_(*key_back)  # its note names the file that was given
    with pytest.raises(SamAdaptError, match="has the name and the birth date of the patient"):
        type_(*predict, planted / "seg", "--anonymous", planted / "elsewhere.csv", "--format", "dicom-seg")
    assert not (planted / "seg").exists()


def test_folds_and_label_folders_meet_the_codes(tmp_path):
    """Of a layout whose split is a list of names, and of label files that are called as the scans."""
    data = make_phantom(tmp_path / "data", patients=4, size=48, slices=3)
    ids = open_dataset(data).ids
    folds = [{"train": list(ids[2:]), "val": list(ids[:2])}]
    (data / "splits_final.json").write_text(json.dumps(folds))
    hide = ("--anonymous", tmp_path / "key.csv")
    type_("train", data, "--steps", "2", "--out", tmp_path / "run", "--live", *SMALL, *hide)
    type_("predict", tmp_path / "run", data, "--out", tmp_path / "out", "--device", "cpu")
    type_("evaluate", tmp_path / "out", data)
    scores = (tmp_path / "out" / "scores.csv").read_text()
    (tmp_path / "out" / "scores.csv").unlink()
    type_("evaluate", tmp_path / "out", data / "labelsTr", "--overwrite")
    assert (tmp_path / "out" / "scores.csv").read_text() == scores and "case_" in scores


def test_what_failed_in_a_study_is_recorded_without_paths(tmp_path):
    data = make_phantom(tmp_path / "data", patients=4, size=48, slices=3)
    opened = open_dataset(data)
    held_out = opened.split(1).val[0]
    file = opened.entry(held_out).images[0]
    file.write_bytes(file.read_bytes()[:-30])
    study = ("experiment", data, "--heads", "linear", "--labels", "1", "--seeds", "1", "--steps", "2",
             "--encoder", "sam_nano", "--side", "64", "--device", "cpu", "--store", tmp_path / "store")  # fmt: skip
    said = type_(*study, "--out", tmp_path / "study", code=1)
    (failed,) = (tmp_path / "study").glob("*/failed.json")
    content = json.loads(failed.read_text())
    assert held_out in content["message"] and str(data) not in failed.read_text(), content["message"]
    assert str(file) not in said


def test_a_label_map_has_no_text_of_its_scan(tmp_path):
    """Older programs keep the patient's name in `db_name`, and others in `descrip` or `aux_file`."""
    import nibabel as nib

    image = nib.Nifti1Image(np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32), np.eye(4))
    image.header["db_name"], image.header["descrip"], image.header["aux_file"] = (
        b"Zebedee",
        b"Quentin",
        b"Zeb",
    )
    nib.save(image, tmp_path / "a.nii.gz")
    case = io.read_case(tmp_path / "a.nii.gz")
    io.write_label(tmp_path / "b.nii.gz", np.zeros(case.image.shape[1:], np.uint8), case)
    header = nib.load(tmp_path / "b.nii.gz").header
    assert [bytes(header[name]).strip(b"\0") for name in ("db_name", "descrip", "aux_file")] == [b""] * 3


def test_a_key_that_is_another_file_is_not_touched(tmp_path):
    data = make_phantom(tmp_path / "data", patients=3, size=48, slices=3)
    (tmp_path / "labels.csv").write_text("case,patient\na,b\n")
    with pytest.raises(SamAdaptError, match="is not a file that samadapt made for this"):
        open_dataset(data, anonymous=tmp_path / "labels.csv")
    assert (tmp_path / "labels.csv").read_text() == "case,patient\na,b\n"
    with pytest.raises(SamAdaptError, match="is a folder"):
        open_dataset(data, anonymous=tmp_path)


def test_a_scan_that_is_called_after_its_patient_is_not_recorded(planted):
    """Where a patient's folder alone is predicted, and where the files of all patients have one name."""
    data, key, run = planted / "data", planted / "names.csv", planted / "run"
    type_("train", data, "--steps", "2", "--out", run, "--live", *SMALL, "--anonymous", key)
    type_("predict", run, data / "Zebedee_0", "--out", planted / "out", "--device", "cpu")
    demand_no_names(planted / "out", planted / "none")
    opened = Opening("segmentation", ("background", "a"), anonymous=f"0 {key}")
    entries = (
        Entry("case_1", (Path("/d/Ann/ct.nii"),)),
        Entry("case_2", (Path("/d/Zebedee/ct.nii"),)),
        Entry("case_3", (Path("/d/Zebedee.nii"),)),
        Entry("case_4", (Path("/d/Quentin Zebedee.nii"),)),
    )
    all_of = Dataset("d", Path("/d"), opened, entries)
    assert all_of.without_paths("/d/Zebedee/ct.nii is empty") == "case_2 is empty"
    assert all_of.without_paths("d/Quentin Zebedee.nii is empty") == "d/case_4 is empty"


def test_two_commands_that_use_one_key_keep_the_names_of_both(tmp_path):
    first, second = open_key(tmp_path / "key.csv"), open_key(tmp_path / "key.csv")
    first.hide([Entry("Zebedee", ())])
    second.hide([Entry("Quentin", ())])
    assert {"Zebedee", "Quentin"} <= set(open_key(tmp_path / "key.csv").names.values())
    (tmp_path / "key.csv").unlink()
    open_key(tmp_path / "key.csv")
    with pytest.raises(SamAdaptError, match="was replaced while it was used"):
        first.hide([Entry("Anna", ())])


def test_cases_that_are_coded_otherwise_are_not_taken_for_new_ones(tmp_path):
    """Neither codes for names nor names for codes may hide that a model is scored on what it learned from."""
    data = make_phantom(tmp_path / "phantom", patients=4)
    train = ("train", data, *SMALL, "--steps", "1", "--live", "--out")
    type_(*train, tmp_path / "plain")
    type_(*train, tmp_path / "coded", "--anonymous", tmp_path / "one.csv")
    for run, names in (("plain", str(tmp_path / "two.csv")), ("coded", "none")):
        out = tmp_path / f"of_{run}"
        with pytest.warns(SamAdaptWarning, match="coded otherwise than those of the run"):
            predict_folder(tmp_path / run, data, out, taken=Taken(anonymous=names))
        notes = evaluate_folder(out, data).notes
        assert any("is not known which of them trained the model" in note for note in notes), notes
