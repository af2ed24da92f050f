"""Those who mean harm: what they send leads nowhere, fills nothing, and is written down nowhere."""

# ruff: noqa: E402  # what is imported below needs what may be missing
from __future__ import annotations

import dataclasses
import io as streams
import json
import socket
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client"):
    pytest.importorskip(package)

from samadapt.prediction import Classifier
from samadapt.serving import asked as asked_module
from samadapt.serving import uploads
from samadapt.serving.answers import form_of
from samadapt.serving.asked import Asked
from samadapt.serving.client import Client
from samadapt.serving.engine import answer_together
from samadapt.serving.uploads import Upload, find_scan, safe_name, unpack
from samadapt.types import SamAdaptError, SamAdaptWarning
from serving import form, running
from test_serving import (  # noqa: F401  # fixtures
    SECRET,
    classifies,
    models,
    pair_of,
    picture,
    scan,
    segments,
    served,
    train,
    zip_of,
)

# ---------------------------------------------------------------- archives


def lying(content: bytes, said: int) -> bytes:
    """The zip of a file that says in both its headers that it has fewer bytes."""
    _, packed = zip_of({"a.dcm": content})
    right, wrong = struct.pack("<I", len(content)), struct.pack("<I", said)
    assert packed.count(right) == 2
    return packed.replace(right, wrong)


def test_an_archive_that_lies_about_its_size_is_not_unpacked_further(tmp_path):
    bomb = lying(bytes(300 << 20), 1000)
    tracemalloc.start()
    try:
        with pytest.raises(SamAdaptError, match="cannot be unpacked"):
            unpack([Upload("a.zip", bomb)], tmp_path, 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_members_that_overlap_count_each_time(tmp_path):
    """One megabyte of zeros, to which a thousand names lead."""
    _, packed = zip_of({"a.dcm": bytes(1 << 20)})
    with zipfile.ZipFile(streams.BytesIO(packed)) as archive:
        start = archive.start_dir
    record = packed[start : packed.rindex(b"PK\5\6")]
    records = b"".join(record.replace(b"a.dcm", b"%05d" % number) for number in range(1000))
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1000, 1000, len(records), start, 0)
    with pytest.raises(SamAdaptError, match="would become 1000 MiB; at most 4 MiB"):
        unpack([Upload("a.zip", packed[:start] + records + end)], tmp_path, 1 << 20)


def test_links_and_paths_in_archives_are_names(tmp_path):
    link = zipfile.ZipInfo("link.dcm")
    link.external_attr, link.create_system = 0o120777 << 16, 3
    file = streams.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(link, "/etc/passwd")
        for name in ("../../up.dcm", "/root.dcm", "C:\\windows.dcm", "a/../../b/./c.dcm"):
            archive.writestr(name, b"x")
    folder = unpack([Upload("a.zip", file.getvalue())], tmp_path, 1 << 20)
    found = [path for path in tmp_path.rglob("*") if not path.is_dir()]
    assert len(found) == 5 and all(path.is_relative_to(folder) and not path.is_symlink() for path in found)
    assert (next(path for path in found if path.name == "link.dcm")).read_bytes() == b"/etc/passwd"
    assert not list(tmp_path.parent.glob("*.dcm"))


def test_too_many_members(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MOST_MEMBERS", 10)
    with pytest.raises(SamAdaptError, match="more than 10 members"):
        unpack([Upload("a.zip", zip_of({f"{n}.dcm": b"" for n in range(20)})[1])], tmp_path, 1 << 20)


@pytest.mark.parametrize("name", ["字" * 200 + ".nii.gz", "😀é" * 90 + ".nii.gz", "a" * 5000 + ".nii.gz"])
def test_names_that_no_file_system_takes_are_cut(name, tmp_path):
    cut = safe_name(name)
    assert cut.endswith(".nii.gz") and len(cut.encode()) <= 100
    assert unpack([Upload(name, b"x")], tmp_path, 1 << 20).read_bytes() == b"x"


# ---------------------------------------------------------------- files that lead to others


def test_an_upload_is_never_opened_as_a_data_set(served, scan):  # noqa: F811
    """A dataset.json names files, which may be the server's own."""
    listed = {
        "channel_names": {"0": "MRI"}, "labels": {"background": 0, "a": 1}, "numTraining": 1, "file_ending": ".nii.gz",
        "training": [{"image": str(scan), "label": str(scan)}], "test": [str(scan)],
    }  # fmt: skip
    for name in ("dataset.json", "imagesTr/dataset.json"):
        sent = zip_of({name: json.dumps(listed).encode(), "imagesTr/x.txt": b"x"})
        answer = served.post("/predict?model=heart&output=json", sent)
        assert answer.status == 422 and "holds no images" in answer.error, answer.body
    both = ("dataset.json", json.dumps(listed).encode())
    answer = served.post("/predict?model=heart&output=json", both, (scan.name, scan.read_bytes()))
    alone = served.post("/predict?model=heart&output=json", scan)
    assert answer.status == 200 and answer.json["volumes"] == alone.json["volumes"]


def test_headers_that_keep_their_voxels_elsewhere_are_refused(served, tmp_path):  # noqa: F811
    pytest.importorskip("SimpleITK")
    secret = tmp_path / "secret.raw"
    secret.write_bytes(bytes(24))
    text = f"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 3 4\nencoding: raw\ndata file: {secret}\n\n"
    answer = served.post("/predict?model=heart", ("a.nrrd", text.encode()))
    assert answer.status == 422 and "keeps its voxels in another file" in answer.error
    pair = bytearray(348)
    struct.pack_into("<i", pair, 0, 348)
    pair[344:348] = b"ni1\0"
    for name in ("a.hdr", "a.nii", "a.img"):
        assert served.post("/predict?model=heart", (name, bytes(pair))).status == 422
    assert served.left_behind == []


# ---------------------------------------------------------------- sizes


@pytest.mark.parametrize("shape", [(32767, 32767, 32767), (1200, 1200, 1200), (-4, 4, 4), (0, 4, 4)])
def test_sizes_that_a_header_only_claims(served, shape):  # noqa: F811
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 2, 8)
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 0, 0, 0, 0)
    struct.pack_into("<f", header, 108, 352)
    header[344:348] = b"n+1\0"
    answer = served.post("/predict?model=heart", ("a.nii", bytes(header)))
    assert answer.status in (413, 422) and len(answer.error) > 30


def test_a_slice_is_answered_for_all_classes_at_once(models, monkeypatch):  # noqa: F811
    monkeypatch.setattr(uploads, "MOST_ANSWERS", 1000)
    with running(models) as found:
        answer = found.post("/predict?model=photos", picture(0))
        assert answer.status == 413 and "at most 500 are answered" in answer.error


def test_large_pictures_do_not_wait_together(models, monkeypatch):  # noqa: F811
    opening = models["photos"].opening
    with running(models) as found:
        path = found.server.folder / "a.png"
        path.write_bytes(picture(0)[1])
        job = Asked(models["photos"], found.server.folder)
        job.input, job.voxels = find_scan(path, opening, 10**6)
        assert job.voxels == 28 * 28 and job.is_small
        monkeypatch.setattr(asked_module, "_SMALL", 100)
        assert not job.is_small


# ---------------------------------------------------------------- who asks


@pytest.mark.parametrize(
    "host", ["evil.example", "[", "[::1", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "localhost:x@evil", ""]
)  # fmt: skip
def test_no_name_but_this_machine_s_is_answered(served, host):  # noqa: F811
    answer = served.call("GET", "/models", Host=host)
    assert answer.status in (400, 403), host
    assert b"heart" not in answer.body


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://[", "https://127.0.0.1:1", "file://"]
)
def test_no_page_of_another_address_asks(served, origin):  # noqa: F811
    answer = served.post("/predict?model=photos", picture(0), Origin=origin)
    assert answer.status == 403 and "page of another address" in answer.error
    own = f"http://127.0.0.1:{served.port}"
    answer = served.post("/predict?model=photos", picture(0), Origin=own)
    assert answer.status == 200 and not [name for name in answer.headers if name.startswith("access-control")]
    asked_first = served.call("OPTIONS", "/predict", Origin=origin, Access_Control_Request_Method="POST")
    assert asked_first.status == 405 and "access-control-allow-origin" not in asked_first.headers


def test_a_proxy_on_this_machine_does_not_open_the_server(models):  # noqa: F811
    passed_on = {"X-Forwarded-For": "203.0.113.7"}
    with running(models) as found:
        answer = found.call("GET", "/models", **passed_on)
        assert answer.status == 403 and "start the server with a token" in answer.error
    with running(models, token=SECRET) as found:
        assert found.call("GET", "/models", **passed_on).status == 401
        assert found.call("GET", "/models", Authorization=f"Bearer {SECRET}", **passed_on).status == 200


def test_no_path_leads_out_of_the_page(served):  # noqa: F811
    for path in (
        "/../pages.py",
        "/page/index.html",
        "/..%2f..%2fetc/passwd",
        "/predict/",
        "//etc/passwd",
        "/client.py/",
    ):
        answer = served.call("GET", path)
        assert answer.status == 404 and "there is no such path" in answer.error, path


# ---------------------------------------------------------------- the same name, and after the end


def test_two_scans_of_one_name_at_once_are_two_scans(models):  # noqa: F811
    import threading

    contents = [picture(seed)[1] for seed in range(8)]
    with running(models) as found:
        alone = [
            found.post("/predict?model=photos", ("same.png", each)).json["probabilities"] for each in contents
        ]
        together: dict[int, dict] = {}

        def ask(number: int) -> None:
            together[number] = found.post("/predict?model=photos", ("same.png", contents[number])).json

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for number, expected in enumerate(alone):
        assert together[number]["probabilities"] == pytest.approx(expected, abs=1e-5)
    assert len({tuple(each.values()) for each in alone}) == 8


def test_nobody_is_answered_after_the_end(models):  # noqa: F811
    with running(models) as found:
        port, folder = found.port, found.server.folder
        assert found.call("GET", "/healthz").status == 200
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=2):
        pass
    assert not folder.exists()


# ---------------------------------------------------------------- words


def test_what_other_packages_say_is_not_written_down(models, monkeypatch, capfd):  # noqa: F811
    """pydicom, for one, says the value of a header that it finds strange."""
    real = Classifier.probabilities

    def talks(self, logits):
        warnings.warn("Doe^Jane is no valid name", UserWarning, stacklevel=1)
        warnings.warn("assumed of scan Doe_Jane", SamAdaptWarning, stacklevel=1)
        return real(self, logits)

    monkeypatch.setattr(Classifier, "probabilities", talks)
    with running(models) as found:
        said = found.post("/predict?model=photos", ("Doe_Jane.png", picture(0)[1]))
    assert said.json["notes"] == ["assumed of scan Doe_Jane"]
    assert "Doe" not in "".join(capfd.readouterr())


_TALKS = """
import logging
from samadapt.serving.telemetry import log_to_stderr
logging.getLogger("pydicom").addHandler(logging.StreamHandler())
log_to_stderr()
logging.getLogger("pydicom").warning("Doe^Jane is no valid name")
try:
    raise ValueError("Doe^Jane")
except ValueError:
    logging.getLogger("asyncio").exception("of Doe^Jane")
logging.getLogger("samadapt.serving").info("a line")
"""


def test_the_log_of_others_has_no_words():
    done = subprocess.run([sys.executable, "-c", _TALKS], capture_output=True, text=True, check=True)
    assert "Doe" not in done.stdout + done.stderr
    assert (
        "WARNING of pydicom" in done.stderr and "ERROR of asyncio" in done.stderr and "a line" in done.stderr
    )


def test_names_of_files_are_said_as_text(served):  # noqa: F811
    name = "<img src=x onerror=alert(1)>\r\nX-Evil: 1.png"
    answer = served.post("/predict?model=heart", (name.replace("\r\n", "%0D%0A").replace('"', ""), b"x"))
    assert answer.status == 422 and "<" not in answer.error and "x-evil" not in answer.headers
    assert answer.headers["content-type"] == "application/json"


# ---------------------------------------------------------------- what has come to trained runs since


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory) -> Path:
    """A classifier with sets of classes."""
    from fakes import two_class_archive
    from samadapt.calibration import Calibration, write_calibration

    folder = tmp_path_factory.mktemp("calibrated")
    two_class_archive(folder / "two.npz")
    run = train(folder / "two.npz", folder / "photos", "attentive_probe")
    write_calibration(run, Calibration(3.0, 0.05, ("a", "b"), 0.7, 0.6))
    return run


def test_a_calibrated_classifier_answers_with_its_set(calibrated, tmp_path):
    from samadapt import folders

    name, content = picture(3)
    (tmp_path / name).write_bytes(content)
    folders.predict_folder(calibrated, tmp_path / name, tmp_path / "out", device="cpu")
    header, row = (line.split(",") for line in (tmp_path / "out" / "predictions.csv").read_text().split())
    expected = dict(zip(header, row, strict=True))
    with running([calibrated]) as found:
        said = found.post("/predict", (name, content)).json
        drawn = found.post("/predict?output=png", (name, content))
    assert "|".join(said["set"]) == expected["set"] and said["prediction"] == expected["prediction"]
    assert drawn.about["set"] == said["set"]
    for each, value in said["probabilities"].items():
        assert value == pytest.approx(float(expected[f"prob_{each}"]), abs=1e-6)


def test_classifiers_that_answer_together_answer_as_predict(classifies, tmp_path):  # noqa: F811
    from samadapt import folders

    pair_of(classifies, tmp_path / "pair")
    name, content = picture(3)
    (tmp_path / name).write_bytes(content)
    folders.predict_folder(tmp_path / "pair", tmp_path / name, tmp_path / "out", device="cpu")
    header, row = (line.split(",") for line in (tmp_path / "out" / "predictions.csv").read_text().split())
    expected = dict(zip(header, row, strict=True))
    with running([tmp_path / "pair"]) as found:
        said = found.post("/predict", (name, content)).json
        (told,) = found.call("GET", "/models").json["models"]
    assert told["heads"] == 2 and "set" not in said
    for each, value in said["probabilities"].items():
        assert value == pytest.approx(float(expected[f"prob_{each}"]), abs=1e-6)


def test_a_classifier_of_many_slices_stops_when_the_client_leaves(models, monkeypatch, tmp_path):  # noqa: F811
    model = models["photos"]
    (tmp_path / "a.png").write_bytes(picture(0)[1])
    case = model.first.case(tmp_path / "a.png")
    case = dataclasses.replace(case, image=case.image.expand(-1, 400, -1, -1))
    asked = SimpleNamespace(load=lambda: case, files=(tmp_path / "a.png",))
    job = Asked(model, tmp_path / "job", form_of(model, "json"), asked)
    seen, real = [], type(model.first).features

    def leaves(self, slices):
        seen.append(len(slices))
        if len(seen) == 3:
            job.leave()
        return real(self, slices)

    monkeypatch.setattr(type(model.first), "features", leaves)
    answer_together([job], tmp_path)
    assert job.answer.cancelled() and sum(seen) < 100
    whole = Asked(model, tmp_path / "whole", form_of(model, "json"), asked)
    answer_together([whole], tmp_path)  # without anybody who leaves it is answered
    assert whole.answer.result().about["prediction"]


# ---------------------------------------------------------------- the client


def test_the_client_asks_no_proxy_for_this_machine(served, monkeypatch):  # noqa: F811
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert len(Client(f"http://127.0.0.1:{served.port}").models()) == 2


# ---------------------------------------------------------------- what is cut off, and what lies beside


def test_a_form_that_is_cut_off_is_refused(served, scan):  # noqa: F811
    """Its last file would be answered as far as it came: a DICOM series without its last slices, a label map of a part."""
    kind, body = form([scan])
    whole = served.call("POST", "/predict?model=heart", body, Content_Type=kind)
    assert whole.status == 200
    for missing in (1, 2, 40, 3000):
        answer = served.call("POST", "/predict?model=heart", body[: -missing - 2], Content_Type=kind)
        assert (answer.status == 400 and b"cut off" in answer.body) or b"cannot be read" in answer.body
    late = served.call("POST", "/predict?model=heart", body + b"an epilogue", Content_Type=kind)
    assert late.status == 200 and late.body == whole.body


def test_what_a_system_puts_beside_the_files_of_a_zip_is_not_looked_at(served, scan):  # noqa: F811
    content = scan.read_bytes()
    for files in (
        {"a.nii.gz": content, "__MACOSX/._a.nii.gz": b"\0\5\x16\7"},
        {"x/y/a.nii.gz": content, "readme.txt": b"hello", ".DS_Store": b"x"},
    ):
        answer = served.post("/predict?model=heart", zip_of(files))
        assert answer.status == 200, answer.body


def test_a_parameter_given_twice_is_refused(served, scan):  # noqa: F811
    answer = served.post("/predict?model=heart&model=heart", scan)
    assert answer.status == 422 and b"'model' is given 2 times" in answer.body
