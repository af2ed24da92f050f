"""Work on a Ray cluster: scores, maps and label maps are those of one process, to the last digit, whatever is lost on the way."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from cluster_studies import CONFIG, FUSED, UNET, files_of, fragile, make_pictures, study
from ray_machines import below, listening, words_of
from samadapt.answering import Output, PredictJob
from samadapt.cluster import Cluster, connect, connection
from samadapt.cluster.spread import _shards
from samadapt.cluster.worker import EncodeWorker, Home, PredictWorker, keys_of, sizes_of, work_on_cell
from samadapt.datasets import open_dataset
from samadapt.experiment import Grid, Study, TrainedMethod
from samadapt.experiment.grid import make_cells
from samadapt.features import FeatureStore
from samadapt.files import demand_writable, marker
from samadapt.folders import predict_folder
from samadapt.inputs import NO_SPLIT, Taken, find_inputs
from samadapt.learner import Learner, encode, fit
from samadapt.phantom import make_phantom
from samadapt.postprocessing import Postprocessing
from samadapt.prediction import load_run
from samadapt.settings import CellOptions, PredictOptions, RayOptions
from samadapt.types import SamAdaptError

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_phantom(tmp_path_factory.mktemp("phantom") / "data", patients=5, size=48, slices=3)


@pytest.fixture(scope="module")
def data(folder):
    return open_dataset(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("pictures") / "data", 60)


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


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    data = open_dataset(folder)
    return fit(FUSED, data, data.split(1), dataclasses.replace(CONFIG, steps=2), out)


def test_a_worker_with_another_model_or_other_scans_refuses(run, folder, tmp_path):
    """Its answers would stand under the hash of the driver's model."""
    copy, scans = (
        shutil.copytree(run, tmp_path / "run"),
        shutil.copytree(folder / "imagesTr", tmp_path / "scans"),
    )
    cases, _ = find_inputs(scans, load_run(copy, "cpu").opening, NO_SPLIT, None, Taken())
    job = PredictJob((copy,), "cpu", None, Postprocessing(), Output(PredictOptions()), tmp_path / "out")
    with marker(tmp_path) as mark:
        fixed = Home.of_driver(mark), job, job.identity(), cases, sizes_of(cases), 1
        PredictWorker(*fixed).ready()
        with open(cases[0].files[0], "ab") as file:
            file.write(b"x")
        with pytest.raises(SamAdaptError, match=r"has other files of case .* than the driver"):
            PredictWorker(*fixed).work(range(1))
        head = copy / "head.safetensors"
        save_file({name: x * 1.01 for name, x in load_file(head).items()}, head)
        with pytest.raises(SamAdaptError, match=r"has another model in .* than the driver"):
            PredictWorker(*fixed).ready()


def test_label_maps_outlive_a_first_shard_that_is_lost(run, folder, tmp_path):
    """Shards end in any order; what later ones have written is kept, and the same command goes on."""
    scans = folder / "imagesTr"

    def spread(job, cases, together):
        list(job.answer(job.load(), cases[1:]))
        raise SamAdaptError("the worker was lost")
        yield

    with pytest.raises(SamAdaptError, match="was lost"):
        predict_folder(run, scans, tmp_path / "out", spread=spread)
    kept = sorted((tmp_path / "out").glob("*.nii.gz"))
    assert kept
    changed = {path: path.stat().st_mtime_ns for path in kept}
    report = predict_folder(run, scans, tmp_path / "out")
    assert report.done == len(kept) + 1 and {path: path.stat().st_mtime_ns for path in kept} == changed


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


def test_a_folder_of_results_at_a_url_is_refused(tmp_path, monkeypatch):
    """Else there would be a folder `s3:` here, and nothing in the bucket."""
    monkeypatch.chdir(tmp_path)
    for url in ("s3://bucket/maps", Path("s3://bucket/maps"), "gs://bucket", "file:///maps"):
        with pytest.raises(SamAdaptError, match=r"--out .* looks like a URL"):
            demand_writable(url, "--out")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- on a cluster of this machine: two processes


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[Cluster]:
    if find_spec("ray") is None:
        pytest.skip("ray is not installed: pip install 'samadapt[cluster]'")
    home = Path.home() / ".ray"
    before = home.exists()
    with connect("local", "cpu", cores=2) as found:
        yield found
        started = below(os.getpid())
        (logs,) = {
            word.partition("=")[2]
            for each in started
            for word in words_of(each)
            if word.startswith("--log_dir=")
        }
        assert Path(logs).is_dir()
    assert not Path(logs).parents[1].exists() and home.exists() == before
    limit = time.monotonic() + 10
    while (left := [each for each in started if words_of(each)]) and time.monotonic() < limit:
        time.sleep(0.1)
    assert not left


def test_a_cluster_of_this_machine_is_reached_from_this_machine_alone(ray_cluster):
    assert listening(below(os.getpid())) == []
    assert ray_cluster.description == "Ray cluster of 1 machine with 2 cores (cpu)"


def test_a_study_on_a_cluster_gives_what_one_process_gives(data, tmp_path, ray_cluster):
    learners = {
        "fused": TrainedMethod(FUSED),
        "unet": TrainedMethod(UNET),
        "broken": TrainedMethod(dataclasses.replace(FUSED, checkpoint=str(tmp_path / "missing.pth"))),
    }
    few = {"learners": learners, "labels": (1,)}
    here, _ = study(data, tmp_path / "here", **few)
    maps = ray_cluster.store(tmp_path / "maps")
    there, said = study(data, tmp_path / "there", ray_cluster, store=maps, **few)
    assert here.done == there.done == 2
    assert here.failed == there.failed and len(there.failed) == 1
    assert files_of(tmp_path / "here", "scores.csv") == files_of(tmp_path / "there", "scores.csv")
    assert files_of(tmp_path / "here_maps", "*.npy") == files_of(tmp_path / "maps", "*.npy")
    failures = files_of(tmp_path / "there", "failed.json")
    assert len(failures) == 1 and "missing.pth" in json.loads(next(iter(failures.values())))["message"]
    assert any("on the Ray cluster, 1 thread each" in line for line in said)
    assert any(line.startswith("[3/3] ") for line in said)
    assert not [path for path in tmp_path.rglob(".*")]
    again, _ = study(data, tmp_path / "there", ray_cluster, store=maps, **few)
    assert again.found == 2 and again.failed == there.failed


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


def test_work_of_a_lost_worker_is_done_by_another(tmp_path, ray_cluster):
    shards = [(str(tmp_path / "a"), "1"), (str(tmp_path / "b"), "0")]
    assert sorted(fragile(ray_cluster, shards)) == [(shards[0], 1), (shards[1], 0)]


@needs_ray
def test_a_cluster_that_does_not_answer_is_an_error():
    for address, problem in (
        ("127.0.0.1:1", "no Ray cluster answers at --ray 127.0.0.1:1: "),
        ("here", "--ray here is no address"),
    ):
        with pytest.raises(SamAdaptError, match=f"{problem}.*ray start --head"), connect(address):
            pass
