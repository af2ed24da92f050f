"""Several processes share a training: two with gloo give what one gives; loggers beside metrics.csv."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from samadapt.phantom import make_phantom


def trained(folder: Path, name: str, *more: str) -> Path:
    """A run of the command line in a process of its own, as a user starts it."""
    words = f"train {folder / 'data'} --out {folder / name} --head cnn --encoder sam_nano --side 64 --views 2 --labels 2"
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
    return folder / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same training by one process and by two."""
    folder = tmp_path_factory.mktemp("devices")
    make_phantom(folder / "data", patients=4, size=64, slices=4)
    return trained(folder, "one", "--log", "tensorboard"), trained(folder, "two", "--devices", "2")


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
