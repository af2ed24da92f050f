"""Studies, encoding and prediction on two machines of a Ray cluster, at length, while workers are killed (make test-slow; -s shows the numbers)."""

from __future__ import annotations

import dataclasses
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

import pytest
from benchmarks.cluster import cell_cost, encode_cost

from cluster_studies import CONFIG, FUSED, files_of, fragile, make_pictures, study
from ray_machines import Machines, below, listening, machines, namespaces
from samadapt.cluster import Cluster, connect
from samadapt.cluster.tasks import RETRIES
from samadapt.datasets import open_dataset
from samadapt.features import FeatureStore
from samadapt.folders import predict_folder
from samadapt.learner import Learner, encode, fit
from samadapt.phantom import make_phantom
from samadapt.types import SamAdaptError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_phantom(tmp_path_factory.mktemp("phantom") / "data", patients=5, size=48, slices=3)


@pytest.fixture(scope="module")
def data(folder):
    return open_dataset(folder)


@pytest.fixture(scope="module")
def two() -> Iterator[Machines]:
    """Two machines of one core each, on this host."""
    if find_spec("ray") is None:
        pytest.skip("ray is not installed: pip install 'samadapt[cluster]'")
    with machines([1, 1]) as found, pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED"):
            patch.setenv(name, found.environment[name])
        from ray._private import services  # not before: it reads the environment

        patch.setattr(services, "resolve_ip_for_localhost", lambda host: host)  # as in ray_machines
        yield found


@pytest.fixture(scope="module")
def ray_cluster(two) -> Iterator[Cluster]:
    with connect(two.address) as found:
        yield found


def test_two_machines_are_reached_from_this_host_alone(two, ray_cluster):
    assert listening([each for root in two.roots for each in (root, *below(root))]) == []
    assert "of 2 machines with 2 cores" in ray_cluster.description


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


def test_work_of_a_lost_worker_is_done_by_another(ray_cluster, tmp_path):
    shards = [(str(tmp_path / f"{n}"), str(n % 2 * 2)) for n in range(5)]
    assert sorted(fragile(ray_cluster, shards)) == [(shard, int(shard[1])) for shard in shards]


def test_work_that_kills_every_worker_ends_with_an_error(ray_cluster, tmp_path):
    with pytest.raises(
        SamAdaptError, match=r"the test of 2 cases failed: its process died 4 times \(out of memory\?"
    ):
        fragile(ray_cluster, [(str(tmp_path / "a"), "99")])
    assert len((tmp_path / "a").read_text()) == RETRIES + 1


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


def test_what_a_task_costs(data, tmp_path, ray_cluster):
    """Cells that are done already: all that is left of a task is what it costs to send it, to check the machine, and to answer."""
    times = {number: cell_cost(ray_cluster, data, tmp_path, number) for number in (100, 1000)}
    each = ", ".join(f"{1000 * value:.2f} ms with {number}" for number, value in times.items())
    print(f"\noverhead of a cell on two workers: {each}")
    print(
        f"an encode of {len(data)} cases that are all there: {encode_cost(ray_cluster, data, tmp_path):.2f} s"
    )
    assert times[1000] < 0.1


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
