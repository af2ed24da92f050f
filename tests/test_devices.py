"""Several processes share a training: two with gloo give what one gives; loggers beside metrics.csv."""

import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from samadapt.experiment import make_study
from samadapt.phantom import make_phantom
from samadapt.training import TrainConfig
from samadapt.types import SamAdaptError
from test_cli import type_


def trained(folder: Path, name: str, *more: str, head: str = "cnn") -> Path:
    """A run of the command line in a process of its own, as a user starts it."""
    words = f"train {folder / 'data'} --out {folder / name} --head {head} --encoder sam_nano --side 64 --views 2 --labels 2"
    words += (
        f" --steps 6 --batch-size 4 --check-every 2 --precision 32 --device cpu --store {folder / 'features'}"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, "-m", "samadapt.cli", *words.split(), *more],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("trained:") == 1  # one process speaks
    assert "Warning" not in found.stderr
    return folder / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same training by one process and by two."""
    folder = tmp_path_factory.mktemp("devices")
    make_phantom(folder / "data", patients=4, size=64, slices=4)
    return trained(folder, "one", "--log", "tensorboard"), trained(folder, "two", "--devices", "2")


@pytest.mark.parametrize("head", ["linear"])
def test_two_processes_train_an_encoder_too(runs, head):
    """An encoder has parameters behind taps that nobody reads."""
    folder = runs[0].parent
    one, two = (trained(folder, f"{head}{n}", "--tune", "all", "--devices", n, head=head) for n in ("1", "2"))
    assert losses(two) == pytest.approx(losses(one), rel=1e-3)
    a, b = (load_file(run / "encoder.safetensors") for run in (one, two))
    assert max(float((a[name].float() - b[name].float()).abs().max()) for name in a) < 1e-3


def test_two_processes_learn_from_unlabelled_scans(runs):
    """Each from its own share of the unlabelled slices."""
    run = trained(
        runs[0].parent, "unlabelled", "--unlabelled", "pool", "--confidence", "0.3", "--devices", "2"
    )
    rows = losses(run)
    assert len(rows) == 6 and all(math.isfinite(x) for x in rows)
    assert json.loads((run / "config.json").read_text())["unlabelled"]["cases"]


def test_a_mistake_is_said_once(runs):
    words = f"train {runs[0].parent / 'data'} --out {runs[1]} --head cnn --encoder sam_nano --side 64 --labels 2 --steps 7"
    found = subprocess.run(
        [sys.executable, "-m", "samadapt.cli", *words.split(), "--batch-size", "4", "--devices", "2", "--live"],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert found.returncode == 2 and found.stderr.count("samadapt: ") == 1, found.stderr
    assert "holds a run with another" in found.stderr and "gloo" not in found.stderr


STUB = """
calls = []
active = None
def set_tracking_uri(uri): calls.append(uri)
def set_experiment(name): pass
def log_params(values): pass
def log_metrics(values, step): calls.append((step, values["loss"]))
def start_run(run_name):
    global active
    assert active is None, "another run is active"
    active = run_name
def end_run():
    global active
    active = None
"""


def test_mlflow_gets_the_losses_and_a_failed_training_closes_its_run(runs, tmp_path, monkeypatch):
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / "__init__.py").write_text(STUB)
    monkeypatch.syspath_prepend(tmp_path)
    words = (
        "train",
        runs[0].parent / "data",
        "--head",
        "unet",
        "--set",
        "width=2",
        "--side",
        "32",
        "--labels",
        "1",
    )
    words += (
        "--steps",
        "10",
        "--batch-size",
        "2",
        "--device",
        "cpu",
        "--log",
        "mlflow",
        "-q",
        "--precision",
        "32",
    )
    with pytest.raises(SamAdaptError, match="loss is"):
        type_(*words, "--lr", "1e30", "--out", tmp_path / "bad")
    type_(*words, "--out", tmp_path / "good")
    import mlflow

    assert mlflow.active is None and mlflow.calls[-1] == (10, pytest.approx(losses(tmp_path / "good")[-1]))


def test_a_logger_that_is_not_installed_is_said_before_anything_is_done(monkeypatch):
    monkeypatch.setattr("samadapt.settings.training.find_spec", lambda name: None)
    with pytest.raises(SamAdaptError, match="needs the package tensorboard, which is not installed"):
        TrainConfig(log=("tensorboard",))


def test_a_study_has_one_device(tmp_path):
    with pytest.raises(SamAdaptError, match=r"has no setting 'devices'"):
        make_study({"learners": ["cnn"], "train": {"devices": 2}}, "segmentation")


def losses(run: Path) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_two_processes_give_the_losses_and_the_weights_of_one(runs):
    one, two = runs
    assert len(losses(one)) == 3 and losses(two) == pytest.approx(losses(one), rel=1e-4)
    a, b = (load_file(run / "head.safetensors") for run in runs)
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-4


def test_the_loggers_that_are_asked_for_get_the_losses(runs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(runs[0] / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses(runs[0]), rel=1e-6)
    assert not (runs[1] / "tensorboard").exists()  # asked for, not always
