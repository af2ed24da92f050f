"""DICOM labels: SEG and RTSTRUCT onto the voxels of their scan, and SEG out."""

from __future__ import annotations

import warnings
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import torch
from pydicom.sr.codedict import codes as known_codes

import dicoms
from samadapt import io
from samadapt.datasets import open_dataset, open_like
from samadapt.io.dicom import codes, contours, writer
from samadapt.opening import Opening
from samadapt.types import Case, SamAdaptError, SamAdaptWarning
from test_dicom import OBLIQUE, multi_frame

SHAPE = (5, 8, 6)  # slices, rows, columns
CLASSES = ("background", "liver", "spleen")


def scan(folder: Path, **options) -> Case:
    dicoms.series(folder, **options)
    return io.read_case(io.find_files(folder)[0], case_id="a")


def two_boxes() -> np.ndarray:
    masks = np.zeros((2, *SHAPE), bool)
    masks[0, 1:3, 2:5, 1:4] = True
    masks[1, 2:4, 5:8, 0:2] = True
    return masks


def test_a_binary_seg_lies_on_its_scan(tmp_path):
    """Empty frames were left out, and the frames of the segments come one after the other."""
    case, masks = scan(tmp_path / "scan"), two_boxes()
    path = dicoms.seg(tmp_path / "label.dcm", masks)
    label = io.to_file_axes(io.read_label(path, case, names=CLASSES).numpy(), case)
    assert np.array_equal(label, (masks[0] + 2 * masks[1]).transpose(2, 1, 0))
    swapped = io.read_label(path, case, names=("background", "spleen", "liver"))
    assert np.array_equal(
        io.to_file_axes(swapped.numpy(), case), (2 * masks[0] + masks[1]).transpose(2, 1, 0)
    )


def test_frames_that_do_not_begin_with_a_byte_are_read(tmp_path):
    """5 x 7 pixels of one bit: the second frame begins with the fourth bit of a byte."""
    case = scan(tmp_path / "scan", values=dicoms.volume(4, 5, 7))
    masks = np.random.default_rng(0).random((1, 4, 5, 7)) > 0.5
    path = dicoms.seg(tmp_path / "label.dcm", masks, ["liver"])
    label = io.to_file_axes(io.read_label(path, case).numpy(), case)
    assert np.array_equal(label, masks[0].transpose(2, 1, 0))


def test_a_seg_on_axes_stored_otherwise_is_turned(tmp_path):
    """The same voxels, seen from the other side: rows run backwards in the SEG."""
    case, masks = scan(tmp_path / "scan"), two_boxes()
    path = dicoms.seg(tmp_path / "label.dcm", masks[:, :, ::-1], origin=(-10, 20 + 2 * 7, 30))
    data = pydicom.dcmread(path)
    data.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient = [
        1,
        0,
        0,
        0,
        -1,
        0,
    ]
    data.save_as(path)
    label = io.to_file_axes(io.read_label(path, case, names=CLASSES).numpy(), case)
    assert np.array_equal(label, (masks[0] + 2 * masks[1]).transpose(2, 1, 0))


def test_overlaps_are_refused_or_the_first_structure_named_is_kept(tmp_path):
    case, masks = scan(tmp_path / "scan"), two_boxes()
    masks[1] |= masks[0]
    path = dicoms.seg(tmp_path / "label.dcm", masks)
    with pytest.raises(
        SamAdaptError, match=r"'liver' and 'spleen' overlap in 18 voxels.*--structures spleen,liver"
    ):
        io.read_label(path, case, names=CLASSES)
    for first, number in (("liver", 1), ("spleen", 1)):
        second = "spleen" if first == "liver" else "liver"
        data = open_dataset(tmp_path, structures=[first, second])
        label = data.case("scan").label
        assert label is not None and data.classes == ("background", first, second)
        assert int((label == number).sum()) == int(masks[0 if first == "liver" else 1].sum())
    (alone,) = open_dataset(tmp_path, structures=["spleen"])
    assert alone.label is not None and torch.equal(
        alone.label.unique(), torch.tensor([0, 1], dtype=torch.uint8)
    )
    content = data.opening.to_json()
    content["structures"] = content.pop("structures_chosen")  # as runs of earlier versions have it
    assert data.opening.structures_chosen and Opening.from_json(content, tmp_path) == data.opening
    with pytest.raises(SamAdaptError, match="structures are kidney; expected some of liver, spleen"):
        open_dataset(tmp_path, structures=["kidney"])


def test_two_labels_of_one_object_are_refused(tmp_path):
    """Two raters, whose union would be neither's. Objects of one structure each, with other names, are merged."""
    case, masks = scan(tmp_path / "scan"), two_boxes()
    dicoms.seg(tmp_path / "one.dcm", masks[:1], ["liver"])
    dicoms.seg(tmp_path / "two.dcm", masks[1:], ["spleen"])
    label = io.to_file_axes(open_dataset(tmp_path).case("scan").label.numpy(), case)
    assert np.array_equal(label, (masks[0] + 2 * masks[1]).transpose(2, 1, 0))
    dicoms.rtstruct(tmp_path / "rater.dcm", {"liver": [dicoms.box((1, 4), (2, 6), 1)]})
    said = (
        r"have a structure in several files \('liver' of 'scan' in one\.dcm and rater\.dcm\); they are united"
    )
    with pytest.warns(SamAdaptWarning, match=said):
        data = open_dataset(tmp_path)
    refused = r"rater\.dcm and the other labels of case 'scan' have a structure of the same name, and \d+ voxels of it in common"
    with pytest.raises(SamAdaptError, match=refused):
        data.case("scan")
    with pytest.warns(SamAdaptWarning, match=said), pytest.raises(SamAdaptError, match=refused):
        open_dataset(tmp_path, structures=["liver", "spleen"]).case(
            "scan"
        )  # also where the first one is kept
    alone = open_dataset(tmp_path, structures=["spleen"])
    assert alone.classes == ("background", "spleen") and alone.case("scan").label is not None


def test_lesions_of_one_name_in_files_of_their_own_are_united(tmp_path):
    case = scan(tmp_path / "scan")
    masks = np.zeros((3, *case.image.shape[1:]), bool)
    masks[0, 0, :2, :2], masks[1, 1, 2:4, 2:4], masks[2, 2, 1:3, :2] = True, True, True
    for n, name in enumerate(("lesion", "lesion", "liver")):
        dicoms.seg(tmp_path / f"{n}.dcm", masks[n : n + 1], [name])
    with pytest.warns(SamAdaptWarning, match=r"'lesion' of 'scan' in 0\.dcm and 1\.dcm"):
        data = open_dataset(tmp_path)
    label = io.to_file_axes(data.case("scan").label.numpy(), case)
    number = data.classes.index("lesion"), data.classes.index("liver")
    expected = number[0] * (masks[0] | masks[1]) + number[1] * masks[2]
    assert np.array_equal(label, expected.transpose(2, 1, 0))
    dicoms.seg(tmp_path / "2.dcm", masks[1:2], ["liver"])  # another class in the same voxels
    with (
        pytest.warns(SamAdaptWarning),
        pytest.raises(SamAdaptError, match="give some voxels different classes"),
    ):
        open_dataset(tmp_path).case("scan")


def test_labelled_cases_without_the_chosen_structures_are_named(tmp_path):
    """Where one file has another spelling, a case would be background alone, without a word."""
    for n, name in (("1", "tumour"), ("2", "Tumor")):
        dicoms.series(tmp_path / f"s{n}", uid=n, patient=f"P{n}")
        dicoms.seg(tmp_path / f"{n}.dcm", two_boxes()[:1], [name], series_uid=n)
    dicoms.series(tmp_path / "s3", uid="3", patient="P3")  # without a label
    with pytest.warns(SamAdaptWarning, match=r"^1 labelled cases .* structures tumour, .*\(s2 has Tumor\)"):
        data = open_dataset(tmp_path, structures=["tumour"])
    assert not data.case("s2").label.any()
    with pytest.warns(SamAdaptWarning, match="s2 has Tumor"):
        open_like(tmp_path, data.opening)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_dataset(tmp_path, structures=["tumour", "Tumor"])


# ---------------------------------------------------------------- RTSTRUCT


def test_contours_become_the_voxels_inside(tmp_path):
    """An inner contour of the same structure is a hole."""
    case = scan(tmp_path / "scan")
    outlines = {
        "liver": [dicoms.box((1, 4), (2, 6), 1), dicoms.box((2, 3), (3, 4), 1)],
        "spleen": [dicoms.box((0, 0), (0, 1), 3)],
    }
    path = dicoms.rtstruct(tmp_path / "rt.dcm", outlines)
    expected = np.zeros((6, 8, 5), np.uint8)
    expected[1:5, 2:7, 1] = 1
    expected[2:4, 3:5, 1] = 0
    expected[0, 0:2, 3] = 2
    assert np.array_equal(io.to_file_axes(io.read_label(path, case, names=CLASSES).numpy(), case), expected)
    data = open_dataset(tmp_path)
    assert data.classes == CLASSES and torch.equal(
        data.case("scan").label, io.read_label(path, case, names=CLASSES)
    )


def test_rois_of_one_name_are_united(tmp_path):
    """One ROI inside another of the same name is no hole; an inner contour of one ROI is."""
    case = scan(tmp_path / "scan")
    outlines = {
        "outer": [dicoms.box((1, 4), (2, 6), 1)],
        "inner": [dicoms.box((1, 3), (2, 5), 1)],
        "beside": [dicoms.box((0, 4), (0, 4), 3), dicoms.box((1, 2), (1, 2), 3)],
    }
    path = dicoms.rtstruct(tmp_path / "rt.dcm", outlines, names=["GTV"] * 3)
    assert contours.structure_names(path) == ("GTV",)
    label = io.to_file_axes(io.read_label(path, case, names=("background", "GTV")).numpy(), case)
    assert (label[..., 1].sum(), label[..., 3].sum()) == (20, 25 - 4)


def test_a_filled_circle_has_the_area_of_a_circle():
    angle = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    circle = np.stack([40 + 25.3 * np.cos(angle), 35 + 25.3 * np.sin(angle)], axis=1)
    inside = contours.fill(circle, (90, 80))
    x, y = np.nonzero(inside)
    assert inside.sum() == pytest.approx(np.pi * 25.3**2, rel=0.01)
    assert (x.mean(), y.mean()) == pytest.approx((40, 35), abs=0.05)


def test_points_are_no_structures(tmp_path):
    path = dicoms.rtstruct(tmp_path / "rt.dcm", {"liver": [dicoms.box((1, 4), (2, 6), 1)], "isocentre": []})
    assert contours.structure_names(path) == ("liver",)


# ---------------------------------------------------------------- SEG out


@pytest.fixture(params=["dicom-seg", "dicom-seg-binary"])
def written(request, tmp_path) -> tuple[Case, np.ndarray, Path]:
    """A scan, a label map (i, j, k) with no two lines alike, and it as a SEG."""
    case = scan(tmp_path / "scan", orientation=OBLIQUE)
    label = torch.randint(
        0, 3, tuple(case.image.shape[1:]), generator=torch.Generator().manual_seed(0)
    ).byte()
    path = io.label_file(tmp_path / "out", case, request.param)
    legend = io.Legend(("background", "left kidney", "tumour"), version="1.2.3", model="ab" * 32)
    io.write_label(path, label, case, request.param, legend)
    return case, io.to_file_axes(label.numpy(), case), path


def test_highdicom_and_pydicom_find_every_voxel_where_it_is(written):
    """Compared through physical coordinates, by two readers that know nothing of samadapt."""
    case, label, path = written
    volume = highdicom.seg.segread(path).get_volume(combine_segments=True)
    index = np.argwhere(np.ones(volume.shape[:3], bool))
    ras = (index @ volume.affine[:3, :3].T + volume.affine[:3, 3]) * [-1, -1, 1]
    back = np.linalg.inv(case.affine)
    voxel = ras @ back[:3, :3].T + back[:3, 3]
    assert np.abs(voxel - np.round(voxel)).max() < 1e-3
    assert np.array_equal(volume.array[tuple(index.T)], label[tuple(np.round(voxel).astype(int).T)])
    data, found = pydicom.dcmread(path), np.zeros_like(label)
    for pixels, group in zip(data.pixel_array, data.PerFrameFunctionalGroupsSequence, strict=True):
        place = np.array([*group.PlanePositionSequence[0].ImagePositionPatient, 1]) * [-1, -1, 1, 1]
        k = round(float((back @ place)[2]))
        number = (
            group.SegmentIdentificationSequence[0].ReferencedSegmentNumber if data.BitsAllocated == 1 else 1
        )
        found[:, :, k] += (pixels * number).T.astype(np.uint8)
    assert np.array_equal(found, label)


def test_a_padding_value_is_background(tmp_path):
    case = scan(tmp_path / "scan")
    label = torch.randint(
        0, 3, tuple(case.image.shape[1:]), generator=torch.Generator().manual_seed(0)
    ).byte()
    path = io.write_label(tmp_path / "a.dcm", label, case, "dicom-seg")
    data = pydicom.dcmread(path)
    data.PixelPaddingValue = 7
    data.PixelData = bytes(value or 7 for value in data.PixelData)
    data.save_as(path)
    names = ("background", "class 1", "class 2")
    assert torch.equal(io.read_label(path, case, names=names), label)


def test_it_is_of_the_same_study_and_refers_to_the_images(written):
    case, _, path = written
    data, source = pydicom.dcmread(path), pydicom.dcmread(case.source)
    for name in (
        "StudyInstanceUID",
        "FrameOfReferenceUID",
        "PatientID",
        "PatientName",
        "AccessionNumber",
        "StudyDate",
    ):
        assert data[name].value == source[name].value, name
    (series,) = data.ReferencedSeriesSequence
    named = {item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence}
    assert series.SeriesInstanceUID == source.SeriesInstanceUID != data.SeriesInstanceUID
    assert named == {pydicom.dcmread(p).SOPInstanceUID for p in io.files_of(case.source)}
    kidney, tumour = (s for s in data.SegmentSequence if s.SegmentNumber)
    assert (kidney.SegmentLabel, tumour.SegmentLabel) == ("left kidney", "tumour")
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodeMeaning) == ("64033007", "Kidney")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert tumour.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "49755003"
    assert kidney.RecommendedDisplayCIELabValue != tumour.RecommendedDisplayCIELabValue
    algorithm = kidney.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("samadapt", "1.2.3")
    assert "ab" * 32 in algorithm.AlgorithmParameters


def test_samadapt_reads_it_back(written):
    case, label, path = written
    again = io.read_label(path, case, names=("background", "left kidney", "tumour"))
    assert np.array_equal(io.to_file_axes(again.numpy(), case), label)


def test_highdicom_without_label_maps_writes_binary(tmp_path, monkeypatch):
    case = scan(tmp_path / "scan")

    class Old:
        seg = type(
            "seg", (), {"SegmentationTypeValues": type("T", (), {"__members__": {}, "BINARY": "BINARY"})}
        )

    assert writer._kind(Old, False) == "BINARY"
    kind = highdicom.seg.SegmentationTypeValues.BINARY
    monkeypatch.setattr(writer, "_kind", lambda *_: kind)
    path = io.write_label(tmp_path / "a.dcm", np.ones(case.image.shape[1:], np.uint8), case, "dicom-seg")
    assert pydicom.dcmread(path).SegmentationType == "BINARY"


@pytest.mark.parametrize("value", [0, 1])
def test_empty_and_full_label_maps_are_written(tmp_path, value):
    case = scan(tmp_path / "scan")
    for asked in ("dicom-seg", "dicom-seg-binary"):
        label = np.full(case.image.shape[1:], value, np.uint8)
        path = io.write_label(tmp_path / f"{asked}.dcm", label, case, asked)
        assert np.array_equal(io.read_label(path, case, names=("background", "class 1")).numpy(), label)


def test_a_multi_frame_scan_has_a_seg_too(tmp_path):
    case = io.read_case(multi_frame(tmp_path / "in" / "mf.dcm", dicoms.volume()), case_id="a")
    label = torch.randint(
        0, 2, tuple(case.image.shape[1:]), generator=torch.Generator().manual_seed(1)
    ).byte()
    for asked in ("dicom-seg", "dicom-seg-binary"):
        path = io.write_label(tmp_path / f"{asked}.dcm", label, case, asked)
        assert torch.equal(io.read_label(path, case, names=("background", "class 1")), label)


def test_an_anonymised_scan_has_a_seg_with_new_uids(tmp_path):
    """What was emptied stays empty; UIDs that a SEG must have are made, the same ones every time, and this is said."""
    emptied = (
        "StudyInstanceUID",
        "SeriesInstanceUID",
        "SOPInstanceUID",
        "PatientID",
        "SpecificCharacterSet",
        "PatientName",
    )
    case = scan(tmp_path / "scan", change=dicoms.set_all(**dict.fromkeys(emptied, "")))
    label = np.ones(case.image.shape[1:], np.uint8)
    found = []
    for name in ("a.dcm", "b.dcm"):
        with pytest.warns(SamAdaptWarning, match="without StudyInstanceUID, SeriesInstanceUID get new ones"):
            found.append(pydicom.dcmread(io.write_label(tmp_path / name, label, case, "dicom-seg")))
    assert found[0].StudyInstanceUID == found[1].StudyInstanceUID and not found[0].PatientID
    assert len(found[0].ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 5


@pytest.mark.parametrize("named", ["ISO_IR 100", "ISO 2022 IR 100", ["", "ISO 2022 IR 100"]])
def test_names_in_other_letters_stay_as_they_are(tmp_path, named):
    case = scan(
        tmp_path / "scan", change=dicoms.set_all(SpecificCharacterSet=named, PatientName="Müller^Zoë")
    )
    path = io.write_label(tmp_path / "a.dcm", np.ones(case.image.shape[1:], np.uint8), case, "dicom-seg")
    assert str(pydicom.dcmread(path).PatientName) == "Müller^Zoë"


def test_a_header_that_highdicom_refuses_is_one_line(tmp_path):
    case = scan(tmp_path / "scan", change=dicoms.set_all(SpecificCharacterSet="ISO_IR 777"))
    with pytest.raises(
        SamAdaptError, match=r"highdicom cannot write a segmentation of .*\(ValueError\).*--format nifti"
    ):
        io.write_label(tmp_path / "a.dcm", np.ones(case.image.shape[1:], np.uint8), case, "dicom-seg")
    assert not (tmp_path / "a.dcm").exists()


def test_colours_are_those_that_highdicom_computes():
    from highdicom.color import CIELabColor

    for rgb in ((128, 0, 0), (0, 128, 0), (10, 200, 250), (255, 255, 255)):
        assert writer._lab(rgb) == pytest.approx(CIELabColor.from_rgb(*rgb).value, abs=20)


# ---------------------------------------------------------------- codes


def test_the_codes_are_those_of_the_standard():
    """Every number and word of the table is in pydicom's dictionary of SNOMED concepts."""
    concepts = {
        (c.value, c.meaning.lower())
        for name in known_codes.SCT.dir()
        for c in [getattr(known_codes.SCT, name)]
    }
    table = codes.known_meanings()
    assert len(table) > 50
    for meaning in (*table.values(), *(codes.Meaning(codes.ANATOMY, side) for side in codes.SIDES.values())):
        for code in (meaning.category, meaning.type):
            assert (code.value, code.meaning.lower()) in concepts, code


@pytest.mark.parametrize(
    ("name", "value", "side"),
    [
        ("liver", "10200004", None),
        ("Left ventricle", "87878005", None),
        ("kidney_left", "64033007", "Left"),
        ("Right Lung", "39607008", "Right"),
        ("MYO", "49848007", None),
        ("kidneys", "64033007", None),
        ("wombat", "85756007", None),
        ("class 1", "85756007", None),
    ],
)
def test_classes_are_found_in_any_spelling(name, value, side):
    found = io.meaning_of(name, {})
    assert found.type.value == value and (found.side and found.side.meaning) == side


def test_a_users_codes_come_first(tmp_path):
    file = tmp_path / "codes.csv"
    file.write_text(
        "class,value,meaning,scheme,category\nliver,X1,My liver,99MINE,abnormal\nwombat,123,Wombat\n"
    )
    own = io.read_codes(file)
    assert io.meaning_of("Liver", own) == io.Meaning(codes.ABNORMAL, io.Code("X1", "My liver", "99MINE"))
    with pytest.warns(SamAdaptWarning, match="classes quokka are in no table of codes"):
        io.demand_writer(("background", "liver", "wombat", "quokka"), own)


# ---------------------------------------------------------------- label maps of other programs


def test_a_label_map_called_as_the_series_is_its_label(tmp_path):
    """Stored in another order of the axes, as programs that convert DICOM to NIfTI do."""
    case = scan(tmp_path / "scan")
    label = np.random.default_rng(0).integers(0, 3, (6, 8, 5)).astype(np.uint8)
    flip = np.diag([1.0, -1.0, 1.0, 1.0])
    flip[1, 3] = 7
    io.write_volume(tmp_path / "scan_labels.nii.gz", label[:, ::-1], case.affine @ flip)
    data = open_dataset(tmp_path)
    assert data.layout == "DICOM" and data.classes == ("background", "class 1", "class 2")
    assert np.array_equal(io.to_file_axes(data.label("scan").numpy(), case), label)
