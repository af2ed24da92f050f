"""Which modality a model was trained on is recorded, chooses the window of intensities, and is checked at prediction."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import dicoms
from samadapt.datasets import open_dataset, open_like
from samadapt.opening import Opening, plain_modality
from samadapt.phantom import make_phantom
from samadapt.transforms import Window
from samadapt.types import SamAdaptError, SamAdaptWarning
from samadapt.unlabelled import unlabelled_cases
from test_privacy import SMALL, type_


def scans(folder: Path, modality: str, count: int = 3) -> Path:
    """Series of one modality with a SEG each."""
    for n in range(count):
        uid = str(n + 1)
        values = np.random.default_rng(n).integers(0, 900, (3, 32, 32)).astype(np.int16)
        dicoms.series(
            folder / f"s{n}", values - 200, dicoms.set_all(Modality=modality), uid=uid, patient=f"P{n}"
        )
        found = np.zeros((1, 3, 32, 32), bool)
        found[:, :, 8:20, 8:20] = True
        dicoms.seg(folder / f"{n}.dcm", found, ["liver"], series_uid=uid)
    return folder


def test_headers_and_channel_names_say_the_modality(tmp_path):
    ct, mr = (open_dataset(scans(tmp_path / kind, kind)).opening for kind in ("CT", "MR"))
    assert (ct.modality, ct.window) == ("CT", "ct") and (mr.modality, mr.window) == ("MR", "percentile")
    data = make_phantom(tmp_path / "phantom", patients=3, size=48, slices=3)
    about = json.loads((data / "dataset.json").read_text())
    for name, modality, window in (
        ("CT", "CT", "ct"),
        ("T1w", "MR", "percentile"),
        ("image", "", "percentile"),
    ):
        (data / "dataset.json").write_text(json.dumps({**about, "channel_names": {"0": name}}))
        opening = open_dataset(data).opening
        assert (opening.modality, opening.window) == (modality, window)
    told = open_dataset(data, modality="ct").opening
    assert (told.modality, told.window) == ("CT", "ct")
    assert Opening.from_json(json.loads(json.dumps(told.to_json())), tmp_path) == told
    with pytest.raises(SamAdaptError, match="--modality is 'cat'; expected CT, MR"):
        open_dataset(data, modality="cat")


def test_a_run_of_an_earlier_version_has_no_modality(tmp_path):
    """Its file lacks the fields, and a training that it began is resumed: the same file is written."""
    opening = Opening("segmentation", ("background", "a"))
    assert {"modality", "anonymous"}.isdisjoint(opening.to_json())
    assert Opening.from_json(opening.to_json(), tmp_path).modality == ""


def test_a_mixture_is_refused_unless_it_is_not_learned_from(tmp_path):
    scans(tmp_path / "d", "MR")
    dicoms.series(tmp_path / "d" / "ct", uid="9")  # without a label
    assert open_dataset(tmp_path / "d").opening.modality == "MR"
    dicoms.seg(tmp_path / "d" / "ct.dcm", np.ones((1, 5, 8, 6), bool), ["liver"], series_uid="9")
    with pytest.raises(SamAdaptError, match=r"mixes (CT|MR), as .* and (CT|MR), as .*--modality"):
        open_dataset(tmp_path / "d")
    assert open_dataset(tmp_path / "d", modality="MR").opening.modality == "MR"


def test_a_model_of_mr_refuses_ct_unless_it_is_told(tmp_path):
    run = tmp_path / "run"
    type_("train", scans(tmp_path / "mr", "MR"), "--steps", "2", "--out", run, "--live", *SMALL)
    scans(tmp_path / "ct", "CT", count=1)
    for given in (tmp_path / "ct" / "s0", tmp_path / "ct"):
        with pytest.raises(SamAdaptError, match=r"is CT; expected MR, as the data .* or give --modality MR"):
            type_("predict", run, given, "--out", tmp_path / "out", "--device", "cpu")
        assert not (tmp_path / "out").exists()
    said = type_(
        "predict",
        run,
        tmp_path / "ct" / "s0",
        "--out",
        tmp_path / "out",
        "--device",
        "cpu",
        "--modality",
        "MR",
    )
    assert "predicted: 1 case" in said


def test_unlabelled_scans_are_of_the_modality_of_the_labels(tmp_path):
    """Unless the user said what all of them are."""
    scans(tmp_path / "d", "CT")
    dicoms.series(tmp_path / "d" / "pet", change=dicoms.set_all(Modality="PT"), uid="9", patient="P9")
    dicoms.series(tmp_path / "d" / "ct", change=dicoms.set_all(Modality="CT"), uid="8", patient="P8")
    data = open_dataset(tmp_path / "d")
    split = data.split(2)
    assert {"P8", "P9"} <= {data.groups[i] for i in split.pool}
    found = unlabelled_cases("pool", data, split)
    assert set(found.groups.values()) == {"P8"}
    told = open_dataset(tmp_path / "d", modality="MR")
    assert set(unlabelled_cases("pool", told, told.split(2)).groups.values()) == {"P8", "P9"}
    dicoms.series(tmp_path / "more" / "later", change=dicoms.set_all(Modality="PT"), uid="7", patient="P7")
    with pytest.raises(SamAdaptError, match="is PT; expected CT"):
        unlabelled_cases(str(tmp_path / "more"), data, split)
    assert len(unlabelled_cases(str(tmp_path / "more"), told, told.split(2))) == 1


def test_names_of_channels_are_checked_too(tmp_path):
    data = make_phantom(tmp_path / "data", patients=3, size=48, slices=3)
    about = json.loads((data / "dataset.json").read_text())
    (data / "dataset.json").write_text(json.dumps({**about, "channel_names": {"0": "CT"}}))
    trained = Opening("segmentation", ("background", "RV", "MYO", "LV"), modality="MR")
    with pytest.raises(SamAdaptError, match="is CT; expected MR"):
        open_like(data, trained, labelled=False)
    assert open_like(data, trained, labelled=False, modality="MR").opening.modality == "MR"


@pytest.mark.parametrize(("kind", "window", "add", "said"), [
    ("CT", "ct", 0, "no value below 0, and air is near -1000"),
    ("CT", "ct", -1000, None),
    ("MR", "percentile", -1000, "as CT in Hounsfield units"),
    ("MR", "percentile", 0, None),
])  # fmt: skip
def test_values_that_cannot_be_of_the_modality_are_said(tmp_path, kind, window, add, said, recwarn):
    from samadapt import io

    values = np.random.default_rng(0).integers(0, 900, (6, 5, 4)).astype(np.float32)
    nib.save(nib.Nifti1Image(values + add, np.eye(4)), tmp_path / "a.nii.gz")
    case = io.read_case(tmp_path / "a.nii.gz")
    Opening("segmentation", ("background", "a"), modality=kind, window=window).warn_of_values(case)
    told = [
        str(one.message)
        for one in recwarn
        if issubclass(one.category, SamAdaptWarning) and "case" in str(one.message)
    ]
    assert [said in text for text in told] == ([True] if said else [])


def test_names_of_modalities():
    assert [plain_modality(n) for n in ("ct", " MRI", "FLAIR", "PET", "CR", "image", "")] == [
        "CT", "MR", "MR", "PT", "DX", "", "",
    ]  # fmt: skip
    longer = (
        "cineMRI",
        "T2-weighted MRI",
        "CT_arterial",
        "PET/CT",
        "us",
        "cut",
        "direct",
        "T1 post contrast",
    )
    assert [plain_modality(n) for n in longer] == ["MR", "MR", "CT", "", "US", "", "", "MR"]


def test_a_run_that_knows_no_modality_says_so_of_scans_that_do(tmp_path):
    opening = Opening("segmentation", ("background", "a"))
    with pytest.warns(SamAdaptWarning, match="the scans say that they are CT, and the model does not know"):
        opening.demand_modality("CT", tmp_path)


def test_windows_of_ct():
    """Level and width of the usual presets."""
    presets = {"ct": (40, 400), "ct-lung": (-600, 1500), "ct-bone": (400, 1800), "ct-brain": (40, 80)}
    for name, (level, width) in presets.items():
        assert Window.parse(name).limits == (level - width / 2, level + width / 2)
