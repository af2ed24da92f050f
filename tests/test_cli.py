"""The command line, as a user types it, on the phantom."""

import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from benchmarks.photos import make_photo_phantom
from PIL import Image
from typer.testing import CliRunner

import samadapt
from samadapt import names
from samadapt.backbones import BACKBONES
from samadapt.cli import app, entry, main
from samadapt.encoders import ENCODERS
from samadapt.heads import HEADS
from samadapt.runs import pick_device
from samadapt.transforms import AUGMENTATIONS
from samadapt.types import SamAdaptError

FAST = ["--steps", "4", "--batch-size", "2", "--device", "cpu", "-q"]
UNET = ["--head", "unet", "--set", "width=4", "--side", "64"]
NECK = ["--head", "probe", "--encoder", "sam_nano", "--checkpoint", "random", "--side", "64", "--views", "2"]


@pytest.fixture(scope="module")
def run(phantom, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "unet"
    type_("train", phantom, "--labels", "1", "--out", out, *UNET, *FAST)
    return out


def type_(*words):
    """What the command prints; a user's mistake comes out as the exception that `main` turns into one line."""
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def contents(folder):
    return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()}


def test_version():
    assert type_("--version") == f"samadapt {samadapt.__version__}\n"


def test_train_says_that_bfloat16_is_emulated(phantom, tmp_path, monkeypatch):
    monkeypatch.setattr("samadapt.runs.has_bf16", lambda device: False)
    words = ("train", phantom, "--labels", "1", *UNET, *FAST[:-1], "--precision")
    assert "bf16 is slower here than 32" in type_(*words, "bf16", "--out", tmp_path / "a")
    assert "bf16" not in type_(*words, "auto", "--out", tmp_path / "b")


def test_train_predict_evaluate(run, phantom, tmp_path):
    config = json.loads((run / "config.json").read_text())
    split = json.loads((run / "split.json").read_text())
    assert config["data"]["train"] == split["train"]
    assert len(split["patients"]) == 1
    assert "predicted: 2 cases" in type_("predict", run, phantom, "--out", tmp_path / "p", "--device", "cpu")
    assert sorted(p.stem[:-4] for p in (tmp_path / "p").glob("*.nii.gz")) == sorted(split["val"])
    table = type_("evaluate", tmp_path / "p", phantom, "--out", tmp_path / "scores.csv")
    assert "dsc" in table
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {r["case"] for r in rows} == set(split["val"])
    assert {r["target"] for r in rows} >= {"RV", "MYO", "LV"}


def test_evaluating_against_label_files_gives_the_same(run, phantom, tmp_path):
    type_("predict", run, phantom, "--out", tmp_path / "p", "--device", "cpu", "-q")
    whole = type_("evaluate", tmp_path / "p", phantom, "--out", tmp_path / "a.csv")
    files = type_("evaluate", tmp_path / "p", phantom / "labelsTr", "--out", tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    assert whole.splitlines()[0].split() == files.splitlines()[0].split()


def test_classes_and_an_empty_truth(run, phantom, tmp_path):
    """A label file without a structure is a case like any other."""
    type_("predict", run, phantom, "--out", tmp_path / "p", "--device", "cpu", "-q")
    truth = tmp_path / "labels"
    truth.mkdir()
    for path in (tmp_path / "p").glob("*.nii.gz"):
        source = nib.load(path)
        nib.save(nib.Nifti1Image(np.zeros(source.shape, np.uint8), source.affine), truth / path.name)
    type_("evaluate", tmp_path / "p", truth, "--out", tmp_path / "scores.csv")
    with open(tmp_path / "scores.csv", newline="") as file:
        dice = [row["value"] for row in csv.DictReader(file) if row["metric"] == "dsc"]
    assert set(dice) <= {"0.0", "0", "nan", ""}


def test_a_classifier_from_pictures_to_scores(tmp_path):
    data = make_photo_phantom(tmp_path / "photos", images=24, size=40)
    head = ["--head", "attentive_probe", "--encoder", "sam_nano", "--checkpoint", "random", "--side", "32"]
    type_("train", data, "--out", tmp_path / "run", *head, "--views", "2", "--store", tmp_path / "f", *FAST)
    type_("predict", tmp_path / "run", data, "--out", tmp_path / "p", "--device", "cpu", "-q")
    with open(tmp_path / "p" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:3] == ["case", "split", "prediction"]
    assert sum(float(value) for key, value in rows[0].items() if key.startswith("prob_")) == pytest.approx(
        1, abs=1e-5
    )
    assert "auc" in type_("evaluate", tmp_path / "p", data, "--out", tmp_path / "scores.csv")


def test_scans_in_nnunet_names_and_single_files(run, phantom, tmp_path):
    names = sorted(p.name for p in (phantom / "imagesTr").iterdir())
    assert f"{len(names)} cases" in type_(
        "predict", run, phantom / "imagesTr", "--out", tmp_path / "all", "--device", "cpu"
    )
    assert sorted(p.name for p in (tmp_path / "all").glob("*.nii.gz")) == [
        n.replace("_0000", "") for n in names
    ]
    one = phantom / "imagesTr" / names[0]
    type_("predict", run, one, "--out", tmp_path / "one", "--probabilities", "--device", "cpu")
    written = tmp_path / "one" / names[0].replace("_0000", "")
    assert written.read_bytes() == (tmp_path / "all" / written.name).read_bytes()
    source, label = nib.load(one), nib.load(written)
    assert label.shape == source.shape
    assert np.array_equal(label.affine, source.affine)
    assert np.load(str(written).replace(".nii.gz", ".npy")).shape == (4, *source.shape)


def test_predictions_are_not_overwritten_unasked(run, phantom, tmp_path):
    type_("predict", run, phantom, "--out", tmp_path / "p", "--device", "cpu", "-q")
    before = contents(tmp_path / "p")
    with pytest.raises(SamAdaptError, match="--overwrite"):
        type_("predict", run, phantom, "--out", tmp_path / "p")
    assert contents(tmp_path / "p") == before
    type_("predict", run, phantom, "--out", tmp_path / "p", "--overwrite", "--device", "cpu", "-q")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(SamAdaptError, match="no predictions of ours"):
        type_("predict", run, phantom, "--out", tmp_path / "mine", "--overwrite")
    assert (tmp_path / "mine" / "notes.txt").exists()


def test_encode_once_then_train_from_the_store(phantom, tmp_path):
    store = ["--store", tmp_path / "features"]
    assert "encoded 8 of 8 cases" in type_("encode", phantom, *NECK, *store, "--device", "cpu")
    before = contents(tmp_path / "features")
    assert "nothing to do: all 8 cases" in type_("encode", phantom, *NECK, *store, "--device", "cpu")
    type_("train", phantom, "--labels", "2", "--out", tmp_path / "run", *NECK, *store, *FAST)
    assert contents(tmp_path / "features") == before
    assert json.loads((tmp_path / "run" / "config.json").read_text())["stored_maps"]
    type_("predict", tmp_path / "run", phantom, "--out", tmp_path / "p", "--device", "cpu")


def test_tuned_and_selected_within_the_budget(phantom, tmp_path):
    type_(
        "train", phantom, "--labels", "2", "--select", "1", "--tune", "all", "--out", tmp_path / "run",
        *NECK, "--live", *FAST,
    )  # fmt: skip
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    split = json.loads((tmp_path / "run" / "split.json").read_text())
    assert len(split["patients"]) == 2
    assert config["data"]["select"] == split["select"]
    assert {i.split("_")[0] for i in split["select"]}.isdisjoint({i.split("_")[0] for i in split["train"]})
    assert (tmp_path / "run" / "encoder.safetensors").is_file()
    type_("predict", tmp_path / "run", phantom, "--out", tmp_path / "p", "--device", "cpu")
    for lost in (
        "encoder.safetensors",
        "split.json",
    ):  # without them the answers, or what they are worth, would differ
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        (tmp_path / "copy" / lost).unlink()
        with pytest.raises(SamAdaptError, match=f"{lost} is missing"):
            type_("predict", tmp_path / "copy", phantom, "--out", tmp_path / "q", "--device", "cpu")
        shutil.rmtree(tmp_path / "copy")


def test_check_finds_nothing_wrong_with_the_phantom(phantom):
    assert "0 errors" in type_("check", phantom)


def test_experiment_and_report(phantom, tmp_path):
    grid = tmp_path / "grid.toml"
    grid.write_text(
        'learners = ["small"]\n[learner.small]\nhead = "unet"\nencoder = "pixels"\nside = 32\noptions = {width = 2}\n'
    )
    words = [
        "experiment",
        phantom,
        "--out",
        tmp_path / "study",
        "--grid",
        grid,
        "--labels",
        "1,2",
        "--seeds",
        "1",
    ]
    words += ["--steps", "2", "--store", tmp_path / "f", "--device", "cpu"]
    assert "2 cells" in type_(*words)
    assert "2 cells, 2 done before" in type_(*words)
    page = type_("report", tmp_path / "study").split()[-1]
    assert "<html" in Path(page).read_text()


def test_what_is_typed_goes_before_the_file_of_a_study(phantom, tmp_path, monkeypatch):
    """And what is not typed leaves the file's word, where it has one."""
    configs = []

    def run(data, grid, config, *rest, **more):
        configs.append((grid.seeds, config.steps, config.lr, config.device))
        raise SamAdaptError("seen")

    monkeypatch.setattr("samadapt.experiment.run_part", run)
    (tmp_path / "g.toml").write_text(
        'learners = ["unet"]\nseeds = 2\n[train]\nsteps = 5\nlr = 0.5\ndevice = "cpu"\n'
    )
    words = ("experiment", phantom, "--out", tmp_path / "e", "--grid", tmp_path / "g.toml")
    for typed in ((), ("--steps", "7", "--seeds", "4,5", "--device", "auto")):
        with pytest.raises(SamAdaptError, match="seen"):
            type_(*words, "--store", tmp_path / "f", *typed)
    assert configs == [((0, 1), 5, 0.5, "cpu"), ((4, 5), 7, 0.5, "auto")]


def test_a_quiet_study_still_says_why_cells_failed(phantom, tmp_path):
    words = [
        "experiment",
        phantom,
        "--out",
        tmp_path / "e",
        "--labels",
        "1",
        "--seeds",
        "1",
        "--steps",
        "1",
        "-q",
    ]
    words += ["--heads", "linear", "--encoder", "imagenet_lite0", "--side", "64", "--store", tmp_path / "f"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 1 and "samadapt: linear, 1 labelled, seed 0: " in result.output


@pytest.mark.parametrize("content", [b"", b"text", b"PK"])
def test_a_broken_checkpoint_of_a_training_is_named(phantom, tmp_path, content):
    words = [
        "train",
        phantom,
        "--head",
        "unet",
        "--side",
        "32",
        "--labels",
        "1",
        "--steps",
        "2",
        "--out",
        tmp_path / "r",
    ]
    type_(*words)
    (tmp_path / "r/head.safetensors").unlink()
    (tmp_path / "r/last.ckpt").write_bytes(content)
    with pytest.raises(
        SamAdaptError, match=rf"last.ckpt \({len(content)} bytes\) cannot be read.*delete it to begin again"
    ):
        type_(*words)


def test_learners_that_are_added_to_a_study_read_its_encoder(phantom, tmp_path, monkeypatch):
    """Even where weights that would be preferred have been installed since."""
    words = [
        "experiment",
        phantom,
        "--out",
        tmp_path / "study",
        "--labels",
        "1",
        "--seeds",
        "1",
        "--steps",
        "1",
    ]
    words += ["--side", "64", "--store", tmp_path / "f", "--device", "cpu", "--heads"]
    monkeypatch.setattr("samadapt.weights.PublishedFile.find", lambda self: None)
    assert (
        "encoder sam_nano, since none was named (--encoder) and the weights of imagenet_lite0 are"
        in type_(*words, "fused")
    )
    monkeypatch.setattr("samadapt.weights.PublishedFile.find", lambda self: "here")
    said = type_(*words, "fused,linear")
    assert (
        "encoder sam_nano, since none was named" in said
        and "not on this machine" not in said
        and "2 cells, 1 done before" in said
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labels", "99"], "99 labelled patients"),
        (["--checkpoint", "random"], "checkpoint 'random' is given and no encoder"),
        (["--labels", "few"], "--labels is 'few'"),
        (["--head", "vit"], "--head is 'vit'; known: "),
        (
            ["--encoder", "vitb", "--head", "probe"],
            r"--encoder is 'vitb'; known: .*\(did you mean sam_vit_b\?\)",
        ),
        (["--head", "autosam", "--encoder", "pixels"], r"reads \['neck'\].*gives \['pixels'\]"),
        (["--set", "colour=red"], "head 'unet' has no option 'colour'; it has width, loss"),
        (["--set", "widht=8"], r"no option 'widht'.*\(did you mean width\?\)"),
        (["--set", "width=wide"], "--set width is 'wide'; expected a whole number"),
        (["--set", "width=2.5"], "--set width is '2.5'; expected a whole number"),
        (["--ema", "1"], "--ema is 1.0; expected a number from 0 to below 1"),
        (["--set", "width"], "NAME=VALUE"),
        (["--augment", "wild"], "--augment is 'wild'; known: default, mirror, none"),
        (["--labels", "nan"], "--labels is 'nan'"),
        (["--labels", "0"], "labels is 0; expected at least 1"),
        (["--labels", "1.5"], "labels is 1.5; expected"),
        (["--val-labels", "0.5"], "--val-labels is '0.5'; expected a whole number, or official"),
        (["--val-labels", "-1"], "val_labels is -1"),
        (["--batch-size", "0"], "--batch-size is 0; expected a whole number from 1 on"),
        (["--lr", "nan"], "--lr is nan; expected a number above 0"),
        (["--encoder-lr", "-1"], "--encoder-lr is -1.0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--seed", str(2**40)], "--seed is 1099511627776; expected a whole number from 0 to"),
        (["--workers", "-1"], "--workers is -1"),
        (["--fold", "99"], "fold is 99"),
        (["--side", "0"], "--side is 0"),
        (["--views", "-1"], "--views is -1"),
        (["--slice-axis", "5"], "--slice-axis is 5; expected a whole number from 0 to 2"),
        (["--channels", "x"], "no channel 'x'"),
        (["--task", "detection"], "--task is 'detection'; known: classification, segmentation"),
        (["--precision", "16"], "--precision is '16'"),
        (["--tune", "halves"], "--tune is 'halves'"),
        (["--backbone", "resnet"], "--backbone is 'resnet'"),
        (["--window", "mr"], "window 'mr'"),
        (["--select", "1"], "select is 1 of 1"),
        (["--device", "tpu"], "--device is 'tpu'; known: auto, cpu"),
        (["--head", "plain"], "'plain' is for classification"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(phantom, tmp_path, words, message):
    chosen = {"--head": "unet", "--labels": "1"} | dict(zip(words[::2], words[1::2], strict=True))
    options = [part for pair in chosen.items() for part in pair]
    with pytest.raises(SamAdaptError, match=message):
        type_(
            "train", phantom, "--out", tmp_path / "run", "--steps", "2", "--store", tmp_path / "f", *options
        )
    assert not (tmp_path / "run").exists()


def test_list(capsys):
    assert "autosam" in type_("list", "heads")
    assert "sam_vit_h" in type_("list", "encoders")
    assert "hd95_mm" in type_("list", "metrics")
    assert "depth (a whole number)" in type_("list", "heads")
    assert "train.steps" in type_("list", "settings") and "unet.width" in type_("list", "settings")
    with pytest.raises(SamAdaptError, match="nothing to list under 'weights'"):
        type_("list", "weights")


def shell(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "samadapt.cli", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    result = shell("train", tmp_path / "nowhere", "--out", tmp_path / "run")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "nowhere does not exist" in result.stderr
    assert "Traceback" in shell("train", tmp_path / "nowhere", "--out", tmp_path / "run", "--debug").stderr


@pytest.mark.parametrize("command", [("predict", "gone", "here", "--out", "p"), ("evaluate", "gone", "here")])
def test_a_folder_that_is_not_there_is_called_missing_not_wrong(tmp_path, command):
    (tmp_path / "here").mkdir()
    result = shell(*command, cwd=tmp_path)
    assert result.returncode == 2
    assert "gone does not exist; give the --out of" in result.stderr


def test_help_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys; from typer.testing import CliRunner; from samadapt.cli import app; "
        "CliRunner().invoke(app, ['train', '--help']); "
        "print([m for m in ('torch', 'numpy', 'monai', 'lightning') if m in sys.modules])"
    )
    start = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    assert time.monotonic() - start < 5  # "well under a second" on a quiet machine


def test_the_names_known_before_anything_is_loaded_are_those_of_the_tables():
    assert {name: head.task for name, head in HEADS.items()} == names.HEADS
    assert set(ENCODERS) == set(names.ENCODERS) and set(BACKBONES) == set(names.BACKBONES)
    assert set(AUGMENTATIONS) == set(names.AUGMENTATIONS)
    for device in set(names.DEVICES) - {
        "cuda",
        "gpu",
        "mps",
    }:  # not everywhere, and refused by name where not
        pick_device(device)


@pytest.mark.parametrize("option", ["--head", "--encoder", "--device"])
def test_a_mistyped_name_is_refused_before_torch_and_the_data(option):
    code = (
        "import sys; from samadapt.cli import main\n"
        f"sys.argv = ['samadapt', 'train', 'nowhere', '--out', 'run', '{option}', 'sam_nan']\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code, [m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "2 []" and f"{option} is 'sam_nan'" in result.stderr


def test_what_goes_wrong_is_one_line(monkeypatch, capsys):
    """Also what nobody foresaw, and what the disk refuses; the traceback is for --debug."""
    for error, code, text in (
        (OSError(13, "Permission denied", "/somewhere"), 2, "/somewhere: Permission denied; check the path"),
        (KeyError("lost"), 1, "internal error: KeyError: 'lost'; run again with --debug"),
        (KeyboardInterrupt(), 130, "interrupted; what was finished is kept"),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(entry, "app", fail)
        monkeypatch.setattr("sys.argv", ["samadapt", "check", "x"])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == code
        said = capsys.readouterr().err
        assert said.startswith(f"samadapt: {text}") and said.count("\n") == 1
    monkeypatch.setattr("sys.argv", ["samadapt", "check", "x", "--debug"])
    monkeypatch.setattr(entry, "app", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main()


def test_folders_that_cannot_be_written_are_refused_before_the_work(phantom, tmp_path):
    (tmp_path / "file").write_text("precious")
    for words in (
        ("train", phantom, "--head", "unet", "--out", tmp_path / "file"),
        ("train", phantom, "--head", "unet", "--out", tmp_path / "file" / "below"),
        ("train", phantom, *NECK, "--labels", "1", "--out", tmp_path / "run", "--store", tmp_path / "file"),
        ("encode", phantom, *NECK, "--store", tmp_path / "file"),
        ("experiment", phantom, "--heads", "probe", "--out", tmp_path / "file"),
        ("demo", "--out", tmp_path / "file"),
    ):
        with pytest.raises(
            SamAdaptError, match=r"cannot be written to \(a file is in its place\); choose another"
        ):
            type_(*words)
    assert (tmp_path / "file").read_text() == "precious" and not (tmp_path / "run").exists()


def test_one_value_for_each_channel_cannot_be_normalised(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("a", "b"):
        (tmp_path / "data" / kind).mkdir(parents=True)
        for number in range(5):
            image = Image.fromarray(rng.integers(0, 255, (32, 32), np.uint8))
            image.save(tmp_path / "data" / kind / f"{kind}{number}.png")
    with pytest.raises(SamAdaptError, match="a batch of 1 gives the network a single value for each channel"):
        type_(
            "train", tmp_path / "data", "--head", "plain", "--backbone", "resnet18", "--side", "32",
            "--set", "image_size=32", "--steps", "2", "--batch-size", "1", "--out", tmp_path / "run",
        )  # fmt: skip
