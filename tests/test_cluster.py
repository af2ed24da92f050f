"""Work on a Ray cluster: scores, maps and label maps are those of one process, to the last digit, whatever is lost on the way."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ray_machines import Machines, machines, namespaces
from samadapt.cluster import Cluster, connect, connection
from samadapt.cluster.spread import _shards
from samadapt.cluster.tasks import RETRIES
from samadapt.cluster.worker import EncodeWorker, Home, keys_of, work_on_cell
from samadapt.datasets import open_dataset
from samadapt.experiment import Grid, Study, TrainedMethod, run_part
from samadapt.experiment.grid import make_cells
from samadapt.features import FeatureStore
from samadapt.files import marker
from samadapt.folders import predict_folder
from samadapt.learner import Learner, encode, fit
from samadapt.phantom import make_phantom
from samadapt.settings import CellOptions, RayOptions
from samadapt.training import TrainConfig
from samadapt.types import SamAdaptError

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")
CONFIG = TrainConfig(steps=3, batch_size=2, check_every=1, device="cpu", precision="32")
FUSED = Learner("fused", "sam_nano", "random", side=64, views=2)
UNET = Learner("unet", "pixels", side=32, options={"width": 2})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_phantom(tmp_path_factory.mktemp("phantom") / "data", patients=5, size=48, slices=3)


@pytest.fixture(scope="module")
def data(folder):
    return open_dataset(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("pictures") / "data", 60)


def make_pictures(folder: Path, number: int) -> Path:
    """Two folders, one for each class."""
    rng = np.random.default_rng(0)
    for n in range(number):
        place = folder / ("dark", "bright")[n % 2]
        place.mkdir(parents=True, exist_ok=True)
        picture = rng.integers(0, 120, (28, 28)) + 100 * (n % 2)
        Image.fromarray(picture.astype(np.uint8)).save(place / f"{n:05d}.png")
    return folder


def files_of(folder: Path, pattern: str) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob(pattern))}
    assert found
    return found


def study(
    data, out: Path, executor=None, learners=None, labels=(1, 2), seeds=(0,), config=CONFIG, store=None
):
    grid = Grid(learners or {"fused": TrainedMethod(FUSED), "unet": TrainedMethod(UNET)}, labels, seeds, threads=1)  # fmt: skip
    store = store or FeatureStore(out.with_name(f"{out.name}_maps"))
    said: list[str] = []
    return run_part(data, grid, config, out, store, CellOptions(), said.append, executor=executor), said


# ---------------------------------------------------------------- without Ray: what a worker refuses, how work is cut


def test_a_worker_that_does_not_see_the_driver_s_folders_refuses(tmp_path, monkeypatch):
    with marker(tmp_path) as mark:
        home = Home.of_driver(mark)
        home.enter()
        with pytest.raises(
            SamAdaptError, match=r"has torch .* and the driver 0\.1; the numbers could differ"
        ):
            dataclasses.replace(home, packages={"torch": "0.1"}).enter()
        with pytest.raises(SamAdaptError, match=r"has no folder .*nowhere, where the driver was started"):
            dataclasses.replace(home, folder=tmp_path / "nowhere").enter()
    assert not list(tmp_path.iterdir())
    with pytest.raises(
        SamAdaptError, match=r"does not see .* as the driver does; expected a folder on a file system"
    ):
        home.enter()


def test_a_worker_with_other_files_or_weights_refuses(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "data")
    data = open_dataset(copy)
    assert data.hash
    grid = Grid({"fused": TrainedMethod(FUSED)}, (1,), (0,))
    (cell,) = make_cells(data, grid, CONFIG)
    the_study = Study(data, tmp_path / "out", FeatureStore(tmp_path / "maps"))
    with marker(tmp_path) as mark:
        home = Home.of_driver(mark)
        with pytest.raises(SamAdaptError, match="has other weights of encoder 'sam_nano' than the driver"):
            work_on_cell(home, the_study, cell, "cpu", "other weights", "run")
        victim = sorted(copy.rglob("*.nii.gz"))[0]
        victim.write_bytes(victim.read_bytes() + b"\0")
        from samadapt.cluster import worker

        worker._checked.clear()  # as in a fresh process
        with pytest.raises(SamAdaptError, match=r"has other files in .*data than the driver"):
            work_on_cell(home, the_study, cell, "cpu", None, "run")
        maps = FUSED.maps({"neck": 1}, data.window)
        fixed = home, data, maps, ("other",), tmp_path, "cpu", 1
        with pytest.raises(SamAdaptError, match="its maps would be stored under"):
            EncodeWorker(*fixed).ready()
    assert not (tmp_path / "out").exists()


def test_an_encoder_is_loaded_once_for_all_shards_of_a_worker(data, tmp_path, monkeypatch):
    maps = FUSED.maps({"neck": 1}, data.window)
    loads, load = [], type(maps.encoder).load
    monkeypatch.setattr(type(maps.encoder), "load", lambda *a, **k: loads.append(1) or load(*a, **k))
    with marker(tmp_path) as mark:
        worker = EncodeWorker(Home.of_driver(mark), data, maps, keys_of(maps), tmp_path / "maps", "cpu", 1)
        worker.ready()
        reports = [worker.work((case,))[0] for case in data.ids[:3]]
    assert [report.written for report in reports] == [1, 1, 1] and len(loads) == 1


def test_shards_keep_the_order_and_cut_no_batch():
    assert _shards(tuple("abcde"), 1) == [("a",), ("b",), ("c",), ("d",), ("e",)]
    shards = _shards(range(2000), 2, 16)
    assert [n for shard in shards for n in shard] == list(range(2000))
    assert {len(shard) for shard in shards[:-1]} == {128}
    assert max(map(len, _shards(range(10**6), 2))) == 256


def test_work_that_fits_on_no_machine_is_refused():
    few = Cluster("cpu", 1, [{"CPU": 4.0}, {"CPU": 3.0}, {}])
    assert [few.room(n) for n in (1, 2, 3, 4)] == [7, 3, 2, 1]
    with pytest.raises(SamAdaptError, match=r"a worker takes 5 cores, and no machine .* \(at most 4 cores\)"):
        few.room(5)
    gpus = Cluster("cuda", 1, [{"CPU": 4.0, "GPU": 2.0}, {"CPU": 8.0}])
    assert gpus.room(1) == 2
    with pytest.raises(SamAdaptError, match="a worker takes 8 cores and a GPU"):
        gpus.room(8)


def test_what_does_not_go_together_is_refused(monkeypatch):
    with pytest.raises(SamAdaptError, match="--jobs 2 is for cells side by side on this machine"):
        CellOptions(jobs=2).demand_fits(RayOptions("auto"))
    monkeypatch.setattr(connection, "find_spec", lambda name: None)
    with (
        pytest.raises(SamAdaptError, match=r"needs the package ray.*pip install 'samadapt\[cluster\]'"),
        connect("auto"),
    ):
        pass
    nodes = [{"CPU": 2.0}]
    assert connection._device("auto", nodes, "x") == "cpu"
    assert connection._device("auto", [*nodes, {"GPU": 1.0}], "x") == "cuda"
    for asked, problem in (
        ("cuda", "no machine of the Ray cluster at x has a GPU"),
        ("tpu", "unknown device"),
    ):
        with pytest.raises(SamAdaptError, match=problem):
            connection._device(asked, nodes, "x")


# ---------------------------------------------------------------- on two machines of one core each


@pytest.fixture(scope="module")
def two(request) -> Iterator[Machines]:
    if find_spec("ray") is None:  # to import it would be too early: it reads the environment then
        pytest.skip("ray is not installed")
    with machines([1, 1]) as found, pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED"):
            patch.setenv(name, found.environment[name])
        yield found


@pytest.fixture(scope="module")
def ray_cluster(two) -> Iterator[Cluster]:
    with connect(two.address) as found:
        yield found


def test_a_study_on_two_machines_gives_what_one_process_gives(data, tmp_path, ray_cluster):
    learners = {
        "fused": TrainedMethod(FUSED),
        "unet": TrainedMethod(UNET),
        "broken": TrainedMethod(dataclasses.replace(FUSED, checkpoint=str(tmp_path / "missing.pth"))),
    }
    here, _ = study(data, tmp_path / "here", learners=learners)
    there, said = study(
        data, tmp_path / "there", ray_cluster, learners, store=ray_cluster.store(tmp_path / "maps")
    )
    assert here.done == there.done == 4
    assert here.failed == there.failed and len(there.failed) == 2
    assert files_of(tmp_path / "here", "scores.csv") == files_of(tmp_path / "there", "scores.csv")
    assert files_of(tmp_path / "here_maps", "*.npy") == files_of(tmp_path / "maps", "*.npy")
    failures = files_of(tmp_path / "there", "failed.json")
    assert len(failures) == 2 and "missing.pth" in json.loads(next(iter(failures.values())))["message"]
    assert any("on the Ray cluster, 1 threads each" in line for line in said)
    assert any(line.startswith("[6/6] ") for line in said)
    assert not [path for path in tmp_path.rglob(".*")]
    again, _ = study(
        data, tmp_path / "there", ray_cluster, learners, store=ray_cluster.store(tmp_path / "maps")
    )
    assert again.found == 4 and again.failed == there.failed


def test_pictures_are_encoded_and_predicted_as_by_one_process(pictures, tmp_path, ray_cluster):
    data = open_dataset(pictures)
    probe = Learner("linear_probe", "sam_nano", "random", side=64, views=2)
    here, there = FeatureStore(tmp_path / "here"), ray_cluster.store(tmp_path / "there")
    one, other = (encode(probe, data, store, "cpu") for store in (here, there))
    assert (one.cases, one.written, one.slices, one.bytes) == (
        other.cases,
        other.written,
        other.slices,
        other.bytes,
    )
    assert files_of(here.root, "*.npy") == files_of(there.root, "*.npy")
    assert encode(probe, data, there, "cpu").written == 0
    run = fit(probe, data, data.split(labels=10, seed=0), CONFIG, tmp_path / "run")
    (pictures / "dark" / "00000.png").rename(tmp_path / "kept.png")
    try:
        (pictures / "dark" / "00000.png").write_bytes(b"no picture")
        one = predict_folder(run, pictures / "dark", tmp_path / "one", device="cpu", pictures=True)
        other = predict_folder(
            run,
            pictures / "dark",
            tmp_path / "other",
            device="cpu",
            pictures=True,
            spread=ray_cluster.predict,
        )
    finally:
        shutil.move(tmp_path / "kept.png", pictures / "dark" / "00000.png")
    assert one.failed == other.failed and list(one.failed) == ["00000"] and one.done == other.done == 29
    assert len(files_of(tmp_path / "other", "pictures/*.png")) == 29
    rows = [(tmp_path / name / "predictions.csv").read_text().splitlines() for name in ("one", "other")]
    assert [row.split(",")[:3] for row in rows[0]] == [row.split(",")[:3] for row in rows[1]]


def test_volumes_are_predicted_as_by_one_process(data, folder, tmp_path, ray_cluster):
    split = data.split(labels=1, seed=0)
    for seed in (0, 1):
        fit(FUSED, data, split, dataclasses.replace(CONFIG, seed=seed), tmp_path / "runs" / f"{seed}")
    options = {"device": "cpu", "subset": "all", "probabilities": True}
    for run, name in ((tmp_path / "runs" / "0", "one"), (tmp_path / "runs", "both")):
        here, there = tmp_path / f"{name}_here", tmp_path / f"{name}_there"
        predict_folder(run, folder, here, **options)
        predict_folder(run, folder, there, **options, spread=ray_cluster.predict)
        for pattern in ("*.nii.gz", "*.json") if name == "one" else ("*.nii.gz", "*.csv"):
            assert files_of(here, pattern) == files_of(there, pattern)
    assert files_of(tmp_path / "one_here", "*.npy") == files_of(tmp_path / "one_there", "*.npy")


class Fragile:
    """A worker that dies as often as its first case says."""

    def ready(self) -> None: ...

    def work(self, shard: tuple[str, ...]) -> tuple[int, str]:
        file, times = Path(shard[0]), int(shard[1])
        deaths = len(file.read_text()) if file.is_file() else 0
        if deaths < times:
            file.write_text("x" * (deaths + 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return deaths, "a processor"


@pytest.fixture
def fragile(ray_cluster):
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    yield lambda shards: list(ray_cluster._results("the test", Fragile, (), shards))
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_work_of_a_lost_worker_is_done_by_another(fragile, tmp_path):
    shards = [(str(tmp_path / f"{n}"), str(n % 2 * 2)) for n in range(5)]
    assert sorted(fragile(shards)) == [(shard, int(shard[1])) for shard in shards]


def test_work_that_kills_every_worker_ends_with_an_error(fragile, tmp_path):
    with pytest.raises(
        SamAdaptError, match=r"the test of 2 cases failed: its process died 4 times \(out of memory\?"
    ):
        fragile([(str(tmp_path / "a"), "99")])
    assert len((tmp_path / "a").read_text()) == RETRIES + 1


@needs_ray
def test_a_cluster_that_does_not_answer_is_an_error():
    for address, problem in (
        ("127.0.0.1:1", "no Ray cluster answers at --ray 127.0.0.1:1: "),
        ("here", "--ray here is no address"),
    ):
        with pytest.raises(SamAdaptError, match=f"{problem}.*ray start --head"), connect(address):
            pass


# ---------------------------------------------------------------- at length, with numbers (make test-slow; -s shows them)


class Killer(threading.Thread):
    """Kills the process that computes, so many times, each time on another machine where there are several.

    Args:
        ready: whether it may begin.
    """

    def __init__(self, on: Machines, times: int, ready: Callable[[], bool] = lambda: True) -> None:
        super().__init__(daemon=True)
        self.on, self.times, self.ready = on, times, ready
        self.killed: list[tuple[int, str]] = []
        self.worked: set[int] = set()  # machines that computed something
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.3):
            busy = self.on.busy()
            self.worked |= {machine for machine, _ in busy}
            fresh = [each for each in busy if each[0] not in {machine for machine, _ in self.killed}] or busy
            if len(self.killed) < self.times and fresh and self.ready():
                machine, process = fresh[0]
                title = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")[0].decode()
                os.kill(process, signal.SIGKILL)
                self.killed.append((machine, title))

    def __enter__(self) -> Killer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.join()


LONG = dataclasses.replace(CONFIG, steps=30, check_every=5)
CELLS = {"labels": (1, 2), "seeds": (0, 1, 2, 3, 4, 5)}


def begun(out: Path, least: int = 0) -> Callable[[], bool]:
    """Whether cells are at work, and so many of them are done."""
    return lambda: any(out.glob("*/last.ckpt")) and len(list(out.glob("*/scores.csv"))) >= least


@pytest.mark.slow
def test_24_cells_are_equal_when_workers_are_killed(data, tmp_path, two, ray_cluster):
    start = time.monotonic()
    here, _ = study(data, tmp_path / "here", config=LONG, **CELLS)
    alone = time.monotonic() - start
    assert here.done == 24
    for kills in (0, 2):
        out, maps = tmp_path / f"there{kills}", ray_cluster.store(tmp_path / f"maps{kills}")
        start = time.monotonic()
        with Killer(two, kills, begun(out)) as killer:
            there, _ = study(data, out, ray_cluster, config=LONG, store=maps, **CELLS)
        took = time.monotonic() - start
        assert there.done == 24 and there.failed == {}
        assert len(killer.killed) == kills and killer.worked == {0, 1}
        assert files_of(tmp_path / "here", "scores.csv") == files_of(out, "scores.csv")
        print(f"\n24 cells: {alone:.1f} s in one process, {took:.1f} s on two; killed: {killer.killed}")


@pytest.mark.slow
def test_2000_pictures_are_equal_when_workers_are_killed(tmp_path, two, ray_cluster):
    data = open_dataset(make_pictures(tmp_path / "data", 2000))
    probe = Learner("linear_probe", "sam_nano", "random", side=64, views=1, augment="none")
    here, there = FeatureStore(tmp_path / "here"), ray_cluster.store(tmp_path / "there")
    one = encode(probe, data, here, "cpu")
    with Killer(two, 2, lambda: any(there.root.glob("*/*/frame.json"))) as killer:
        other = encode(probe, data, there, "cpu")
    assert (one.cases, one.slices) == (other.cases, 2000) == (2000, 2000) and len(killer.killed) == 2
    assert files_of(here.root, "*.npy") == files_of(there.root, "*.npy")
    run = fit(probe, data, data.split(labels=10, seed=0), CONFIG, tmp_path / "run")
    options = {"device": "cpu", "subset": "all"}
    predict_folder(run, tmp_path / "data", tmp_path / "one", **options)
    with Killer(two, 2) as predicting:
        predict_folder(run, tmp_path / "data", tmp_path / "other", **options, spread=ray_cluster.predict)
    rows = [(tmp_path / name / "predictions.csv").read_bytes() for name in ("one", "other")]
    assert rows[0] == rows[1] and len(rows[0].splitlines()) == 2001
    print(f"\n2000 pictures: {one.seconds:.1f} s in one process, {other.seconds:.1f} s on two")
    print(f"killed: {killer.killed} while encoding, {predicting.killed} while predicting")


@pytest.mark.slow
def test_what_a_task_costs(data, tmp_path, ray_cluster):
    """Cells that are done already: all that is left of a task is what it costs to send it, to check the machine, and to answer."""
    learners = {"unet": TrainedMethod(UNET)}
    study(data, tmp_path / "out", learners=learners, labels=(1,))
    cells = make_cells(data, Grid(learners, (1,), (0,), threads=1), CONFIG)
    the_study = Study(data, (tmp_path / "out").absolute(), FeatureStore(tmp_path / "maps"))
    list(ray_cluster.run(the_study, cells * 4))  # the workers are there now
    times = {}
    for number in (100, 1000):
        start = time.monotonic()
        assert {result for _, result in ray_cluster.run(the_study, cells * number)} == {"done"}
        times[number] = (time.monotonic() - start) / number
    each = ", ".join(f"{1000 * value:.2f} ms with {number}" for number, value in times.items())
    print(f"\noverhead of a cell on two workers: {each}")
    maps = FUSED.maps({"neck": 1}, data.window)
    ray_cluster.encode(tmp_path / "maps", data, maps, None)
    start = time.monotonic()
    assert ray_cluster.encode(tmp_path / "maps", data, maps, None).written == 0
    print(
        f"an encode of {len(data)} cases that are all there: {time.monotonic() - start:.2f} s, the start of two workers included"
    )
    assert times[1000] < 0.1


@pytest.mark.slow
def test_two_machines_in_network_namespaces(folder, tmp_path):
    """The command itself, on machines that see each other through a network alone; one worker of each is killed."""
    if find_spec("ray") is None or shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs ray, and root with the command ip (iproute2) to make network namespaces")
    grid = tmp_path / "grid.toml"
    grid.write_text(
        'labels = [1, 2]\nseeds = 6\nthreads = 1\nlearners = ["fused", "unet"]\n[encoder]\nencoder = "sam_nano"\ncheckpoint = "random"\n'
        'side = 64\nviews = 2\n[train]\nsteps = 30\nbatch_size = 2\ncheck_every = 5\nprecision = "32"\n'
    )
    names = [f"samadapt{os.getpid()}{letter}" for letter in "ab"]

    def command(out: str, *more: str) -> list[str]:
        words = ["experiment", str(folder), "--grid", str(grid), "--out", str(tmp_path / out)]
        return [sys.executable, "-m", "samadapt.cli", *words, "--store", str(tmp_path / f"{out}_maps"), *more]

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command("here"), check=True, env=environment, capture_output=True)
    with (
        namespaces(names),
        machines([1, 1], names) as found,
        Killer(found, 2, begun(tmp_path / "there")) as killer,
    ):
        ran = subprocess.run(
            [*found.prefix, *command("there", "--ray", found.address)],
            env=found.environment,
            capture_output=True,
            text=True,
        )
    assert ran.returncode == 0, ran.stderr
    assert "Ray cluster of 2 machines with 2 cores (cpu)" in ran.stdout and "[24/24]" in ran.stdout
    assert killer.worked == {0, 1} and len(killer.killed) == 2
    assert files_of(tmp_path / "here", "scores.csv") == files_of(tmp_path / "there", "scores.csv")
    assert files_of(tmp_path / "here_maps", "*.npy") == files_of(tmp_path / "there_maps", "*.npy")
    print(f"\ntwo network namespaces, killed: {killer.killed}")
