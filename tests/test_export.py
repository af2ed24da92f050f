"""Exported models answer as the run that they came from."""

from __future__ import annotations

import dataclasses
import importlib.abc
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError
from PIL import Image
from safetensors.torch import load_file

from fakes import two_class_archive
from samadapt import io
from samadapt.adapted import AdaptedModel
from samadapt.datasets import open_dataset
from samadapt.encoders import ENCODERS, EncoderSpec
from samadapt.export import EXPORTS, comparing, export_run, graph, onnx_files, runner
from samadapt.export.comparing import Comparison
from samadapt.folders import predict_folder
from samadapt.heads import HEADS, build_head
from samadapt.info import describe_run
from samadapt.io.geometry import Geometry
from samadapt.io.planes import common_plane
from samadapt.learner import Learner, fit
from samadapt.names import EXPORTS as NAMES
from samadapt.opening import Opening
from samadapt.postprocessing import keep_largest
from samadapt.prediction import load_run
from samadapt.settings import ExportOptions, TrainConfig
from samadapt.transforms import Window, apply_window, to_original
from samadapt.types import PIXELS, Frame, SamAdaptError
from samadapt.views import View
from samadapt.views.prepare import PREPARES

QUICK = {"batch_size": 4, "device": "cpu", "precision": "32", "warmup": 0.0, "ema": 0.0}


def train_run(
    data: Path, out: Path, head: str = "fused", steps: int = 12, tune: str = "none", **more
) -> Path:
    """A run of a few steps, which answers something."""
    opened = open_dataset(data)
    learner = Learner(head, **{"encoder": "sam_nano", "side": 64, "augment": "none", "views": 0, **more})
    split = opened.split(labels=None, seed=0)
    return fit(learner, opened, split, TrainConfig(steps=steps, tune=tune, **QUICK), out)


@pytest.fixture(scope="module")
def run(phantom, tmp_path_factory) -> Path:
    return train_run(phantom, tmp_path_factory.mktemp("runs") / "fused")


@pytest.fixture(scope="module")
def exported(run, phantom, tmp_path_factory) -> Path:
    """Encoder and head apart; compared on the phantom's held-out cases."""
    pytest.importorskip("onnxscript")
    out = tmp_path_factory.mktemp("exports") / "onnx"
    report = export_run(run, out, format="onnx", parts=True, check=str(phantom))
    found = report.comparison
    assert found.cases == 2 and found.foreground > 100 and found.differing == 0
    return out


# ---------------------------------------------------------------- the runner's steps are samadapt's


@pytest.mark.parametrize("name", sorted(PREPARES))
@pytest.mark.parametrize("size", [(83, 71), (20, 64), (64, 64), (300, 211)])
def test_the_runner_prepares_slices_as_the_encoders_want_them(name, size):
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0)) * 255
    expected, frame = PREPARES[name](image, 64)
    found, own = runner.prepare(image.numpy(), [name], 64)
    assert np.abs(expected.numpy() - found).max() < 2e-5 * max(1.0, float(expected.abs().max()))
    assert (own.original, own.inner, own.side) == (frame.original_size, frame.input_size, frame.side)


def test_the_runner_prepares_a_grey_slice_for_two_encoders():
    image = torch.rand(1, 40, 30) * 255
    expected, _ = View("none", "lite_medsam+imagenet_lite", 64).preprocess(image)
    found, _ = runner.prepare(image.numpy(), ["lite_medsam", "imagenet_lite"], 64)
    assert found.shape == (6, 64, 64) and np.abs(expected.numpy() - found).max() < 1e-5


@pytest.mark.parametrize("grid", [16, 64, 256])
@pytest.mark.parametrize("inner", [(64, 55), (20, 64), (64, 64)])
def test_the_runner_brings_logits_back_as_prediction_does(grid, inner):
    maps = torch.randn(3, grid, grid, generator=torch.Generator().manual_seed(0))
    expected = to_original(maps, Frame((83, 71), inner, 64))
    found = runner.to_original(maps.numpy(), runner.Frame((83, 71), inner, 64))
    assert np.abs(expected.numpy() - found).max() < 1e-5


@pytest.mark.parametrize("window", ["percentile", "ct", "none", "5,90"])
def test_the_runner_maps_intensities_as_the_view_does(window):
    image = torch.randn(2, 4, 30, 20, generator=torch.Generator().manual_seed(0)) * 100
    image[1] = 3.0  # constant
    image[1, 0, 0, 0] = 4.0
    limits = Window.parse(window).fit(image)
    found = runner.fit_window(image.numpy(), dataclasses.asdict(Window.parse(window)))
    assert np.array_equal(limits.numpy(), found)
    shown = runner.apply_window(image[:, 1].numpy(), found)
    assert np.allclose(apply_window(image[:, 1], limits).numpy(), shown, atol=1e-4)


def test_the_runner_keeps_the_largest_component_of_a_class():
    rng = np.random.default_rng(0)
    for share in (0.02, 0.2, 0.5):
        label = (rng.random((7, 23, 19)) < share).astype(np.uint8) * rng.integers(1, 3, (7, 23, 19), np.uint8)
        assert np.array_equal(keep_largest(label, [1, 2]), runner.keep_largest(label, [1, 2]))
    assert np.array_equal(runner.keep_largest(np.zeros((2, 3, 4), np.uint8), [1]), np.zeros((2, 3, 4)))


def oriented(
    order: tuple[int, ...], signs: tuple[int, ...], spacing: tuple[float, ...], oriented: bool = True
):
    """A tilted geometry with its axes in some order, as samadapt and as the runner have it."""
    tilt, _ = np.linalg.qr(np.eye(3) + 0.3 * np.random.default_rng(1).normal(size=(3, 3)))
    columns = (tilt * np.sign(np.diag(tilt)))[:, list(order)] * np.array(signs)
    affine = np.eye(4)
    affine[:3, :3] = columns * spacing
    geometry = Geometry((9, 8, 7), spacing, affine, 1, "float32", oriented)  # type: ignore[arg-type]
    return geometry, runner.Scan(Path("x"), np.zeros((1, 9, 8, 7)), affine, spacing, oriented)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (1.0, 1.2, 5.0)])
@pytest.mark.parametrize("says", [True, False])
def test_the_runner_turns_volumes_as_the_opening_does(spacing, says):
    reference, _ = oriented((0, 1, 2), (1, 1, 1), (1.0, 1.0, 4.0))
    for plane in (common_plane([reference]), common_plane([oriented((0, 1, 2), (1, 1, 1), (1.0,) * 3)[0]])):
        for order, signs in itertools.product(
            itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)
        ):
            geometry, scan = oriented(order, signs, spacing, says)
            expected = plane.place(geometry, Path("x"))
            assert runner.place(dataclasses.asdict(plane), scan) == expected


def test_the_runner_turns_tilted_volumes_as_the_opening_does():
    """Slices that were acquired thick, at any tilt: where the nearest axes would mirror the patient, one is turned."""
    rng, turned = np.random.default_rng(0), 0
    reference, _ = oriented((0, 1, 2), (1, 1, 1), (1.0, 1.0, 5.0))
    plane = common_plane([reference])
    for _ in range(300):
        affine = np.eye(4)
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        affine[:3, :3] = turn * (1.0, 1.0, 5.0)
        geometry = Geometry((9, 8, 7), (1.0, 1.0, 5.0), affine, 1, "float32")
        scan = runner.Scan(Path("x"), np.zeros((1, 9, 8, 7)), affine, (1.0, 1.0, 5.0), True)
        axes, flips = runner.place(dataclasses.asdict(plane), scan)
        assert (axes, flips) == plane.place(geometry, Path("x"))
        along = np.array(plane.directions) @ turn[:, list(axes)]
        turned += bool(np.any((np.diag(along) < 0) != np.array(flips)))
    assert turned


def test_the_runner_reads_files_as_samadapt_does(tmp_path):
    files = [
        entry.example(tmp_path / name)
        for name, entry in io.FORMATS.items()
        if name in ("nifti", "png", "jpeg")
    ]
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 900).save(tmp_path / "deep.png")
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) > 9).save(tmp_path / "two.png")
    for path in (*files, tmp_path / "deep.png", tmp_path / "two.png"):
        case = io.read_case(path)
        assert np.array_equal(io.to_file_axes(case.image.numpy(), case), runner.read_image(path).image)
    Image.new("RGBA", (8, 8)).save(tmp_path / "clear.png")
    Image.new("P", (8, 8)).save(tmp_path / "palette.png", transparency=0)
    for name in ("clear.png", "palette.png"):
        with pytest.raises(runner.RunnerError, match="transparency"):
            runner.read_image(tmp_path / name)
    with pytest.raises(runner.RunnerError, match=r"dcm2niix"):
        runner.read_image(tmp_path / "scan.dcm")


# ---------------------------------------------------------------- ONNX

ALONE = """
import runpy, sys
for name in ("torch", "samadapt", "scipy", "transformers"):
    sys.modules[name] = None  # an import of it fails
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def run_alone(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """The runner in a process in which neither torch nor samadapt can be imported."""
    code = ALONE.replace("sys.argv[1]", repr(str(folder / "runner.py")))
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False
    )


def test_the_runner_alone_writes_the_same_files_as_predict(run, exported, phantom, tmp_path):
    done = run_alone(exported, phantom / "imagesTr", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    predictor = load_run(run, "cpu")
    for scan in io.find_files(phantom / "imagesTr")[:3]:
        case = predictor.case(scan)
        expected = io.write_label(tmp_path / "expected.nii.gz", predictor.predict(case), case)
        found = tmp_path / "out" / scan.name.replace("_0000", "")
        one, two = nib.load(expected), nib.load(found)
        assert np.array_equal(np.asarray(one.dataobj), np.asarray(two.dataobj))
        assert one.header.binaryblock == two.header.binaryblock


def test_the_runner_goes_on_after_a_bad_file_and_says_what_is_wrong(exported, phantom, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "bad.nii.gz").write_bytes(b"nothing")
    good = io.find_files(phantom / "imagesTr")[0]
    (tmp_path / "in" / "good.nii.gz").write_bytes(good.read_bytes())
    done = run_alone(exported, tmp_path / "in", "--out", tmp_path / "out")
    assert done.returncode == 1 and "bad was not predicted" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.nii.gz"]


def test_a_damaged_export_is_refused(exported, tmp_path):
    (tmp_path / "model.json").write_bytes((exported / "model.json").read_bytes())
    (tmp_path / "runner.py").write_bytes((exported / "runner.py").read_bytes())
    for name in ("encoder.onnx", "head.onnx"):
        (tmp_path / name).write_bytes((exported / name).read_bytes()[:-1])
    with pytest.raises(runner.RunnerError, match="not the file that was exported"):
        runner.Model(tmp_path)


def test_nothing_of_this_machine_is_in_the_files(run, exported):
    for path in exported.iterdir():
        content = path.read_bytes()
        assert str(Path(__file__).parents[1]).encode() not in content and str(run).encode() not in content


def test_heads_can_share_an_encoder(exported, phantom, tmp_path):
    """The encoder's file is the same, byte for byte, whichever head was exported with it."""
    other = train_run(phantom, tmp_path / "linear", "linear", steps=1)
    export_run(other, tmp_path / "out", format="onnx", parts=True)
    assert (tmp_path / "out" / "encoder.onnx").read_bytes() == (exported / "encoder.onnx").read_bytes()


def test_a_network_that_fits_no_single_file_has_its_weights_beside_it(phantom, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(onnx_files, "_LARGEST", 0)
    made = train_run(phantom, tmp_path / "run", "unet", steps=1, encoder="pixels", options={"width": 8})
    report = export_run(made, tmp_path / "out", format="onnx")
    assert {"model/model.onnx", "model/model.onnx.data"} < set(report.files)
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    assert set(about["files"]) == {"model/model.onnx", "model/model.onnx.data", "runner.py"}


# ---------------------------------------------------------------- the table


def test_the_table_and_the_names_are_the_same():
    assert tuple(sorted(EXPORTS)) == NAMES and all(entry.text for entry in EXPORTS.values())


def test_a_classifier_becomes_a_program_of_torch(tmp_path):
    archive = two_class_archive(tmp_path / "two.npz")
    options = {"backbone": "resnet18", "small_input": True, "image_size": 16}
    made = train_run(archive, tmp_path / "run", "plain", steps=2, options=options)
    report = export_run(made, tmp_path / "out", format="torch", check=str(archive))
    assert report.comparison.cases == 10 and report.comparison.largest < 1e-5
    Image.fromarray(np.arange(784, dtype=np.uint8).reshape(28, 28)).save(tmp_path / "picture.png")
    expected = load_run(made, "cpu").predict(tmp_path / "picture.png")
    assert np.allclose(runner.Model(tmp_path / "out").predict(tmp_path / "picture.png"), expected, atol=1e-5)


def test_a_comparison_that_fails_leaves_nothing(run, tmp_path, monkeypatch):
    wrong = dataclasses.replace(
        EXPORTS["torch"], answer=lambda folder: lambda case, paths: np.zeros(case.image.shape[1:], np.uint8)
    )
    monkeypatch.setitem(EXPORTS, "torch", wrong)
    with pytest.raises(SamAdaptError, match="does not answer as the run"):
        export_run(run, tmp_path / "out", format="torch")
    assert not list(tmp_path.iterdir())


def test_what_holds_and_what_does_not():
    one = Comparison("x", True)
    one.add(np.ones((1, 100, 200), np.uint8), np.ones((1, 100, 200), np.uint8))
    assert one.holds and "all voxels equal" in one.text
    label = np.ones((1, 100, 200), np.uint8)
    label[0, 0, :2] = 0
    one.add(np.ones_like(label), label)
    assert one.holds and "a share of 5.0e-05" in one.text
    one.add(np.ones_like(label), np.zeros_like(label))
    assert not one.holds
    two = Comparison("x", False)
    two.add(np.array([0.6, 0.4]), np.array([0.6, 0.4]) + 1e-6)
    assert two.holds
    two.add(np.array([0.6, 0.4]), np.array([0.4, 0.6]))
    assert not two.holds


def test_a_folder_of_something_else_is_not_replaced(run, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for overwrite, words in ((False, "not empty"), (True, "no exported model")):
        with pytest.raises(SamAdaptError, match=words):
            export_run(run, tmp_path, format="torch", overwrite=overwrite)
    with pytest.raises(SamAdaptError, match="no exported model"):
        export_run(run, run, format="torch", overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def model_of(encoder: str, head: str = "fused", **options) -> AdaptedModel:
    """Untrained, on the tiny variant of an encoder."""
    entry = ENCODERS[encoder].tiny or ENCODERS[encoder]
    spec = EncoderSpec(entry.name, "random" if entry.published else None, max(64, entry.least))
    return AdaptedModel(spec, build_head(head, spec.taps, 3, **{**HEADS[head].tiny, **options}).eval())


def test_what_cannot_be_exported_says_why(monkeypatch):
    with pytest.raises(SamAdaptError, match="lends every image the maps of another one"):
        graph.demand_exportable(model_of("sam_nano", "slca", shuffle=True))
    model = model_of("sam_nano")
    rounded = AdaptedModel(dataclasses.replace(model.spec, dtype="bfloat16"), model.head)
    with pytest.raises(SamAdaptError, match="--encoder-precision 32"):
        graph.demand_exportable(rounded)
    with pytest.raises(SamAdaptError, match="leave out --parts"):
        graph.demand_parts(model_of("pixels", "unet"))
    with pytest.raises(SamAdaptError, match="--parts is for the format onnx"):
        ExportOptions(format="torch", parts=True)


@pytest.mark.parametrize("encoder", ["lite_medsam", "sam_vit_b"])
def test_the_batch_is_free_where_encoders_work_by_tiles(encoder, monkeypatch):
    tiny = ENCODERS[encoder].tiny or ENCODERS[encoder]
    monkeypatch.setitem(ENCODERS, tiny.name, tiny)
    model = model_of(encoder)
    program = graph.whole(model).module()
    pixels = torch.randn(3, *model.spec.taps[PIXELS])
    with torch.no_grad():
        assert torch.allclose(program(pixels), model(pixels), atol=1e-4)


def openings() -> list[Opening]:
    picture = {"depth": "uint8", "window": "none", "plane": io.Plane()}
    names = ("T1", "T2")
    return [
        Opening("segmentation", ("background", "a")),
        Opening("segmentation", ("background", "a"), window="ct"),
        Opening("segmentation", ("background", "a"), channel_names=names, channels=(1,)),
        Opening("segmentation", ("background", "a"), channel_names=names),
        Opening("classification", ("a", "b"), channel_names=("R", "G", "B"), **picture),  # type: ignore[arg-type]
        Opening("classification", ("a", "b"), depth="uint16"),
    ]


@pytest.mark.parametrize("opening", openings(), ids=range(6))
def test_the_generated_scan_is_of_the_kind_that_the_model_reads(opening, tmp_path):
    case, files = comparing.phantom_case(opening, tmp_path)
    low, high = Window.parse(opening.window).fit(case.image)[0].tolist()
    assert len(files) >= 1 and case.image.shape[0] == len(opening.channels or opening.channel_names)
    assert float(case.image.std()) > 0.02 * (high - low)


# ---------------------------------------------------------------- the hub


@pytest.fixture
def no_network(monkeypatch):
    """Every connection is an error."""

    def refuse(*_, **__):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("tune", ["none", "lora"])
@pytest.mark.parametrize("with_encoder", [False, True])
def test_a_hub_folder_is_the_run(tune, with_encoder, phantom, tmp_path, no_network):
    made = train_run(phantom, tmp_path / "run", "linear", steps=3, tune=tune)
    (made / "postprocessing.json").write_text(
        json.dumps({"keep_largest": ["LV"], "selection_cases": ["patient001_frame01"]})
    )
    out = tmp_path / "hub"
    report = export_run(made, out, format="hub", check=str(phantom), with_encoder=with_encoder)
    assert report.comparison.differing == 0 and report.comparison.cases == 2
    assert set(report.files) == {"README.md", "config.json", "model.safetensors", "postprocessing.json"}
    texts = [path.read_bytes() for path in out.iterdir()]
    assert not any(b"patient001" in text or str(tmp_path).encode() in text for text in texts)
    names = set(load_file(out / "model.safetensors"))
    assert any(name.startswith("encoder.") for name in names) == with_encoder
    assert any(name.startswith("adapters.") for name in names) == (tune == "lora")
    predicted = predict_folder(out, phantom / "imagesTr", tmp_path / "predicted", device="cpu")
    assert predicted.done == 8 and describe_run(out)["finished"]


def test_an_encoder_in_the_folder_is_not_looked_for(phantom, tmp_path, monkeypatch):
    """Without it, the encoder's weights are asked of this machine."""
    made = train_run(phantom, tmp_path / "run", "linear", steps=1)
    for name, with_encoder in (("with", True), ("without", False)):
        export_run(made, tmp_path / name, format="hub", with_encoder=with_encoder)
    monkeypatch.setattr(
        type(ENCODERS["sam_nano"].published), "locate", lambda *_: pytest.fail("its weights were looked for")
    )
    load_run(tmp_path / "with", "cpu")
    with pytest.raises(pytest.fail.Exception, match="looked for"):
        load_run(tmp_path / "without", "cpu")


def test_a_run_of_the_hub_is_fetched_by_its_name_and_revision(run, tmp_path, monkeypatch):
    export_run(run, tmp_path / "hub", format="hub", licence="apache-2.0")
    asked = []

    def fetch(repo, revision, allow_patterns, local_files_only):
        asked.append((repo, revision, local_files_only))
        if local_files_only:
            raise LocalEntryNotFoundError("not there")
        return str(tmp_path / "hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    commit = "0" * 40
    assert load_run(f"ana/heart@{commit}", "cpu").classes == load_run(run, "cpu").classes
    assert asked == [("ana/heart", commit, True), ("ana/heart", commit, False)]
    with pytest.raises(SamAdaptError, match=r"does not exist; give .* or OWNER/NAME@REVISION"):
        load_run("ana/heart")
    assert len(asked) == 2
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: fetch("", "", [], True))
    with pytest.raises(SamAdaptError, match="cannot get the run ana/heart@main"):
        load_run("ana/heart@main")


def test_the_card_has_front_matter_scores_and_marks(run, tmp_path):
    row = {"target": "LV", "metric": "dsc", "mean": 0.91, "low": 0.85, "high": 0.95, "n": 4, "n_groups": 2, "n_nan": 0, "n_miss": 0, "note": ""}  # fmt: skip
    made = shutil.copytree(run, tmp_path / "run")
    (made / "evaluations.json").write_text(json.dumps({"/home/ana/test": {"notes": [], "summary": [row]}}))
    export_run(made, tmp_path / "hub", format="hub", licence="cc-by-4.0")
    card = ModelCard.load(tmp_path / "hub" / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.library_name == "samadapt"
    assert [(r.metric_type, r.metric_value) for r in card.data.eval_results or []] == [("dsc", 0.91)]
    assert (
        "| test | LV | dsc | 0.910 | 0.850 to 0.950 | 4 | 2 |" in card.text and "/home/ana" not in card.text
    )
    assert "fingerprint: `sam_nano" in card.text and "voxels differ" in card.text


def test_a_folder_is_pushed_and_a_refusal_keeps_it(run, tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", lambda *_, **given: done.append(given))
    monkeypatch.setattr(
        "huggingface_hub.HfApi.upload_folder", lambda *_, **given: type("Commit", (), {"oid": "f" * 40})
    )
    report = export_run(run, tmp_path / "one", format="hub", push="ana/heart")
    assert report.pushed == "ana/heart@" + "f" * 40 and done == [{"private": True, "exist_ok": True}]

    def refuse(*_, **__):
        raise OSError("401 Client Error\nmore")

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", refuse)
    with pytest.raises(SamAdaptError, match=r"could not be pushed to 'ana/heart' \(401 Client Error\)"):
        export_run(run, tmp_path / "two", format="hub", push="ana/heart")
    assert (tmp_path / "two" / "README.md").is_file()


# ---------------------------------------------------------------- MONAI


def test_monai_runs_the_bundle_without_samadapt(run, phantom, tmp_path):
    """`python -m monai.bundle run` writes the label maps of `samadapt predict`."""
    pytest.importorskip("fire")
    export_run(run, tmp_path / "bundle", format="monai")
    code = """
import runpy, sys
for name in ("samadapt", "onnxruntime", "transformers"):
    sys.modules[name] = None  # an import of it fails
sys.argv = ["bundle", *sys.argv[1:]]
runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
"""
    words = ["run", "--config_file", "configs/inference.json", "--device", "cpu"]
    words += ["--dataset_dir", str(phantom / "imagesTr"), "--output_dir", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=tmp_path / "bundle",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    predictor, equal = load_run(run, "cpu"), 0
    for scan in io.find_files(phantom / "imagesTr"):
        case = predictor.case(scan)
        found = nib.load(tmp_path / "out" / scan.name.replace("_0000", ""))
        equal += np.array_equal(np.asarray(found.dataobj), io.to_file_axes(predictor.predict(case), case))
    assert equal == 8
    metadata = json.loads((tmp_path / "bundle" / "configs" / "metadata.json").read_text())
    assert metadata["network_data_format"]["outputs"]["pred"]["num_channels"] == 4


# ---------------------------------------------------------------- slow: every head, every encoder; real data


@pytest.mark.slow
@pytest.mark.parametrize("head", sorted(HEADS))
def test_every_head_s_run_answers_the_same_in_onnx(head, phantom, tmp_path):
    kind = HEADS[head]
    data = phantom if kind.task == "segmentation" else two_class_archive(tmp_path / "two.npz")
    made = train_run(data, tmp_path / "run", head, steps=6, options=dict(kind.tiny))
    found = export_run(made, tmp_path / "out", format="onnx", check=str(data)).comparison
    assert found.holds and found.share < 1e-4
    assert json.loads((tmp_path / "out" / "model.json").read_text())["check"]["holds"]


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [*sorted({*ENCODERS} - {"pixels"}), "sam_nano+imagenet_lite0"])
def test_every_encoder_s_run_answers_the_same_in_onnx(encoder, phantom, tmp_path, monkeypatch):
    for name in encoder.split("+"):
        monkeypatch.setitem(
            ENCODERS, name, dataclasses.replace(ENCODERS[name].tiny or ENCODERS[name], name=name)
        )
    side = max(64, *(ENCODERS[name].least for name in encoder.split("+")))
    made = train_run(phantom, tmp_path / "run", steps=6, encoder=encoder, side=side, checkpoint="random")
    found = export_run(made, tmp_path / "out", format="onnx", check=str(phantom)).comparison
    assert found.holds


@pytest.mark.slow
def test_trained_adapters_are_merged(phantom, tmp_path):
    made = train_run(phantom, tmp_path / "run", steps=6, tune="lora")
    found = export_run(made, tmp_path / "out", format="onnx", check=str(phantom)).comparison
    assert found.holds and found.foreground


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "head", "options"),
    [
        ("Task04_Hippocampus", "fused", {}),
        ("Dataset027_ACDC", "fused", {"encoder": "imagenet_lite0"}),
        ("medmnist/breastmnist.npz", "slca", {"options": {"backbone": "resnet18", "image_size": 64}}),
    ],
)
def test_whole_cases_of_real_data(name, head, options, shared_data, tmp_path):
    made = train_run(shared_data / name, tmp_path / "run", head, steps=40, **options)
    found = export_run(made, tmp_path / "out", format="onnx", check=str(shared_data / name)).comparison
    assert found.holds and found.cases >= 10


def test_onnxruntime_is_told_to_keep_quiet_before_it_is_imported(tmp_path, monkeypatch):
    """Its import alone would send a report of the machine and leave a database in the user's cache."""
    told = []

    class Spy(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name == "onnxruntime":
                told.append(os.environ.get("ORT_DISABLE_TELEMETRY"))

    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Spy()])
    with pytest.raises(ImportError):
        runner.onnx_network(tmp_path, ["model.onnx"])
    assert told == ["1"]
