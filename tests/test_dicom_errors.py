"""What is wrong with DICOM files is said in one line, and nothing half-written is left. Whole commands, with patients' names planted."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from typer.testing import CliRunner

import dicoms
from dicoms import box, set_all, set_one
from samadapt import io
from samadapt.cli import app
from samadapt.datasets import open_dataset
from samadapt.folders import predict_folder
from samadapt.io.dicom import headers
from samadapt.phantom import make_phantom
from samadapt.prediction import Segmenter
from samadapt.types import SamAdaptError, SamAdaptWarning
from test_dicom import multi_frame, picture

PRIVATE = ("Zebedee", "Quentin", dicoms.BIRTH, dicoms.ACCESSION)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A small model."""
    folder = tmp_path_factory.mktemp("model")
    data = make_phantom(folder / "data", patients=3, size=48, slices=3)
    about = data / "dataset.json"  # of no modality, so that scans of all are read
    about.write_text(about.read_text().replace("cineMRI", "scan"))
    unet = ("--head", "unet", "--set", "width=4", "--side", "64", "--steps", "2", "--device", "cpu", "-q")
    done = CliRunner().invoke(
        app,
        ["train", str(data), "--labels", "1", "--out", str(folder / "run"), *unet],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.output
    return folder / "run"


# ---------------------------------------------------------------- scans that cannot be read


def move(which: int, **by: float) -> dicoms.Change:
    """Slice number `which` lies elsewhere: by mm along x, y, z."""

    def change(data, number):
        if number == which:
            offset = (by.get("x", 0), by.get("y", 0), by.get("z", 0))
            data.ImagePositionPatient = [
                a + b for a, b in zip(data.ImagePositionPatient, offset, strict=True)
            ]

    return change


def tilt(data, number):
    data.ImagePositionPatient = [-10, 20 + number, 30 + 3 * number]
    data.GantryDetectorTilt = 18


def without_third(folder: Path) -> None:
    paths = dicoms.series(folder, dicoms.volume(6))
    paths[2].unlink()


def copied(folder: Path) -> None:
    path = dicoms.series(folder)[1]
    (folder / "copy.dcm").write_bytes(path.read_bytes())


def cut(folder: Path) -> None:
    path = dicoms.series(folder)[1]
    path.write_bytes(path.read_bytes()[:-40])


def empty(folder: Path) -> None:
    dicoms.series(folder)[1].write_bytes(b"")


def no_dicom(folder: Path) -> None:
    dicoms.series(folder)
    (folder / "x.dcm").write_text("no DICOM at all, " * 20)


def broken_number(folder: Path) -> None:
    path = dicoms.series(folder)[1]
    path.write_bytes(path.read_bytes().replace(b"-10.0", b"-1x.0"))


def two_folders(folder: Path) -> None:
    paths = dicoms.series(folder / "a")
    (folder / "b").mkdir()
    for path in paths[3:]:
        path.rename(folder / "b" / path.name)


def compressed(syntax: str, content: bytes = b"\0" * 64, one: bool = False) -> Callable[[Path], None]:
    def change(data, number):
        data.PixelData = encapsulate([content])
        data["PixelData"].is_undefined_length = True
        data.file_meta.TransferSyntaxUID = syntax

    return lambda folder: dicoms.series(folder, dicoms.volume(1 if one else 3), change) and None


def deflated(folder: Path) -> None:
    path = dicoms.series(folder, dicoms.volume(2))[0]
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    data.save_as(path)


def colour_volume(folder: Path) -> None:
    def change(data, number):
        dicoms.add_pixels(data, np.arange(72, dtype=np.uint8).reshape(4, 6, 3))

    dicoms.series(folder, dicoms.volume(2), change)


def only_reports(folder: Path) -> None:
    dicoms.save(dicoms.base(dicoms.SR, "SR"), folder / "report.dcm")


def two_bytes(folder: Path) -> None:
    dicoms.series(folder, dicoms.volume(1), set_all(BitsStored=40))


def groups_missing(folder: Path) -> None:
    path = multi_frame(folder / "mf.dcm", dicoms.volume(4))
    data = pydicom.dcmread(path)
    data.PerFrameFunctionalGroupsSequence = data.PerFrameFunctionalGroupsSequence[:2]
    data.save_as(path)


def of(change: dicoms.Change, slices: int = 5) -> Callable[[Path], None]:
    return lambda folder: dicoms.series(folder, dicoms.volume(slices), change) and None


def of_picture(pixels: np.ndarray, **attributes) -> Callable[[Path], None]:
    return lambda folder: picture(folder / "x.dcm", pixels, **attributes) and None


GREY, RGB = np.arange(48, dtype=np.uint16).reshape(6, 8), np.zeros((4, 4, 3), np.uint16)
SCANS: dict[str, tuple[Callable[[Path], None], str]] = {
    "gantry tilt": (of(tilt), r"gantry tilt of about 18\.4 degrees.*dcm2niix"),
    "a missing slice": (without_third, r"lacks slices: between .*dcm and .*dcm are 6\.000 mm, elsewhere 3\.000 mm, so 1 are missing"),
    "two slices at one place": (of(move(2, z=3)), r"has 5 slices at 4 positions.*several volumes"),
    "uneven spacing": (of(move(2, z=1)), r"unevenly spaced slices: 2\.000 to 4\.000 mm"),
    "a shifted slice": (of(move(2, x=4)), r"lies 4\.00 mm beside the line"),
    "several sizes": (of(set_one(1, Rows=7)), r"several sizes"),
    "several orientations": (of(set_one(1, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])), r"slices of 2 orientations"),
    "several patients": (of(set_one(1, PatientID="other")), r"several patients \(PatientID\)"),
    "several frames of reference": (of(set_one(1, FrameOfReferenceUID="1.2")), r"several frames of reference"),
    "several pixel spacings": (of(set_one(1, PixelSpacing=[2, 1.6])), r"several pixel spacings"),
    "several modalities": (of(set_one(1, Modality="MR")), r"several modalities"),
    "a copied file": (copied, r"the same image in 2 files \(IM007\.dcm, copy\.dcm\); remove the copies"),
    "a file that is cut off": (cut, r"is cut off: 8 rows, 6 columns and 1 frames need 96 bytes|cannot be read as DICOM|is damaged"),
    "an empty file": (empty, r"IM007\.dcm cannot be read as DICOM \(it is empty\) and may be a slice"),
    "a text called .dcm": (no_dicom, r"x\.dcm cannot be read as DICOM"),
    "a number that is none": (broken_number, r"IM007\.dcm cannot be read as DICOM"),
    "no position": (of(set_all(ImagePositionPatient=None)), r"has no position \(ImagePositionPatient\)"),
    "no pixel spacing": (of(set_all(PixelSpacing=None)), r"has no pixel spacing"),
    "a pixel spacing of zero": (of(set_all(PixelSpacing=[0, 1])), r"has the pixel spacing \(0\.0, 1\.0\)"),
    "an orientation that is none": (of(set_all(ImageOrientationPatient=[1, 0, 0, 1, 0, 0])), r"two unit vectors at right angles"),
    "no pixels": (of(set_one(1, PixelData=None)), r"it has no pixels"),
    "a billion pixels": (of(set_all(Rows=65535, Columns=65535)), r"claims 65535 rows, 65535 columns.*at most"),
    "a billion frames": (lambda f: multi_frame(f / "a.dcm", dicoms.volume(4), NumberOfFrames=10**9) and None, r"claims 8 rows, 6 columns and 1000000000 frames"),
    "more rows than bytes": (of(set_all(Rows=5000)), r"is cut off: 5000 rows"),
    "no rows": (of(set_all(Rows=0)), r"has 0 rows"),
    "a volume in colour": (colour_volume, r"is a volume in RGB; expected grey"),
    "a rescale slope of zero": (of(set_all(RescaleSlope=0)), r"rescale slope 0\.0"),
    "40 of 16 bits": (two_bytes, r"has 40 of 16 bits"),
    "a compressed header": (deflated, r"its header is compressed \(deflated\)"),
    "a compression without decoder": (compressed("1.2.840.10008.1.2.4.201"), r"compressed as High-Throughput JPEG 2000.*pip install pylibjpeg"),
    "a video": (compressed("1.2.840.10008.1.2.4.102"), r"compressed as MPEG-4.*cannot be decoded here"),
    "broken JPEG 2000": (compressed("1.2.840.10008.1.2.4.90"), r"\(JPEG 2000.*\) cannot be decoded"),
    "broken JPEG Lossless": (compressed("1.2.840.10008.1.2.4.70"), r"\(JPEG Lossless\) cannot be decoded"),
    "broken RLE": (compressed("1.2.840.10008.1.2.5"), r"\(RLE Lossless\) cannot be decoded"),
    "one series in two folders": (two_folders, r"one series is in 2 folders"),
    "only reports": (only_reports, r"holds no images; it has 1 DICOM files that hold no image"),
    "a film": (of_picture(GREY, NumberOfFrames=3), r"is a film of 3 frames"),
    "16-bit colour": (of_picture(RGB), r"has 16-bit colour"),
    "colours of printers": (of_picture(RGB.astype(np.uint8), PhotometricInterpretation="CMYK"), r"is CMYK; expected"),
    "frames without a place": (groups_missing, r"has 4 frames and says of 2 where they lie"),
    "a constant scan": (lambda f: dicoms.series(f, np.full((3, 4, 5), 7, np.int16)) and None, r"is constant"),
    "a label as a scan": (lambda f: dicoms.seg(f / "x.dcm", np.ones((1, 2, 4, 5), bool), ["a"]) and None, r"holds no images; it has 1 masks"),
}  # fmt: skip


@pytest.mark.parametrize("what", SCANS)
def test_a_scan_that_cannot_be_read_is_one_line_and_leaves_nothing(run, tmp_path, what):
    make, message = SCANS[what]
    make(tmp_path / "in")
    with pytest.raises(SamAdaptError, match=message) as caught:
        predict_folder(run, tmp_path / "in", tmp_path / "out", device="cpu")
    text = str(caught.value)
    assert "\n" not in text and not any(word in text for word in PRIVATE)
    assert not (tmp_path / "out").exists()


def test_one_bad_series_does_not_stop_the_others(run, tmp_path):
    dicoms.series(tmp_path / "in" / "good")
    dicoms.series(tmp_path / "in" / "bad", change=tilt, uid="2")
    report = predict_folder(run, tmp_path / "in", tmp_path / "out", device="cpu")
    assert report.done == 1 and "gantry tilt" in report.failed["bad"]
    assert (tmp_path / "out" / "good.nii.gz").is_file()


# ---------------------------------------------------------------- labels that cannot be used


def mask(segments: int = 1) -> np.ndarray:
    found = np.zeros((segments, 5, 8, 6), bool)
    found[:, 1:3, 2:5, 1:4] = True
    return found


def changed(path: Path, **attributes) -> None:
    data = pydicom.dcmread(path)
    for name, value in attributes.items():
        setattr(data, name, value)
    data.save_as(path)


def unknown_roi(path: Path) -> None:
    data = pydicom.dcmread(dicoms.rtstruct(path, {"liver": [box((1, 2), (1, 2), 1)]}))
    data.ROIContourSequence[0].ReferencedROINumber = 7
    data.save_as(path)


def nifti_beside(path: Path) -> None:
    dicoms.seg(path, mask(), ["liver"])
    dicoms.series(path.parent / "other", uid="2")
    io.write_volume(path.parent / "other_seg.nii.gz", np.zeros((6, 8, 5), np.uint8), np.eye(4))


LABELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "off the grid": (lambda p: dicoms.seg(p, mask(), ["a"], origin=(-10, 21, 30)), r"off the scan's grid by 0\.50 voxels"),
    "outside": (lambda p: dicoms.seg(p, mask(), ["a"], origin=(-10, 20, 60)), r"lies outside of the scan"),
    "fractions": (lambda p: dicoms.seg(p, mask(), ["a"], kind="FRACTIONAL"), r"is a FRACTIONAL segmentation"),
    "overlap": (lambda p: dicoms.seg(p, mask(2)), r"'liver' and 'spleen' overlap in 18 voxels"),
    "a segment of no name": (lambda p: dicoms.seg(p, mask(), ["a"], segments=[5]), r"frame 1 is of segment 5, which is not described"),
    "no segments": (lambda p: changed(dicoms.seg(p, mask(), ["a"]), SegmentSequence=[]), r"has no segments"),
    "frames not described": (lambda p: changed(dicoms.seg(p, mask(), ["a"]), PerFrameFunctionalGroupsSequence=[]), r"has 2 frames and describes 0"),
    "a frame of no place": (lambda p: changed(dicoms.seg(p, mask(), ["a"]), SharedFunctionalGroupsSequence=[]), r"does not say where it lies"),
    "claims more than it has": (lambda p: changed(dicoms.seg(p, mask(), ["a"]), Rows=60000), r"is cut off: 60000 rows"),
    "of another series": (lambda p: dicoms.seg(p, mask(), ["a"], series_uid="8"), r"none of the 1 labels .* refers to one of its 1 scans"),
    "a class called all": (lambda p: dicoms.seg(p, mask(), ["all"]), r"calls a class 'all'"),
    "no contours": (lambda p: dicoms.rtstruct(p, {"liver": []}), r"has no closed contours"),
    "points alone": (lambda p: dicoms.rtstruct(p, {"x": [(0, 0, 30)]}, geometry="POINT"), r"has no closed contours"),
    "contours between slices": (lambda p: dicoms.rtstruct(p, {"liver": [box((1, 2), (1, 2), 1.5)]}), r"lies 0\.50 slices beside"),
    "structures that overlap": (lambda p: dicoms.rtstruct(p, {"a": [box((1, 4), (1, 4), 1)], "b": [box((2, 4), (1, 4), 1)]}), r"'a' and 'b' overlap in 12 voxels"),
    "contours of no structure": (unknown_roi, r"contours of structure 7, which has no name"),
    "contours that are cut off": (lambda p: dicoms.rtstruct(p, {"liver": [(0, 0, 30, 1)]}), r"is damaged"),
    "labels of two kinds": (nifti_beside, r"labels that name their structures.*label maps of numbers"),
}  # fmt: skip


@pytest.mark.parametrize("what", LABELS)
def test_a_label_that_cannot_be_used_is_one_line(tmp_path, what):
    make, message = LABELS[what]
    dicoms.series(tmp_path / "scan")
    make(tmp_path / "label.dcm")
    with pytest.raises(SamAdaptError, match=message) as caught:
        open_dataset(tmp_path).case("scan")
    assert "\n" not in str(caught.value) and not any(word in str(caught.value) for word in PRIVATE)


# ---------------------------------------------------------------- answers that cannot be written


def refused(run: Path, given: Path, out: Path, message: str, **options) -> None:
    with pytest.raises(SamAdaptError, match=message) as caught:
        predict_folder(run, given, out, device="cpu", **options)
    assert "\n" not in str(caught.value) and not out.exists()


def test_a_seg_needs_a_dicom_volume(run, tmp_path):
    scan = next((run.parent / "data" / "imagesTr").iterdir())
    refused(
        run,
        scan,
        tmp_path / "out",
        r"is of the format nifti; dicom-seg needs a DICOM volume",
        format="dicom-seg",
    )
    x_ray = picture(tmp_path / "x.dcm", GREY)
    refused(
        run, x_ray, tmp_path / "out", r"is of the format dicom-picture; dicom-seg needs", format="dicom-seg"
    )
    refused(
        run,
        x_ray,
        tmp_path / "out",
        r"is a picture, whose label maps are not written as nifti",
        format="nifti",
    )
    refused(
        run, scan, tmp_path / "out", r"is a volume, whose label maps are not written as png", format="png"
    )
    refused(run, scan, tmp_path / "out", r"the format is 'mha'; expected one of", format="mha")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("class,meaning\nLV,Ventricle\n", r"line 2, has no value"),
        ("class,value,meaning\nLV,12345678901234567,Long\n", r"value has 17 characters; DICOM allows 16"),
        ("class,value,meaning,category\nLV,1,One,organ\n", r"category is 'organ'; expected one of anatomy"),
        ("class,value,meaning\n", r"has no rows"),
        (None, r"cannot be read"),
    ],
)
def test_codes_that_cannot_be_used(run, tmp_path, content, message):
    dicoms.series(tmp_path / "in")
    if content is not None:
        (tmp_path / "codes.csv").write_text(content)
    refused(run, tmp_path / "in", tmp_path / "out", message, format="dicom-seg", codes=tmp_path / "codes.csv")
    refused(
        run,
        tmp_path / "in",
        tmp_path / "out",
        "codes are written into DICOM SEG",
        codes=tmp_path / "codes.csv",
    )


def test_an_interrupted_prediction_does_not_go_on_with_other_codes(run, tmp_path, monkeypatch):
    """Else one folder would hold two meanings of a class."""
    for n in "12":
        dicoms.series(tmp_path / "in" / f"s{n}", uid=n)
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text(f"class,value,meaning\nLV,{name}1,My ventricle\n")

    def predict(codes: str) -> int:
        options = {"format": "dicom-seg", "codes": tmp_path / f"{codes}.csv", "device": "cpu"}
        return predict_folder(run, tmp_path / "in", tmp_path / "out", **options).done

    written = Segmenter.predict_to

    def interrupted(self, case, *rest, **answers):
        if case.id == "s2":
            raise KeyboardInterrupt
        return written(self, case, *rest, **answers)

    with monkeypatch.context() as patch:
        patch.setattr(Segmenter, "predict_to", interrupted)
        with pytest.raises(KeyboardInterrupt):
            predict("a")
    with pytest.raises(SamAdaptError, match="is not empty"):
        predict("b")
    assert not (tmp_path / "out" / "s2.dcm").exists()
    assert predict("a") == 2


def test_without_highdicom_it_is_said_before_the_work(run, tmp_path, monkeypatch):
    dicoms.series(tmp_path / "in")
    monkeypatch.setitem(sys.modules, "highdicom", None)
    refused(
        run,
        tmp_path / "in",
        tmp_path / "out",
        r"highdicom, which is not installed: pip install",
        format="dicom-seg",
    )


def test_long_names_cannot_be_labels_of_segments():
    with pytest.raises(SamAdaptError, match="at most 64 characters"):
        io.demand_writer(("background", "x" * 65), {})


def test_a_seg_that_cannot_be_written_leaves_nothing(tmp_path):
    dicoms.series(tmp_path / "scan")
    case = io.read_case(io.find_files(tmp_path / "scan")[0], case_id="a")
    label = np.full(case.image.shape[1:], 3, np.uint8)
    with pytest.raises(SamAdaptError, match="has the class 3; there are names for 0 to 1"):
        io.write_label(tmp_path / "a.dcm", label, case, "dicom-seg", io.Legend(("background", "liver")))
    assert not (tmp_path / "a.dcm").exists()


# ---------------------------------------------------------------- privacy, in a whole path


def test_nothing_that_names_a_patient_is_written(tmp_path, capfd):
    """Train, predict and evaluate on scans whose headers and folders name the patient; PatientID alone is found."""
    for n in range(3):
        scan, uid = tmp_path / "data" / "Zebedee_Quentin" / f"s{n}", str(n + 1)
        values = np.random.default_rng(n).integers(0, 900, (4, 32, 32)).astype(np.int16)
        dicoms.series(scan, values, uid=uid, patient=f"P{n}")
        found = np.zeros((1, 4, 32, 32), bool)
        found[:, 1:3, 8:20, 8:20] = True
        dicoms.seg(tmp_path / "data" / f"{n}.dcm", found, ["liver"], series_uid=uid)

    def type_(*words: object) -> None:
        done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert not any(word in done.output for word in PRIVATE[2:])

    unet = ("--head", "unet", "--set", "width=4", "--side", "64", "--steps", "2", "--device", "cpu")
    type_("check", tmp_path / "data")
    type_("train", tmp_path / "data", "--labels", "1", "--out", tmp_path / "run", *unet)
    type_("predict", tmp_path / "run", tmp_path / "data", "--out", tmp_path / "out", "--device", "cpu")
    type_(
        "predict",
        tmp_path / "run",
        tmp_path / "data",
        "--out",
        tmp_path / "seg",
        "--format",
        "dicom-seg",
        "--device",
        "cpu",
    )
    type_("evaluate", tmp_path / "out", tmp_path / "data")
    type_("evaluate", tmp_path / "seg", tmp_path / "data")
    assert (tmp_path / "seg" / "scores.csv").read_text() == (tmp_path / "out" / "scores.csv").read_text()
    folder = str(tmp_path / "data").encode()
    written = [p for name in ("run", "out", "seg") for p in (tmp_path / name).rglob("*") if p.is_file()]
    segs = [path for path in written if headers.kind_of(path) == "seg"]
    assert len(segs) == 1 and len(written) > 8
    for path in written:
        content = path.read_bytes().replace(folder, b"")
        if path not in segs:  # a SEG is filed with its patient, as DICOM demands
            assert not any(word.encode() in content for word in PRIVATE), path
    assert b'"P0"' in (tmp_path / "run" / "split.json").read_bytes()


def test_what_failed_and_what_was_left_out_is_written_without_folders(run, tmp_path):
    """Folders, and files that are scans of their own, may be called after the patient."""
    folder = tmp_path / "in" / "Zebedee_Quentin"
    dicoms.series(folder / "s1", uid="2")
    cut(folder / "s2")
    film = multi_frame(folder / "Zebedee.dcm", dicoms.volume(4))
    film.write_bytes(film.read_bytes()[:-40])
    only_reports(folder)
    out = tmp_path / "out"
    with pytest.warns(SamAdaptWarning, match=r"plans, doses\) \(report\.dcm\)"):
        done = CliRunner().invoke(
            app, ["predict", str(run), str(tmp_path / "in"), "--out", str(out), "--device", "cpu"]
        )
    failed = json.loads((out / "predictions.json").read_text())["failed"]
    assert done.exit_code == 1 and len(failed) == 2, done.output
    assert failed["s2"].startswith("s2/IM007.dcm is damaged") and failed["s2"] in done.output
    for text in (done.output, (out / "predictions.json").read_text()):
        assert not any(word in text for word in PRIVATE), text
