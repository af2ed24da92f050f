"""Faults, for real: killed processes, a full disk, a folder that cannot be written to, two processes on one store, files that change.

After each, the same command again gives what it would have given undisturbed. Commands run in forked processes, for a fresh
interpreter would take longer than the command.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from samadapt import files, io
from samadapt.cli import main
from samadapt.datasets import open_dataset
from samadapt.phantom import make_phantom

pytestmark = pytest.mark.slow
NANO = "--encoder sam_nano --side 64 --device cpu"
TRAIN = f"train DATA --out OUT/run --store OUT/store --head linear {NANO} --views 2 --steps 30"
COMMANDS = {
    "encode": f"encode DATA --store OUT/store --head linear {NANO} --views 2 -q",
    "train": f"{TRAIN} --check-every 5 -q",
    "predict": "predict RUN DATA --subset all --out OUT/out --device cpu -q",
    "experiment": f"experiment DATA --grid GRID --heads linear --labels 1 --seeds 2 --steps 8 {NANO} --out OUT/study "
    "--store OUT/store -q",
}
#: How many times each is killed.
MOMENTS = {"encode": 12, "train": 15, "predict": 8, "experiment": 15}


def start(command: str) -> int:
    """The number of a process that runs it, and says nothing."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            if "SHOW_FAULTS" not in os.environ:
                os.dup2(nowhere.fileno(), 2)
        sys.argv = ["samadapt", *command.split(" ")]
        main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)


def ended(child: int) -> int:
    """Its exit code; the negative number of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def content(folder: Path) -> dict[str, str]:
    """The results below a folder: what must not differ. Times and machines are left out."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".npy" or path.name in ("head.safetensors", "scores.csv"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif path.name.endswith(".nii.gz"):
            found[name] = hashlib.sha256(np.asarray(nib.load(path).dataobj).tobytes()).hexdigest()
    return found


def typed(command: str, out: Path, there: dict[str, Path]) -> str:
    return (
        command.replace("DATA", str(there["data"]))
        .replace("RUN", str(there["run"]))
        .replace("GRID", str(there["folder"] / "study.toml"))
        .replace("OUT", str(out))
    )


@pytest.fixture(scope="module")
def there(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("faults")
    data = make_phantom(folder / "data", patients=4, size=48, slices=3)
    # One thread: others would wait for the processors that the tests beside this one use.
    (folder / "study.toml").write_text("threads = 1\n")
    found = {"data": data, "run": folder / "undisturbed" / "run", "folder": folder}
    assert ended(start(typed(COMMANDS["train"], folder / "undisturbed", found))) == 0
    return found


def undisturbed(name: str, there: dict[str, Path]) -> tuple[dict[str, str], float]:
    """What a command gives, and how long it takes."""
    out, begun = there["folder"] / f"plain-{name}", time.monotonic()
    assert ended(start(typed(COMMANDS[name], out, there))) == 0
    return content(out), time.monotonic() - begun


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_random_moments(name, there, tmp_path):
    """`kill -9`; then the same command again."""
    expected, seconds = undisturbed(name, there)
    assert expected
    draw, killed = random.Random(name), 0
    for number in range(MOMENTS[name]):
        out = tmp_path / str(number)
        command = typed(COMMANDS[name], out, there)
        child = start(command)
        time.sleep(seconds * (number + draw.random()) / MOMENTS[name])
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        killed += ended(child) == -signal.SIGKILL
        assert ended(start(command)) == 0, number
        assert content(out) == expected, number
        left = [path for path in out.rglob("*") if files.is_leftover(path)]
        assert len(left) <= 1, left  # one may stand in a folder that is not written to again
    assert killed > MOMENTS[name] // 2


def test_two_processes_encode_into_one_store(there, tmp_path):
    expected, _ = undisturbed("encode", there)
    children = [start(typed(COMMANDS["encode"], tmp_path, there)) for _ in range(3)]
    assert [ended(child) for child in children] == [0, 0, 0]
    assert content(tmp_path) == expected


@contextlib.contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("kilobytes", [24, 400])
def test_a_full_disk(name, kilobytes, there, tmp_path, capfd, monkeypatch):
    """One line says it, and with room the same command gives what it would have given."""
    monkeypatch.setenv("SHOW_FAULTS", "1")
    with mounted(tmp_path / "small", f"size={kilobytes}k") as small:
        command = typed(COMMANDS[name], small, there)
        code = ended(start(command))
        said = capfd.readouterr().err
        assert code == 0 or ("No space left on device" in said and "Traceback" not in said), said
        left = [path for path in small.rglob("*") if files.is_leftover(path)]
        assert not left
        subprocess.run(["mount", "-o", "remount,size=200m", small], check=True)
        assert code == 0 or ended(start(command)) == 0, capfd.readouterr().err
        found = content(small)
    assert found == undisturbed_once(name, there)


def undisturbed_once(name: str, there: dict[str, Path]) -> dict[str, str]:
    out = there["folder"] / f"plain-{name}"
    return content(out) if out.is_dir() else undisturbed(name, there)[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_cannot_be_written_to(name, there, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("SHOW_FAULTS", "1")
    with mounted(tmp_path / "fixed", "size=1m,ro") as fixed:
        assert ended(start(typed(COMMANDS[name], fixed, there))) == 2
        said = capfd.readouterr().err
        assert "cannot be written to (Read-only file system)" in said and "Traceback" not in said, said


def test_data_in_a_folder_that_cannot_be_written_to(there, tmp_path):
    """Nothing is written beside the data."""
    with mounted(tmp_path / "fixed", "size=8m") as fixed:
        make_phantom(fixed / "data", patients=4, size=48, slices=3)
        subprocess.run(["mount", "-o", "remount,ro", fixed], check=True)
        own = {**there, "data": fixed / "data"}
        assert ended(start(typed(COMMANDS["train"], tmp_path / "o", own))) == 0
        assert content(tmp_path / "o" / "run") == content(there["run"])


def test_a_file_that_changes_while_it_is_learned_from_stops_the_training(there, tmp_path, monkeypatch):
    """What was recorded of the data would not be what the model has seen."""
    from samadapt.features import MapSpec, Pairs
    from samadapt.learner import Learner
    from samadapt.training import TrainConfig, loop, train
    from samadapt.types import SamAdaptError

    data = open_dataset(make_phantom(tmp_path / "data", patients=3, size=48, slices=3))
    file = data.entries[0].labels[0]
    learner = Learner("unet", encoder="pixels", side=64, options={"width": 4})
    updated = loop.StepLoop.update

    def update(self, *inputs, **options):
        if self.step == 2:
            case = data.case(data.ids[0])
            io.write_label(file, io.read_label(file, case) * 0, case)
        return updated(self, *inputs, **options)

    monkeypatch.setattr(loop.StepLoop, "update", update)
    model = learner.build(4)
    pairs = Pairs(data[[data.ids[0]]], learner.maps(model.head.reads, data.window))
    with pytest.raises(SamAdaptError, match="was changed while the model learned from it"):
        train(model, pairs, config=TrainConfig(steps=4, device="cpu"), out=tmp_path / "run")
    assert not (tmp_path / "run" / "head.safetensors").exists() and isinstance(pairs.maps, MapSpec)
