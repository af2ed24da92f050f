import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fakes import TinyNetwork, disc_case, fake_data, tiny
from samadapt.features import FeatureStore, MapSpec, Pairs, encoding
from samadapt.features.encoding import default_batch
from samadapt.types import LABEL_GRID, SamAdaptError

pytestmark = pytest.mark.usefixtures("tiny_encoder")
READS = {"neck": 1, "pixels": 1}


def snapshot(root):
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in root.rglob("*") if p.is_file()}


def test_encoding_twice_writes_nothing_the_second_time(tmp_path):
    store, encoder = FeatureStore(tmp_path), tiny()
    cases = [disc_case(1), disc_case(2)]
    first = store.encode(cases, MapSpec(encoder, READS))
    assert (first.cases, first.written, first.slices) == (2, 2, 6)
    before, built = snapshot(tmp_path), TinyNetwork.built
    second = store.encode(cases, MapSpec(encoder, READS))
    assert (second.cases, second.written, second.bytes) == (2, 0, 0)
    assert snapshot(tmp_path) == before
    assert TinyNetwork.built == built  # nothing was missing, so no network was needed


def test_stored_maps_are_the_encoder_s_own(tmp_path):
    store, encoder, data = FeatureStore(tmp_path), tiny(), fake_data(1)
    store.encode([data.case("p1_a")], MapSpec(encoder, READS))
    stored, network = Pairs(data, MapSpec(encoder, {"neck": 1}), store), encoder.load()
    live = Pairs(data, MapSpec(encoder, {"neck": 1}))
    assert not stored.encoder_in_loop and live.encoder_in_loop
    for index in range(3):
        features, target = stored[index]
        pixels, same_target = live[index]
        expected = network(pixels["pixels"][None])["neck"][0]
        assert torch.allclose(features["neck"], expected, rtol=1e-3, atol=1e-3)
        assert torch.equal(target, same_target)


@pytest.mark.parametrize("change", ["voxel", "weight", "side", "window", "views", "pooling"])
def test_whatever_changes_the_numbers_is_a_miss(tmp_path, change):
    store, encoder, case = FeatureStore(tmp_path), tiny(), disc_case(1)
    reads, recipe = {"neck": 1}, {}
    store.encode([case], MapSpec(encoder, reads, **recipe))
    if change == "voxel":
        case.image[0, 1, 5, 5] += 1
    elif change == "weight":
        encoder = tiny(seed=1)
    elif change == "side":
        encoder = tiny(side=32)
    elif change == "window":
        recipe = {"window": "0,50"}
    elif change == "views":
        recipe = {"views": 3, "augmentation": "default"}
    else:
        reads = {"neck": 4}
    with pytest.raises(SamAdaptError, match="no stored maps"):
        store.read(case, MapSpec(encoder, reads, **recipe))
    assert store.encode([case], MapSpec(encoder, reads, **recipe)).written == 1
    maps, frame = store.read(case, MapSpec(encoder, reads, **recipe))
    assert maps["neck"].shape[:2] == (recipe.get("views", 1), 3)
    assert frame.original_size == (40, 32)


def test_two_data_sets_with_a_case_of_the_same_name_share_a_store(tmp_path):
    store, encoder, ours, theirs = FeatureStore(tmp_path), tiny(), disc_case(1), disc_case(1)
    theirs.image[0, 0, 0, 0] += 1
    assert store.encode([ours], MapSpec(encoder, READS)).written == 1
    held, _ = store.read(ours, MapSpec(encoder, READS))
    before = np.array(held["neck"])
    assert store.encode([theirs], MapSpec(encoder, READS)).written == 1
    assert store.encode([ours, theirs], MapSpec(encoder, READS)).written == 0
    assert np.array_equal(store.read(ours, MapSpec(encoder, READS))[0]["neck"], before)
    assert not np.array_equal(store.read(theirs, MapSpec(encoder, READS))[0]["neck"], before)


def test_a_note_about_another_image_is_worth_nothing(tmp_path):
    store, encoder, case = FeatureStore(tmp_path), tiny(), disc_case(1)
    store.encode([case], MapSpec(encoder, {"neck": 1}))
    path = next(tmp_path.rglob("frame.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_sha256": "0" * 64}))
    store.encode([case], MapSpec(encoder, {"neck": 4}))
    with pytest.raises(SamAdaptError, match="no stored maps"):
        store.read(case, MapSpec(encoder, {"neck": 1}))
    store.read(case, MapSpec(encoder, {"neck": 4}))


def test_a_killed_encode_leaves_nothing_that_is_read(tmp_path):
    store, encoder, case = FeatureStore(tmp_path), tiny(), disc_case(1)

    def die(report):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.encode([case], MapSpec(encoder, READS), batch_size=1, progress=die)
    with pytest.raises(SamAdaptError, match="no stored maps"):
        store.read(case, MapSpec(encoder, READS))
    assert store.encode([case], MapSpec(encoder, READS)).written == 1


def contents(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("*.npy"))}


def test_a_killed_encode_goes_on_to_the_same_digits(tmp_path):
    """Cases of one slice share batches, and the batches of an encode that goes on are others."""
    encoder, cases = tiny(), [disc_case(number, depth=1 + number % 2) for number in range(9)]
    FeatureStore(tmp_path / "whole").encode(cases, MapSpec(encoder, READS), batch_size=3)

    def die(report):
        if report.slices >= 6:
            raise KeyboardInterrupt

    store = FeatureStore(tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        store.encode(cases, MapSpec(encoder, READS), batch_size=3, progress=die)
    assert 0 < len(contents(store.root)) < len(contents(tmp_path / "whole"))  # what was finished was kept
    assert not list(tmp_path.rglob(".*"))
    assert store.encode(cases, MapSpec(encoder, READS), batch_size=3).written < 9
    found, expected = contents(store.root), contents(tmp_path / "whole")
    assert found == expected
    store = FeatureStore(tmp_path / "in parts")
    store.encode(cases[4:], MapSpec(encoder, READS), batch_size=3)
    store.encode(cases, MapSpec(encoder, READS), batch_size=3)
    assert contents(store.root) == expected


def test_slices_of_several_cases_are_one_batch(tmp_path, monkeypatch):
    sizes = []

    def count(extractor, batch):
        sizes.append(len(batch))
        return encode_batch(extractor, batch)

    encode_batch = encoding._encode_batch
    monkeypatch.setattr(encoding, "_encode_batch", count)
    report = FeatureStore(tmp_path).encode(
        [disc_case(n, depth=1) for n in range(9)], MapSpec(tiny(), READS), batch_size=4
    )
    assert sizes == [4, 4, 4] and (report.slices, report.cases, report.written) == (9, 9, 9)


def test_an_image_that_cannot_be_read_stops_the_encoding_and_what_came_before_it_is_kept(tmp_path):
    def cases():
        yield disc_case(1)
        yield disc_case(2, depth=1)
        raise SamAdaptError("case 3 cannot be read")

    store = FeatureStore(tmp_path)
    with pytest.raises(SamAdaptError, match="case 3 cannot be read"):
        store.encode(cases(), MapSpec(tiny(), READS))
    assert not list(tmp_path.rglob(".*"))
    for case in (disc_case(1), disc_case(2, depth=1)):
        store.read(case, MapSpec(tiny(), READS))


def test_a_case_that_is_given_twice_is_encoded_once(tmp_path):
    case = disc_case(1, depth=70)  # more slices than are written together
    assert FeatureStore(tmp_path).encode([case, case], MapSpec(tiny(), READS)).written == 1


class FullDisk:
    """A file that has room for so many bytes and no more; as the system's, it says so late."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __getattr__(self, name):
        return getattr(self.file, name)

    def flush(self):
        if self.file.tell() > self.room:
            raise OSError(28, "No space left on device")
        self.file.flush()


def test_a_disk_that_fills_up_while_maps_are_written(tmp_path, monkeypatch):
    def open_small(path, mode="r", *rest, **named):
        file = open(path, mode, *rest, **named)  # noqa: SIM115
        return FullDisk(file, 100) if mode == "wb" else file

    monkeypatch.setattr("samadapt.files.open", open_small, raising=False)
    with pytest.raises(SamAdaptError, match=r"could not write .*neck@1.npy: No space left.*rerun"):
        FeatureStore(tmp_path).encode([disc_case(1)], MapSpec(tiny(), READS))
    assert not list(tmp_path.rglob("*.npy")) and not list(tmp_path.rglob("frame.json"))


def test_a_truncated_map_is_a_miss(tmp_path):
    store, encoder, case = FeatureStore(tmp_path), tiny(), disc_case(1)
    store.encode([case], MapSpec(encoder, READS))
    path = next(tmp_path.rglob("neck@1.npy"))
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(SamAdaptError, match="no stored maps"):
        store.read(case, MapSpec(encoder, READS))
    assert store.encode([case], MapSpec(encoder, READS)).written == 1
    store.read(case, MapSpec(encoder, READS))


def test_a_full_disk_is_said_and_keeps_finished_cases(tmp_path, monkeypatch):
    store, encoder = FeatureStore(tmp_path), tiny()
    store.encode([disc_case(1)], MapSpec(encoder, READS))

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(SamAdaptError, match=r"No space left.*rerun"):
            store.encode([disc_case(1), disc_case(2)], MapSpec(encoder, READS))
    assert not [path for path in tmp_path.rglob(".*")]
    store.read(disc_case(1), MapSpec(encoder, READS))


def test_views_are_seeded_and_view_zero_is_the_image(tmp_path):
    recipe = {"views": 3, "augmentation": "default"}
    encoder, case = tiny(), disc_case(1)
    maps = []
    for name in ("a", "b"):
        store = FeatureStore(tmp_path / name)
        store.encode([case], MapSpec(encoder, {"neck": 1}, **recipe))
        maps.append(np.asarray(store.read(case, MapSpec(encoder, {"neck": 1}, **recipe))[0]["neck"]))
    assert np.array_equal(*maps)
    plain = FeatureStore(tmp_path / "c")
    plain.encode([case], MapSpec(encoder, {"neck": 1}))
    assert np.array_equal(plain.read(case, MapSpec(encoder, {"neck": 1}))[0]["neck"][0], maps[0][0])
    assert not np.array_equal(maps[0][0], maps[0][1])


def test_stored_views_and_their_pixels_and_labels_belong_together(tmp_path):
    recipe = {"views": 4, "augmentation": "default"}
    store, encoder, data = FeatureStore(tmp_path), tiny(), fake_data(1)
    store.encode([data.case("p1_a")], MapSpec(encoder, READS, **recipe))
    pairs = Pairs(data, MapSpec(encoder, READS, **recipe), store)
    seen, network = set(), encoder.load()
    for key in range(12):
        features, target = pairs.item(1, (key,))
        expected = network(features["pixels"][None])["neck"][0]
        assert torch.allclose(features["neck"], expected, rtol=1e-3, atol=1e-3)
        seen.add(int((target == 1).sum()))
    assert 2 <= len(seen) <= 4


def test_unknown_tap_and_broken_note(tmp_path):
    store, encoder, case = FeatureStore(tmp_path), tiny(), disc_case(1)
    with pytest.raises(SamAdaptError, match="block7"):
        store.encode([case], MapSpec(encoder, {"block7": 1}))
    store.encode([case], MapSpec(encoder, READS))
    note = next(tmp_path.rglob("frame.json"))
    assert json.loads(note.read_text())["frame"]["side"] == 64
    note.write_text("{")
    assert store.encode([case], MapSpec(encoder, READS)).written == 1


def test_pairs_targets_and_batches():
    data, encoder = fake_data(1, 2), tiny()
    pairs = Pairs(data, MapSpec(encoder, {"pixels": 1}, augmentation="default"))
    assert len(pairs) == 6
    assert not pairs.encoder_in_loop
    features, target = pairs.batch([0, 5], key=(0, 0))
    assert features["pixels"].shape == (2, 3, 64, 64)
    assert target.shape == (2, 2, LABEL_GRID, LABEL_GRID)
    known = target.sum(1)
    assert (known == 0).any() and torch.allclose(known[known > 0], torch.ones(()))
    again, _ = pairs.batch([0, 5], key=(0, 0))
    other, _ = pairs.batch([0, 5], key=(0, 1))
    assert torch.equal(features["pixels"], again["pixels"])
    assert not torch.equal(features["pixels"], other["pixels"])
    assert sorted(set(data.loads)) == data.ids
    assert len(data.loads) == 2  # each case was read once


def test_maps_that_cannot_be_and_empty_data_are_refused():
    with pytest.raises(SamAdaptError, match="views is 0"):
        MapSpec(tiny(), READS, views=0)
    with pytest.raises(SamAdaptError, match="same image"):
        MapSpec(tiny(), READS, views=2)
    with pytest.raises(SamAdaptError, match="augmentation 'wild'"):
        MapSpec(tiny(), READS, augmentation="wild")
    with pytest.raises(SamAdaptError, match="no cases"):
        Pairs(fake_data(), MapSpec(tiny(), {"neck": 1}))


@pytest.mark.parametrize(
    ("side", "device", "slices"),
    [
        (64, "cpu", 32),
        (128, "cpu", 16),
        (256, "cpu", 4),
        (512, "cpu", 1),
        (1024, "cpu", 1),
        (1024, "cuda", 4),
    ],
)
def test_large_squares_go_one_by_one(side, device, slices):
    """One slice at 1024 fills a processor; a batch of four, which one slice would be filled up to, takes four times as long."""
    assert default_batch(side, device) == slices
