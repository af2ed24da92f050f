"""What encoders have seen: every encoder has a row, data sets are recognised, and the marks reach the reader."""

import json

import numpy as np
import pytest
from PIL import Image

from samadapt.check import check
from samadapt.datasets import open_dataset
from samadapt.encoders import ENCODERS, first_with_weights
from samadapt.learner import Learner, default_encoder
from samadapt.listing import describe
from samadapt.overlap import PUBLIC_DATA, TRAININGS, Overlap, overlaps, recognise, training_of
from samadapt.records import SamAdaptError
from samadapt.weights import PublishedFile


def test_every_encoder_has_a_row_and_every_row_its_source():
    assert set(TRAININGS) == set(ENCODERS)
    for training in TRAININGS.values():
        assert set(training.saw) <= set(PUBLIC_DATA)
        assert all(saw.why and saw.source for saw in training.saw.values())
    with pytest.raises(SamAdaptError, match="add a row to TRAININGS"):
        training_of("dinov9")


@pytest.mark.parametrize(
    ("names", "cases", "expected"),
    [
        (["ACDC"], [], ["acdc"]),
        (["Dataset027_ACDC"], [], ["acdc"]),
        (["mine", "Automated Cardiac Diagnosis Challenge"], [], ["acdc"]),
        (["mine"], ["patient001_frame01", "patient001_frame12"], ["acdc"]),
        (["train"], ["ISIC_0000001", "ISIC_0000002"], ["isic"]),
        (["breastmnist"], ["train_00000"], ["busi"]),
        (["Task04_Hippocampus"], ["x"], ["hippocampus"]),
        (["placdc", "acdcs"], ["patient1", "p2"], []),  # part of a word is no name
        (["mine"], ["patient001_frame01", "a", "b"], []),  # most of the cases have other names
        ([], [], []),
    ],
)
def test_a_data_set_is_recognised(names, cases, expected):
    assert recognise(names, cases) == expected


def test_of_isic_the_pictures_that_were_seen_are_known():
    (found,) = overlaps("lite_medsam", ["val"], ["ISIC_0000043", "ISIC_0001769", "ISIC_9999999"])
    assert found.certainty == "seen" and found.warns
    assert "ISIC_0000043" in found.seen and "ISIC_9999999" not in found.seen
    assert f"{len(found.seen)} of these 3 cases" in found.text
    (none,) = overlaps("lite_medsam", ["val"], ["ISIC_9999999"])
    assert none.seen == () and not none.warns
    assert Overlap.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_the_counts_of_our_pictures(shared_data):
    """As METHODS counts them: 200 of the training pictures and 29 of the validation pictures are outside the list."""
    for part, outside in (("train", 200), ("val", 29)):
        ids = [path.stem for path in sorted((shared_data / "ISIC2017" / part / "images").glob("*.jpg"))]
        (found,) = overlaps("lite_medsam", [part], ids)
        assert len(ids) - len(found.seen) == outside


def test_certainty_decides_what_is_marked():
    assert [x.warns for x in overlaps("lite_medsam", ["ACDC"], [])] == [True]
    assert [x.warns for x in overlaps("lite_medsam", ["Hippocampus"], [])] == [False]
    assert overlaps("sam_nano", ["ACDC"], []) == overlaps("imagenet_lite0", ["ACDC"], []) == []


@pytest.fixture
def lesions(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("ISIC_0000043", "ISIC_0000124", "ISIC_9999998", "ISIC_9999999"):
        for folder, high in (("images", 255), ("masks", 2)):
            (tmp_path / folder).mkdir(exist_ok=True)
            picture = rng.integers(0, high, (16, 16), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / folder / f"{name}.png")
    return tmp_path


def test_check_and_learners_say_it(lesions):
    data = open_dataset(lesions)
    of = {
        encoder: [f for f in check(data, encoder=encoder) if "encoder" in f.message]
        for encoder in ("lite_medsam", "medsam_vit_b", "sam_nano")
    }
    assert [f.level for f in of["lite_medsam"]] == ["warning"] and "2 of these 4" in of["lite_medsam"][
        0
    ].message
    assert [f.level for f in of["medsam_vit_b"]] == ["warning"] and "possibly" in of["medsam_vit_b"][
        0
    ].message
    assert [f.level for f in of["sam_nano"]] == ["note"]
    assert len(Learner("fused", "lite_medsam").overlaps(data)) == 1
    assert Learner("fused", "lite_medsam", "random").overlaps(data) == []  # drawn weights have seen nothing
    assert Learner("plain", "lite_medsam").overlaps(data) == []  # reads pixels only


def test_the_list_of_encoders_tells_it():
    text = describe("encoders")
    assert "Probably seen: ACDC." in text and "ImageNet" in text


def test_the_default_encoder_is_the_first_with_weights(monkeypatch):
    monkeypatch.setattr(PublishedFile, "find", lambda self: None)
    assert first_with_weights(("lite_medsam", "sam_nano")) == "sam_nano"
    assert Learner("fused").encoder == Learner("autosam").encoder == "sam_nano"
    assert Learner("unet").encoder == "pixels"
    monkeypatch.setattr(PublishedFile, "find", lambda self: "here")
    assert Learner("fused").encoder == default_encoder("fused") == "imagenet_lite0"
    assert Learner("autosam").encoder == default_encoder("fused", "autosam") == "lite_medsam"
    assert Learner("fused", "sam_nano").encoder == "sam_nano"
