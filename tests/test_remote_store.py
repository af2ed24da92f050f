"""A store behind a URL: mirrored, complete or not there, the same bytes as a folder. `memory://` stands for all of fsspec's kinds."""

import json
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from samadapt.encoders import EncoderSpec
from samadapt.features import FeatureStore, MapSpec, demand_store
from samadapt.features.remote import Remote, url_of
from samadapt.types import Case, SamAdaptError

MAPS = MapSpec(EncoderSpec("sam_nano", side=64), {"neck": 1}, views=2, augmentation="default")


@pytest.fixture
def cases():
    rng = torch.Generator().manual_seed(0)
    return [
        Case(f"c{n}", torch.rand(1, 2, 40, 40, generator=rng), None, None, None, f"c{n}") for n in range(3)
    ]


@pytest.fixture
def url(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fsspec.filesystem("memory").store.clear()
    yield "memory://bucket/maps"
    fsspec.filesystem("memory").store.clear()


def there():
    return sorted(fsspec.filesystem("memory").store)


def other_machine(monkeypatch, tmp_path, name):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))


def test_urls_and_folders_are_told_apart():
    assert url_of("s3://bucket/a/") == "s3://bucket/a" and url_of("s3:/bucket/a") == "s3://bucket/a"
    assert url_of("memory://b") == "memory://b"
    assert url_of("12:30/maps") is None
    assert url_of("features") is None and url_of("/data/a:b/c") is None and url_of(r"C:\maps") is None


def test_another_machine_reads_what_one_has_encoded(url, cases, tmp_path, monkeypatch):
    folder = FeatureStore(tmp_path / "folder")
    folder.encode(cases, MAPS)
    report = FeatureStore(url).encode(cases, MAPS)
    assert report.written == 3 and len(there()) == 6
    other_machine(monkeypatch, tmp_path, "second")
    store = FeatureStore(url)
    for case in cases:
        (found, frame), (wanted, same) = store.read(case, MAPS), folder.read(case, MAPS)
        assert frame == same and all(np.array_equal(found[tap], wanted[tap]) for tap in wanted)
    assert FeatureStore(url).encode(cases, MAPS, progress=None).written == 0
    assert store.root.is_relative_to(tmp_path / "second")


def test_a_case_is_there_as_a_whole_or_not_at_all(url, cases, tmp_path, monkeypatch):
    """The note is sent last: where it is missing, the case is encoded, or sent, again."""
    FeatureStore(url).encode(cases, MAPS)
    files = fsspec.filesystem("memory")
    notes = [path for path in there() if path.endswith("frame.json")]
    files.rm(notes[0])
    other_machine(monkeypatch, tmp_path, "second")
    assert FeatureStore(url).encode(cases, MAPS).written == 1
    assert notes[0] in there()
    files.rm(notes[1])
    assert FeatureStore(url).encode(cases, MAPS).written == 0  # this machine has it, and sends it
    assert notes[1] in there()


def test_what_was_finished_is_sent_when_a_later_case_fails(url, cases):
    def given():
        yield from cases
        raise SamAdaptError("the disk of the scans went away")

    with pytest.raises(SamAdaptError, match="went away"):
        FeatureStore(url).encode(given(), MAPS)
    assert len([path for path in there() if path.endswith("frame.json")]) == 3


def test_a_mirror_may_be_deleted_or_damaged(url, cases):
    store = FeatureStore(url)
    store.encode(cases, MAPS)
    wanted = {case.id: np.array(store.read(case, MAPS)[0]["neck"]) for case in cases}
    shutil.rmtree(store.root)
    assert np.array_equal(FeatureStore(url).read(cases[0], MAPS)[0]["neck"], wanted["c0"])
    file = next(store.root.rglob("neck@1.npy"))
    file.write_bytes(file.read_bytes()[:100])
    assert np.array_equal(FeatureStore(url).read(cases[0], MAPS)[0]["neck"], wanted["c0"])
    file.unlink()
    assert np.array_equal(FeatureStore(url).read(cases[0], MAPS)[0]["neck"], wanted["c0"])


def test_maps_of_two_machines_are_joined(url, cases, tmp_path, monkeypatch):
    """Heads that read one encoder differently share a store; the later note must not take away what the earlier one says."""
    pooled = MapSpec(MAPS.encoder, {"neck": 2}, views=2, augmentation="default")
    first = FeatureStore(url)
    first.encode(cases, MAPS)
    other_machine(monkeypatch, tmp_path, "second")
    second = FeatureStore(url)
    second.encode(cases, pooled)
    other_machine(monkeypatch, tmp_path, "third")
    for store in (first, second, FeatureStore(url)):
        for maps in (MAPS, pooled):
            assert store.read(cases[0], maps)[0]["neck"].shape[0] == 2


def test_more_views_take_the_place_of_fewer_and_never_the_reverse(url, cases, tmp_path, monkeypatch):
    few, many = (MapSpec(MAPS.encoder, {"neck": 1}, views=n, augmentation="default") for n in (2, 4))
    first = FeatureStore(url)
    first.encode(cases, few)
    other_machine(monkeypatch, tmp_path, "second")
    FeatureStore(url).encode(cases, many)
    assert first.read(cases[0], many)[0]["neck"].shape[0] == 4
    other_machine(monkeypatch, tmp_path, "third")
    assert FeatureStore(url).encode(cases, few).written == 0


def test_a_note_that_does_not_fit_its_map_is_mended_by_the_next_encoding(url, cases, tmp_path, monkeypatch):
    """Two machines that send different numbers of views at once can leave such a pair."""
    FeatureStore(url).encode(cases, MAPS)
    files = fsspec.filesystem("memory")
    broken = next(path for path in there() if path.endswith("neck@1.npy"))
    files.pipe_file(broken, b"short")
    other_machine(monkeypatch, tmp_path, "second")
    assert FeatureStore(url).encode(cases, MAPS).written == 1
    other_machine(monkeypatch, tmp_path, "third")
    assert FeatureStore(url).encode(cases, MAPS).written == 0


def test_a_note_cannot_name_a_file_outside(url, cases, tmp_path, monkeypatch):
    FeatureStore(url).encode(cases, MAPS)
    files = fsspec.filesystem("memory")
    note = next(path for path in there() if path.endswith("frame.json"))
    content = json.loads(files.cat_file(note))
    content["maps"]["../../../../OUTSIDE"] = {"views": 2, "bytes": 3}
    files.pipe_file(note, json.dumps(content).encode())
    files.pipe_file(f"{note.rsplit('/', 1)[0]}/../../../../OUTSIDE.npy", b"abc")
    other_machine(monkeypatch, tmp_path, "second")
    FeatureStore(url).encode(cases, MAPS)
    assert not list(tmp_path.rglob("OUTSIDE*"))


def test_a_password_is_not_repeated():
    with pytest.raises(SamAdaptError) as caught:
        FeatureStore("ftp://user:secret@host/maps")
    assert "secret" not in str(caught.value)


def test_a_store_that_does_not_answer_is_an_error_in_words(url, cases, monkeypatch):
    store = FeatureStore(url)

    def refuse(*_, **__):
        raise ConnectionError("could not connect to the endpoint")

    monkeypatch.setattr(store._remote.files, "cat_file", refuse, raising=False)  # type: ignore[union-attr]
    with pytest.raises(
        SamAdaptError, match=r"memory://bucket/maps does not answer \(could not connect.*credentials"
    ):
        store.encode(cases, MAPS)


@pytest.mark.parametrize(
    "asked",
    ["file:///maps", "nonsense://bucket/maps", "s3://", "s3:", "://x", "local:///tmp/maps", "dir:///tmp", "simplecache::s3://b/maps", "zip::x", "hdfs:///user/x"],
)  # fmt: skip
def test_other_urls_are_refused(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for root in (asked, Path(asked)):
        for does in (FeatureStore, demand_store):
            with pytest.raises(
                SamAdaptError, match="looks like a URL; expected a folder, or BUCKET_OR_HOST/FOLDER"
            ):
                does(root)
    assert not list(tmp_path.iterdir())


def test_the_command_line_keeps_nothing_in_memory(url):
    with pytest.raises(SamAdaptError, match="would end with this process"):
        demand_store(url)


def test_the_missing_package_is_named(monkeypatch):
    def absent(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(SamAdaptError, match=r"Install s3fs.*samadapt\[s3\]"):
        Remote("s3://bucket/maps")


@pytest.mark.slow
def test_an_s3_server(cases, tmp_path, monkeypatch):
    """moto's server, which speaks S3."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (samadapt[s3])")
    server = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        "XDG_CACHE_HOME": str(tmp_path / "one"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    running.start()
    try:
        host, port = running.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("bucket")
        folder = FeatureStore(tmp_path / "folder")
        folder.encode(cases, MAPS)
        assert FeatureStore("s3://bucket/maps").encode(cases, MAPS).written == 3
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
        store = FeatureStore("s3://bucket/maps")
        assert store.encode(cases, MAPS).written == 0
        assert all(
            np.array_equal(store.read(case, MAPS)[0]["neck"], folder.read(case, MAPS)[0]["neck"])
            for case in cases
        )
    finally:
        running.stop()
