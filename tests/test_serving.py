"""`samadapt serve`: answers as `predict` gives them, refusals in its words, and nothing that is kept."""

# ruff: noqa: E402  # what is imported below needs what may be missing
from __future__ import annotations

import gzip
import io as streams
import json
import logging
import os
import shutil
import socket
import stat
import threading
import time
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
    pytest.importorskip(package)

import dicoms
from fakes import two_class_archive
from samadapt import folders
from samadapt.datasets import open_dataset
from samadapt.files import scratch_folder
from samadapt.io.dicom.headers import silent
from samadapt.learner import Learner, fit
from samadapt.prediction import load_run
from samadapt.serving import app as serving_app
from samadapt.serving import door, engine, guard, pages, uploads
from samadapt.serving.answers import Answer
from samadapt.serving.client import Client, ServerError, nifti_bytes
from samadapt.serving.engine import Engine
from samadapt.serving.models import load_models
from samadapt.serving.options import ServeOptions, is_local, read_token
from samadapt.serving.uploads import safe_name
from samadapt.settings import TrainConfig
from samadapt.types import SamAdaptError
from serving import form, running, until

QUICK = {"batch_size": 4, "device": "cpu", "precision": "32", "warmup": 0.0, "ema": 0.0}
SECRET = "a-token-of-some-length"


def train(data: Path, out: Path, head: str, steps: int = 12, **more) -> Path:
    opened = open_dataset(data)
    learner = Learner(head, **{"encoder": "sam_nano", "side": 64, "augment": "none", "views": 0, **more})
    return fit(learner, opened, opened.split(labels=None, seed=0), TrainConfig(steps=steps, **QUICK), out)


def pair_of(run: Path, out: Path) -> Path:
    """A folder of two runs whose heads differ, as if both had been trained."""
    for number in range(2):
        copy = Path(shutil.copytree(run, out / str(number)))
        weights = load_file(copy / "head.safetensors")
        noise = torch.Generator().manual_seed(number)
        changed = {
            name: value * (1 + 0.1 * number * torch.rand(value.shape, generator=noise))
            if value.is_floating_point()
            else value
            for name, value in weights.items()
        }
        with safe_open(copy / "head.safetensors", "pt") as file:
            save_file(changed, copy / "head.safetensors", file.metadata())
    return out


@pytest.fixture(scope="module")
def segments(phantom, tmp_path_factory) -> Path:
    return train(phantom, tmp_path_factory.mktemp("runs") / "heart", "fused")


@pytest.fixture(scope="module")
def classifies(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    two_class_archive(folder / "two.npz")
    return train(folder / "two.npz", folder / "photos", "attentive_probe")


@pytest.fixture(scope="module")
def models(segments, classifies):
    return load_models([segments, classifies], "cpu")


@pytest.fixture(scope="module")
def served(models):
    with running(models) as found:
        yield found


@pytest.fixture(scope="module")
def scan(phantom) -> Path:
    return sorted((phantom / "imagesTr").glob("*.nii.gz"))[0]


@pytest.fixture(scope="module")
def predicted(segments, scan, tmp_path_factory) -> Path:
    """What `samadapt predict` writes for it."""
    out = tmp_path_factory.mktemp("predicted") / "out"
    folders.predict_folder(segments, scan, out, device="cpu", probabilities=True)
    return next(out.glob("*.nii.gz"))


def picture(seed: int, size: int = 28) -> tuple[str, bytes]:
    file = streams.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size), dtype=np.uint8)
    Image.fromarray(pixels).save(file, format="PNG")
    return f"photo{seed}.png", file.getvalue()


def volume(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 400, shape).astype(np.float32)


def zip_of(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> tuple[str, bytes]:
    file = streams.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return "scan.zip", file.getvalue()


def label_of(content: bytes) -> np.ndarray:
    return np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(content)).dataobj)


# ---------------------------------------------------------------- answers


def test_a_label_map_is_that_of_predict_byte_for_byte(served, scan, predicted):
    answer = served.post("/predict?model=heart", scan)
    assert answer.status == 200 and answer.headers["content-type"] == "application/gzip"
    assert answer.body == predicted.read_bytes()
    label = label_of(answer.body)
    assert (label > 0).sum() > 50  # a label map of nothing would be equal to anything
    voxel_ml = abs(np.linalg.det(nib.load(scan).affine[:3, :3])) / 1000
    for each in answer.about["volumes"]:
        assert each["voxels"] == (label == each["value"]).sum()
        assert each["ml"] == pytest.approx(each["voxels"] * voxel_ml, abs=1e-3)
    assert served.left_behind == []


def test_all_forms_of_a_segmenter_are_of_one_label_map(served, scan, predicted):
    label = np.asarray(nib.load(predicted).dataobj)
    array = np.load(streams.BytesIO(served.post("/predict?model=heart&output=npy", scan).body))
    assert array.dtype == np.uint8 and np.array_equal(array, label)
    probabilities = served.post("/predict?model=heart&output=probabilities", scan)
    name = predicted.name.replace(".nii.gz", ".npy")
    assert np.array_equal(np.load(streams.BytesIO(probabilities.body)), np.load(predicted.with_name(name)))
    said = served.post("/predict?model=heart&output=json", scan).json
    assert said["volumes"][0]["voxels"] == (label == 1).sum() and said["task"] == "segmentation"


def test_a_classifier_answers_as_alone(served, classifies):
    photo = picture(3)
    said = served.post("/predict?model=photos", photo).json
    alone = load_run(classifies, "cpu")
    path = served.server.folder / photo[0]
    path.write_bytes(photo[1])
    expected = alone.predict(path)
    path.unlink()
    assert list(said["probabilities"].values()) == pytest.approx(expected.tolist(), abs=1e-6)
    assert said["prediction"] == alone.classes[int(expected.argmax())]
    drawn = served.post("/predict?model=photos&output=png", photo)
    assert drawn.headers["content-type"] == "image/png" and drawn.about["prediction"] == said["prediction"]
    assert Image.open(streams.BytesIO(drawn.body)).size[0] > 200


def test_pictures_that_wait_together_pass_together_and_are_not_mixed_up(models, monkeypatch):
    photos = [picture(seed) for seed in range(20)]
    together: list[int] = []
    go_on = threading.Event()
    real = engine.answer_together

    def slow(jobs, folder):
        together.append(len(jobs))
        go_on.wait(20)
        real(jobs, folder)

    monkeypatch.setattr(engine, "answer_together", slow)
    with running(models, queue=30) as found:
        answers: dict[int, dict] = {}

        def ask(number):
            answers[number] = found.post("/predict?model=photos", photos[number]).json

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
        for thread in threads:
            thread.start()
        assert until(lambda: found.server.engine.waiting + sum(together) == 20)
        go_on.set()
        for thread in threads:
            thread.join()
        alone = [found.post("/predict?model=photos", photo).json for photo in photos]
    assert max(together) > 5
    for number in range(20):
        assert answers[number]["probabilities"] == pytest.approx(alone[number]["probabilities"], abs=1e-5)
    assert len({tuple(each["probabilities"].values()) for each in alone}) == 20


def test_a_dicom_series_comes_as_a_zip_and_goes_as_seg(served, tmp_path):
    pytest.importorskip("highdicom")
    import pydicom

    dicoms.series(
        tmp_path,
        np.random.default_rng(0).integers(0, 400, (3, 40, 48)).astype(np.int16),
        dicoms.set_all(Modality="MR"),
    )
    names = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    series = zip_of({f"Doe^Jane/series 7/{name}": content for name, content in names.items()})
    answer = served.post("/predict?model=heart&output=dicom-seg", series)
    assert answer.status == 200, answer.body
    assert pydicom.dcmread(streams.BytesIO(answer.body)).Modality == "SEG"
    nifti = served.post("/predict?model=heart", series)
    assert label_of(nifti.body).size == 3 * 40 * 48
    shown = served.post("/view?model=heart", series)
    assert label_of(shown.body).shape == label_of(nifti.body).shape
    scattered = zip_of({f"{n % 2}/{name}": content for n, (name, content) in enumerate(names.items())})
    assert "in 2 folders, " in served.post("/predict?model=heart", scattered).error
    assert served.left_behind == []


def test_a_picture_is_shown_as_png(served):
    tiff = streams.BytesIO()
    pixels = np.arange(28 * 28, dtype=np.uint8).reshape(28, 28)
    Image.fromarray(pixels).save(tiff, format="TIFF")
    shown = served.post("/view?model=photos", ("a.tif", tiff.getvalue()))
    assert np.array_equal(np.asarray(Image.open(streams.BytesIO(shown.body))), pixels)


def without_place(shape: tuple[int, ...]) -> bytes:
    """A NIfTI file that does not say where its voxels lie (codes of sform and qform 0)."""
    header = bytearray(gzip.decompress(nifti_bytes(volume(*shape), np.diag([1, 1, 5, 1]))))
    header[252:256] = bytes(4)
    return gzip.compress(bytes(header))


def test_what_was_assumed_is_told_to_the_sender_alone(models, scan, caplog):
    # A server of its own: pytest takes the warnings of each test, also from a server that was started in an earlier one.
    with caplog.at_level(logging.INFO), running(models) as found:
        said = found.post("/predict?model=heart", ("Doe_Jane.nii.gz", without_place((30, 30, 3))))
        other = found.post("/predict?model=heart", scan)
    (note,) = said.about["notes"]
    assert "stores no orientation" in note and other.about["notes"] == []
    assert "Doe" not in caplog.text and "orientation" not in caplog.text


def test_notes_come_also_after_others_were_silenced_side_by_side(models):
    """`warnings.catch_warnings` is the process's, so that of two blocks that overlap the last one leaves its filters."""
    inside, over = threading.Event(), threading.Event()

    def second() -> None:
        with silent():
            inside.set()
            over.wait(20)

    thread = threading.Thread(target=second)
    with running(models) as found:
        with silent():
            thread.start()
            assert inside.wait(20)
            during = found.post("/predict?model=heart", ("a.nii.gz", without_place((30, 30, 3))))
        over.set()
        thread.join()
        after = found.post("/predict?model=heart", ("a.nii.gz", without_place((30, 30, 3))))
    assert [len(each.about["notes"]) for each in (during, after)] == [1, 1]


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("query", "files", "status", "says"),
    [
        ("model=nobody", [picture(0)], 404, "there is no model 'nobody'; known: heart, photos"),
        ("", [picture(0)], 422, "no model is named"),
        ("model=heart&output=gif", [picture(0)], 422, "output is 'gif'; heart is a segmentation model"),
        ("model=photos&output=nifti", [picture(0)], 422, "photos is a classification model"),
        ("model=heart", [], 422, "no file was sent"),
        ("model=heart", [("a.txt", b"x")], 422, "a.txt is of no format that is read"),
        ("model=heart", [("a.nii.gz", b"")], 422, "a.nii.gz is empty"),
        ("model=heart", [("a.nii.gz", b"\x1f\x8b rubbish")], 422, "a.nii.gz cannot be read"),
        ("model=heart", [("../../../etc/a.nii.gz", b"x")], 422, "a.nii.gz cannot be read"),
        ("model=heart", [("", b"x")], 422, "a file was sent without a name"),
        ("model=photos", [picture(0), picture(1)], 422, "2 scans were sent ('photo0', 'photo1'); expected one"),
        ("model=photos", [picture(0), picture(0)], 422, "two files are called 'photo0.png'"),
        ("model=photos", [("a.nii.gz", nifti_bytes(np.ones((9, 9, 2)), np.eye(4)))], 422, "a.nii.gz is a volume"),
        ("model=heart", [zip_of({})], 422, "scan.zip"),
        ("model=heart", [("a.zip", b"PK\3\4 rubbish")], 422, "a.zip cannot be unpacked"),
        ("model=heart", [zip_of({"../../x.dcm": b"DICM"})], 422, ""),
        ("model=heart", [zip_of({"a.dcm": b"1"}, zipfile.ZIP_LZMA)], 422, "compressed in a way that is not read"),
    ],
)  # fmt: skip
def test_refused_in_a_sentence(served, query, files, status, says):
    answer = served.post(f"/predict?{query}", *files)
    assert answer.status == status, answer.body
    assert answer.error.startswith(says) or says in answer.error
    assert str(served.server.folder) not in answer.error and "/dev/shm" not in answer.error
    assert served.left_behind == []


def test_the_sentence_is_that_of_the_command_line(served, segments, tmp_path, monkeypatch):
    (tmp_path / "four.nii.gz").write_bytes(b"")
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 3, 2), np.float32), np.eye(4)), tmp_path / "four.nii.gz")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SamAdaptError) as error:
        folders.predict_folder(segments, "four.nii.gz", "out", device="cpu")
    assert served.post("/predict?model=heart", tmp_path / "four.nii.gz").error == str(error.value)


def test_bodies_that_are_no_form(served):
    assert served.call("POST", "/predict?model=heart", b"{}", Content_Type="application/json").status == 415
    kind = "multipart/form-data; boundary=x"
    assert served.call("POST", "/predict?model=heart", b"rubbish", Content_Type=kind).status in (400, 422)
    assert served.call("POST", "/predict?model=heart", b"x", Content_Type="multipart/form-data").status == 400
    assert served.call("GET", "/predict").status == 405
    text = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nheart\r\n--x--\r\n'
    said = served.call("POST", "/predict?model=heart", text, Content_Type=kind)
    assert said.status == 422 and said.error.startswith(
        "the form has a text in the field 'model'; expected the image"
    )
    assert served.call("GET", "/nothing").json["error"].startswith("there is no such path")


def test_too_large(models, monkeypatch):
    large = ("a.nii.gz", nifti_bytes(np.zeros((120, 120, 100)), np.eye(4)))
    with running(models, max_upload=1, max_voxels=1) as found:
        answer = found.post("/predict?model=heart", large)
        assert answer.status == 413 and "has 1,440,000 voxels; at most 1,000,000" in answer.error
        answer = found.post("/predict?model=heart", ("a.nii.gz", b"x" * (3 << 20)))
        assert answer.status == 413 and "larger than 1 MiB" in answer.error
        kind, body = form([("a.nii.gz", b"x" * (3 << 20))])
        pieces = iter([body[: 1 << 20], body[1 << 20 : 2 << 20], body[2 << 20 :]])  # without a Content-Length
        chunks = found.call("POST", "/predict?model=heart", pieces, Content_Type=kind)
        assert chunks.status == 413
        bomb = found.post("/predict?model=heart", zip_of({"a.dcm": bytes(5 << 20)}))
        assert bomb.status == 422 and "would become 5 MiB; at most 4 MiB" in bomb.error
        monkeypatch.setattr(uploads, "MOST_SLICE", 100)
        assert "a slice has 784 pixels" in found.post("/predict?model=photos", picture(0)).error
        assert found.left_behind == [] and found.server.places.taken == 0


def test_a_mistake_in_the_engine_is_logged_by_its_place(models, monkeypatch, caplog):
    monkeypatch.setattr(engine, "Computed", lambda *_: {}["Doe_Jane.png"])
    with running(models) as found:
        answer = found.post("/predict?model=photos", ("Doe_Jane.png", picture(0)[1]))
    assert answer.status == 500 and "KeyError in test_serving.py" in answer.error
    assert caplog.messages.count(answer.error) == 1 and "Doe" not in caplog.text


def test_a_mistake_of_our_own_tells_no_file(served, monkeypatch, caplog):
    monkeypatch.setattr(uploads, "find_scans", lambda *_: {}["Doe_Jane.png"])
    with caplog.at_level(logging.DEBUG):
        answer = served.post("/predict?model=photos", ("Doe_Jane.png", b"x"))
    assert answer.status == 500 and answer.error.startswith("internal error: KeyError in test_serving.py")
    assert "Doe" not in answer.error + caplog.text

    def broken(*_):
        raise ValueError("Doe_Jane.png")

    monkeypatch.setattr(serving_app, "receive", broken)
    with caplog.at_level(logging.DEBUG):
        answer = served.post("/predict?model=photos", ("Doe_Jane.png", b"x"))
    assert answer.status == 500 and "Doe" not in answer.error + caplog.text


# ---------------------------------------------------------------- the row


class Held:
    """The engine waits at the door of every answer."""

    def __init__(self, monkeypatch):
        self.go_on, self.begun, self.jobs = threading.Event(), 0, 0
        real = engine.answer_together

        def held(jobs, folder):
            self.begun += 1
            self.jobs += len(jobs)
            self.go_on.wait(20)
            real(jobs, folder)

        monkeypatch.setattr(engine, "answer_together", held)


def test_a_full_row_refuses_and_a_client_that_leaves_makes_room(models, monkeypatch):
    held = Held(monkeypatch)
    with running(models, queue=2) as found:
        computed = found.begin("/predict?model=photos", picture(0))
        assert until(lambda: held.begun == 1)
        waits = found.begin(
            "/predict?model=heart", ("a.nii.gz", nifti_bytes(volume(30, 30, 3), np.diag([1, 1, 5, 1])))
        )
        assert until(lambda: found.server.engine.waiting == 1)
        full = found.post("/predict?model=photos", picture(1))
        assert full.status == 429 and int(full.headers["retry-after"]) > 0 and "2 requests" in full.error
        waits.close()
        assert until(lambda: found.server.places.taken == 1 and found.server.engine.waiting == 0)
        uploading = found.begin("/predict?model=photos", picture(1), cut=100)
        assert until(lambda: found.server.places.taken == 2)
        assert found.post("/predict?model=photos", picture(1)).status == 429
        uploading.close()
        assert until(lambda: found.server.places.taken == 1)
        held.go_on.set()
        assert b"200 OK" in computed.recv(1 << 16)
        computed.close()
        assert until(lambda: found.server.places.taken == 0)
        assert found.left_behind == []
        counted = found.call("GET", "/metrics").body.decode()
        assert 'samadapt_requests_total{model="photos",path="/predict",status="429"} 2.0' in counted
        assert 'samadapt_requests_total{model="heart",path="/predict",status="499"} 1.0' in counted


def test_computing_stops_when_the_client_leaves(models, monkeypatch):
    heart = models["heart"].first
    seen, real = [], type(heart).features

    def slow(self, slices):
        seen.append(len(slices))
        time.sleep(0.05)
        return real(self, slices)

    monkeypatch.setattr(type(heart), "features", slow)
    with running(models) as found:
        scan = ("a.nii.gz", nifti_bytes(volume(30, 30, 200), np.diag([1, 1, 5, 1])))
        client = found.begin("/predict?model=heart", scan)
        assert until(lambda: len(seen) > 2)
        client.close()
        assert until(lambda: found.server.places.taken == 0)
        assert found.post("/predict?model=photos", picture(0)).status == 200
        assert sum(seen) < 100
        assert found.left_behind == []


def test_an_answer_that_takes_too_long_is_given_up(models, monkeypatch):
    held = Held(monkeypatch)
    monkeypatch.setattr(guard, "_DRAIN_SECONDS", 0.2)
    with running(models, time_limit=0.5) as found:
        answer = found.post("/predict?model=photos", picture(0))
        assert answer.status == 504 and "longer than 0.5 seconds" in answer.error
        slow = found.begin("/predict?model=photos", picture(1), cut=100)
        assert b"408" in slow.recv(1 << 16)
        slow.close()
        held.go_on.set()
        assert until(lambda: found.server.places.taken == 0 and not found.left_behind)


def test_an_answer_holds_its_place_until_it_is_read(models, monkeypatch):
    large = Answer(bytes(64 << 20), "application/octet-stream", "large.npy")  # more than sockets hold
    monkeypatch.setattr(
        engine, "answer_together", lambda jobs, _: [job.answer.set_result(large) for job in jobs]
    )
    with running(models, queue=1) as found:
        reads = found.begin("/predict?model=photos", picture(0))
        got = reads.recv(1 << 10)
        assert b"200 OK" in got
        time.sleep(0.3)
        assert found.server.places.taken == 1
        assert found.post("/predict?model=photos", picture(1)).status == 429
        size = len(got)
        while size < 64 << 20 and (piece := reads.recv(1 << 20)):
            size += len(piece)
        assert size >= 64 << 20
        assert until(lambda: found.server.places.taken == 0)
        assert len(found.post("/predict?model=photos", picture(1)).body) == 64 << 20
        reads.close()
        leaves = found.begin("/predict?model=photos", picture(0))
        assert b"200 OK" in leaves.recv(1 << 10)
        leaves.close()
        assert until(lambda: found.server.places.taken == 0)


def test_an_answer_that_nobody_reads_is_given_up(models, monkeypatch, caplog):
    large = Answer(bytes(64 << 20), "application/octet-stream", "large.npy")
    monkeypatch.setattr(
        engine, "answer_together", lambda jobs, _: [job.answer.set_result(large) for job in jobs]
    )
    with running(models, queue=1, time_limit=0.5) as found:
        never = found.begin("/predict?model=photos", picture(0))
        assert b"200 OK" in never.recv(1 << 10)
        assert until(lambda: found.server.places.taken == 0)
        assert until(lambda: "was not read within 0.5 seconds" in caplog.text)
        size = 0
        while piece := never.recv(1 << 20):
            size += len(piece)
        assert size < 64 << 20
        never.close()


def test_health_tells_that_no_upload_is_unpacked_any_more(models, monkeypatch):
    go_on = threading.Event()
    monkeypatch.setattr(uploads, "find_scans", lambda *_: go_on.wait(20))
    with running(models, time_limit=0.2) as found:
        clients = [found.begin("/predict?model=photos", picture(0))]
        time.sleep(1)
        assert found.call("GET", "/healthz").status == 200  # another thread is free
        clients.append(found.begin("/predict?model=photos", picture(0)))
        assert until(lambda: found.call("GET", "/healthz").status == 503)
        assert "start it again" in found.call("GET", "/healthz").error
        go_on.set()
        assert until(lambda: found.call("GET", "/healthz").status == 200)
        for client in clients:
            client.close()


def test_health_tells_that_one_request_is_never_answered(models, monkeypatch):
    held = Held(monkeypatch)
    with running(models, time_limit=0.2) as found:
        client = found.begin("/predict?model=photos", picture(0))
        assert until(lambda: found.call("GET", "/healthz").status == 503)
        held.go_on.set()
        assert until(lambda: found.call("GET", "/healthz").status == 200)
        client.close()


def test_one_that_fails_stops_no_other(models, monkeypatch):
    held = Held(monkeypatch)
    with running(models, queue=9) as found:
        answers = {}

        def ask(number, photo):
            answers[number] = found.post("/predict?model=photos", photo)

        truncated = (picture(1)[0], picture(1)[1][:-30])
        threads = [
            threading.Thread(target=ask, args=(n, p))
            for n, p in enumerate([picture(0), truncated, picture(2)])
        ]
        for thread in threads:
            thread.start()
        assert until(lambda: found.server.engine.waiting + held.jobs >= 2)
        time.sleep(0.1)
        held.go_on.set()
        for thread in threads:
            thread.join()
    assert [answers[number].status for number in range(3)] == [200, 422, 200]


def test_the_server_stops_while_requests_wait(models, monkeypatch):
    held = Held(monkeypatch)
    with running(models) as found:
        first = found.begin("/predict?model=photos", picture(0))
        assert until(lambda: held.begun == 1)
        folder = found.server.folder
        threading.Timer(0.3, held.go_on.set).start()
    assert not folder.exists()
    first.close()


def test_what_a_killed_server_left_is_removed(tmp_path):
    with scratch_folder(tmp_path) as first:
        assert stat.S_IMODE(first.stat().st_mode) == 0o700
        dead = first.with_name(first.name.replace(f".{os.getpid()}-", ".999999999-"))
        dead.mkdir()
        from samadapt.files import _remove_leftovers

        _remove_leftovers.cache_clear()
        with scratch_folder(tmp_path) as second:
            assert first.exists() and second.exists() and not dead.exists()
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- who may ask


def test_nothing_without_the_token(models):
    with running(models, token=SECRET) as found:
        photo = picture(0)
        for path in ("/models", "/metrics", "/openapi.json", "/nothing", "/docs"):
            assert found.call("GET", path).status == 401, path
        for path in ("/predict?model=photos", "/view?model=photos"):
            assert found.post(path, photo).status == 401
            for wrong in (
                "Bearer wrong",
                f"Basic {SECRET}",
                SECRET,
                "Bearer ",
                f"Bearer {SECRET}x",
                "Bearer \xff",
            ):
                assert found.post(path, photo, Authorization=wrong).status == 401
        assert found.call("GET", "/models").headers["www-authenticate"] == "Bearer"
        for page in pages.PAGES:
            assert found.call("GET", page.path).status == 200
        assert found.call("GET", "/healthz").json == {"status": "ok"}
        assert found.post("/predict?model=photos", photo, Authorization=f"Bearer {SECRET}").status == 200
        elsewhere = {"Authorization": f"Bearer {SECRET}", "Origin": "https://evil.example"}
        assert found.post("/predict?model=photos", photo, **elsewhere).status == 403
        client = Client(f"http://127.0.0.1:{found.port}", "wrong-token-wrong-token")
        with pytest.raises(ServerError, match="asks for its token"):
            client.models()


def test_without_a_token_only_this_machine_is_answered(served):
    assert served.call("GET", "/models", Host="rebound.example").status == 403
    assert served.call("GET", "/models", Host=f"localhost:{served.port}").status == 200


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True), ("0.0.0.0", False),
     ("::", False), ("10.0.0.1", False), ("localhost.example", False), ("", False)],
)  # fmt: skip
def test_which_addresses_are_this_machine(host, local):
    assert is_local(host) is local


def test_a_port_is_taken_before_the_models_are_loaded():
    with door._listen(ServeOptions(port=0)) as first:
        port = first.getsockname()[1]
        with pytest.raises(SamAdaptError, match=rf"--port {port} cannot be listened on"):
            door._listen(ServeOptions(port=port)).close()


def test_a_token_is_demanded_where_others_can_ask(tmp_path):
    assert read_token(ServeOptions(), {}) is None
    assert read_token(ServeOptions(), {"SAMADAPT_TOKEN": SECRET}) == SECRET
    with pytest.raises(SamAdaptError, match=r"--host 0\.0\.0\.0 can be reached"):
        read_token(ServeOptions(host="0.0.0.0"), {})
    with pytest.raises(SamAdaptError, match="has 5 characters"):
        read_token(ServeOptions(host="0.0.0.0"), {"SAMADAPT_TOKEN": "short"})
    with pytest.raises(SamAdaptError, match=r"nothing\.txt cannot be read"):
        read_token(ServeOptions(token_file=str(tmp_path / "nothing.txt")), {})
    (tmp_path / "token.txt").write_text(SECRET + "\n")
    assert read_token(ServeOptions(token_file=str(tmp_path / "token.txt")), {"SAMADAPT_TOKEN": "x"}) == SECRET


def test_every_answer_forbids_foreign_scripts_and_keeping(served):
    for path in ("/", "/models", "/nothing"):
        headers = served.call("GET", path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"


def test_the_log_has_no_names(served, scan, caplog):
    with caplog.at_level(logging.INFO, "samadapt.serving"):
        served.post("/predict?model=heart", scan)
        served.post("/predict?model=Doe_Jane", scan)
        served.call("GET", "/Doe_Jane")
        # The line of a request is written after its answer, so that of an earlier test's may still come.
        assert until(lambda: caplog.text.count("POST /predict") == 2 and "GET other" in caplog.text)
    assert "POST /predict model=heart bytes=" in caplog.text and "status=200" in caplog.text
    assert "Doe" not in caplog.text and scan.name not in caplog.text
    assert "Doe" not in served.call("GET", "/metrics").body.decode()


@pytest.mark.parametrize(
    ("name", "safe"),
    [("a.nii.gz", "a.nii.gz"), ("../../a.png", "a.png"), ("C:\\x\\a.png", "a.png"), (".a.png", "a.png"), ("é ü.png", "é_ü.png"),
     ("x" * 300 + ".nii.gz", "x" * 93 + ".nii.gz"), ("a\0b.png", "a_b.png")],
)  # fmt: skip
def test_names_of_files_lead_nowhere(name, safe):
    assert safe_name(name) == safe


# ---------------------------------------------------------------- models, and the client


def test_models_are_told_apart_by_the_names_of_their_folders(segments, tmp_path):
    (tmp_path / "heart").symlink_to(segments)
    with pytest.raises(SamAdaptError, match="are both called 'heart'"):
        load_models([segments, segments], "cpu")


def test_the_client(served, scan, predicted, tmp_path):
    client = Client(f"http://127.0.0.1:{served.port}")
    assert [each["name"] for each in client.models()] == ["heart", "photos"]
    expected = np.asarray(nib.load(predicted).dataobj)
    label, about = client.label_map(scan, "heart")
    assert np.array_equal(label, expected) and about["volumes"][0]["name"]
    client.save(scan, tmp_path / "out.nii.gz", "heart")
    assert (tmp_path / "out.nii.gz").read_bytes() == predicted.read_bytes()
    image = nib.load(scan)
    again, _ = client.label_map_of(np.asarray(image.dataobj), image.affine, "heart")
    assert np.array_equal(again, expected)
    probabilities, _ = client.probabilities(scan, "heart")
    assert probabilities.shape[1:] == expected.shape
    (tmp_path / "a.png").write_bytes(picture(5)[1])
    assert set(client.ask(tmp_path / "a.png", "photos")["probabilities"]) == {"0", "1"}
    with pytest.raises(ServerError, match="no model 'x'"):
        client.ask(scan, "x")


def test_the_client_asks_again_where_it_is_cut_off_while_it_sends(models, monkeypatch, tmp_path):
    monkeypatch.setattr(guard, "_DRAIN_BYTES", 0)
    (tmp_path / "a.png").write_bytes(picture(5)[1] + bytes(32 << 20))  # more than sockets hold
    with running(models, queue=1) as found:
        holds = found.begin("/predict?model=photos", picture(0), cut=100)
        assert until(lambda: found.server.places.taken == 1)
        address = f"http://127.0.0.1:{found.port}"
        with pytest.raises(ServerError, match="closed the connection while the scan was sent"):
            Client(address, patience=0).ask(tmp_path / "a.png", "photos")
        threading.Timer(1, holds.close).start()
        assert Client(address).ask(tmp_path / "a.png", "photos")["prediction"]


def test_the_client_waits_as_long_as_the_server_says(served, monkeypatch):
    answers = [ServerError(429, "full", 7), ServerError(503, "full"), (b"{}", {})]
    waits = []

    def send(*_):
        answer = answers.pop(0)
        if isinstance(answer, ServerError):
            raise answer
        return answer

    client = Client(f"http://127.0.0.1:{served.port}")
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setattr(client, "_send", send)
    client._predict([picture(0)], "photos", "json")
    assert waits == [7, 2]


def test_the_client_reads_how_long_to_wait(models):
    with running(models, queue=1) as found:
        holds = found.begin("/predict?model=photos", picture(0), cut=100)
        assert until(lambda: found.server.places.taken == 1)
        with pytest.raises(ServerError) as error:
            Client(f"http://127.0.0.1:{found.port}", patience=0)._predict([picture(0)], "photos", "json")
        holds.close()
    assert error.value.status == 429 and error.value.retry_after == 5


def test_the_client_says_that_nobody_answers():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(ServerError, match="is the server running") as error:
        Client(address).models()
    assert error.value.status == 0


def test_the_client_is_one_file_that_needs_numpy_alone(served):
    import ast
    import sys

    source = served.call("GET", "/client.py").body.decode()
    names = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name).split(".")[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert names - set(sys.stdlib_module_names) == {"numpy"}


def test_openapi_names_every_path_and_refusal(served):
    schema = served.call("GET", "/openapi.json").json
    assert set(schema["paths"]) == {"/models", "/predict", "/view", "/healthz", "/metrics"}
    (model,) = (each for each in schema["paths"]["/predict"]["post"]["parameters"] if each["name"] == "model")
    assert model["required"] and model["schema"]["enum"] == ["heart", "photos"]
    assert {"413", "422", "429", "503", "504"} <= set(schema["paths"]["/predict"]["post"]["responses"])


def test_heads_that_answer_together(segments, scan, tmp_path):
    pair_of(segments, tmp_path / "pair")
    folders.predict_folder(tmp_path / "pair", scan, tmp_path / "out", device="cpu")
    with running([tmp_path / "pair"]) as found:
        answer = found.post("/predict", scan)
        assert answer.body == next((tmp_path / "out").glob("*.nii.gz")).read_bytes()
        agreement = answer.about["agreement"]
        assert set(agreement) == set(load_run(segments, "cpu").classes[1:])
        assert any(value != 1 for value in agreement.values())  # else one head would have done
        assert found.call("GET", "/models").json["models"][0]["heads"] == 2


def test_answers_are_smoothed_and_cleaned_as_the_training_chose(segments, scan, predicted, tmp_path):
    run = shutil.copytree(segments, tmp_path / "heart")
    (run / "postprocessing.json").write_text(
        json.dumps({"keep_largest": list(load_run(run, "cpu").classes[1:]), "smooth_slices": 1.0})
    )
    folders.predict_folder(run, scan, tmp_path / "out", device="cpu", probabilities=True)
    expected = next((tmp_path / "out").glob("*.nii.gz")).read_bytes()
    assert expected != predicted.read_bytes()
    with running([run]) as found:
        assert found.post("/predict", scan).body == expected
        array = np.load(streams.BytesIO(found.post("/predict?output=npy", scan).body))
        probabilities = np.load(streams.BytesIO(found.post("/predict?output=probabilities", scan).body))
    assert np.array_equal(array, label_of(expected))
    assert np.array_equal(probabilities, np.load(next((tmp_path / "out").glob("*.npy"))))


def test_an_engine_that_died_is_told(models):
    with running(models) as found:
        assert isinstance(found.server.engine, Engine)
        found.server.engine.stop()
        assert found.call("GET", "/healthz").status == 503


def test_the_guard_waits_for_a_client_that_still_sends(models, monkeypatch):
    """Else the refusal is lost when the connection is closed on it."""
    monkeypatch.setattr(guard, "_DRAIN_SECONDS", 10.0)
    with running(models, max_upload=1) as found:
        assert found.post("/predict?model=heart", ("a.nii.gz", bytes(40 << 20))).status == 413
