"""The model of encoding at scale (benchmarks/scale.py): what it must do whatever the figures are."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from types import ModuleType

import pytest

simpy = pytest.importorskip("simpy")

from benchmarks.scale_model import LISTING, Storage, Work, Workers, simulate  # noqa: E402

#: 1,000 cases of 10 slices and half a second, as long as it takes whoever computes them.
WORK = Work(
    1000,
    slices=10,
    seconds=0.5,
    spread=0.05,
    bytes_read=1e5,
    bytes_written=1e6,
    files=2,
    changes=8,
    look_ups=7,
)
FREE = Storage()


def seconds(number: int, storage: Storage = FREE, work: Work = WORK, **more: float) -> float:
    return simulate(work, Workers(number, **more), storage).seconds


def test_one_worker_takes_the_sum_of_its_work() -> None:
    plain = dataclasses.replace(WORK, spread=0.0)
    assert seconds(1, work=plain) == pytest.approx(1000 * 10 * 0.5)
    slow_disk = Storage(written=1e6, change_wait=0.01)
    assert seconds(1, slow_disk, plain) == pytest.approx(5000 + 1000 * (1 + 8 * 0.01))
    assert seconds(1, work=plain, plan=0.1, start=3.0) == pytest.approx(5000 + 100 + 3)


def test_twice_the_workers_take_half_the_time_until_the_files_saturate() -> None:
    times = {number: seconds(number) for number in (1, 2, 4, 8)}
    for number in (1, 2, 4):
        assert times[number] / times[2 * number] == pytest.approx(2, rel=0.1)
    disk = Storage(written=4e6)  # 1,000 MB in 250 s at best
    alone, few, many, more = (simulate(WORK, Workers(n), disk) for n in (1, 2, 64, 128))
    assert alone.seconds / few.seconds == pytest.approx(2, rel=0.1) and few.bottleneck == "computing"
    assert many.bottleneck == more.bottleneck == "bytes written" and more.use["bytes written"] <= 1
    assert more.seconds >= 250 and more.seconds / many.seconds > 0.9  # twice as many are of no use


@pytest.mark.parametrize(
    ("storage", "name"),
    [
        (Storage(changes=10), "changes of folders"),
        (Storage(look_ups=10), "look-ups"),
        (Storage(read=1e5), "bytes read"),
        (Storage(change_wait=1.0), "waits for single calls"),
    ],
)
def test_the_bottleneck_is_what_was_made_scarce(storage: Storage, name: str) -> None:
    assert simulate(WORK, Workers(64), storage).bottleneck == name


def test_listing_is_the_bottleneck_where_it_takes_longest() -> None:
    out = simulate(WORK, Workers(64, plan=1.0), FREE)
    assert out.bottleneck == LISTING and out.planning == 1000
    assert out.encoding == pytest.approx(seconds(64)) and out.seconds == out.planning + out.encoding


def test_a_driver_that_sends_slowly_is_the_bottleneck() -> None:
    slow = simulate(WORK, Workers(500, send=5.0), FREE)
    assert slow.bottleneck == "driver" and slow.seconds >= 5 * slow.tasks


@pytest.mark.parametrize("seed", range(5))
def test_no_case_is_counted_twice_when_workers_are_lost(seed: int) -> None:
    out = simulate(WORK, Workers(8, start=5.0, losses=20.0, retries=100), FREE, seed)
    assert out.lost > 5 and out.again > 0
    assert (out.cases, out.failed) == (1000, 0)
    assert out.seconds > seconds(8)


def test_a_shard_that_is_lost_too_often_fails_and_is_not_counted() -> None:
    out = simulate(WORK, Workers(8, start=1.0, losses=2000.0, retries=1), FREE)
    assert out.failed > 0 and out.cases + out.failed == 1000


def test_stragglers_cost_time() -> None:
    assert seconds(20, slow=(0.2, 4.0)) > 1.1 * seconds(20)


def test_seeds_repeat() -> None:
    shaky = Workers(8, losses=5.0, start=2.0, slow=(0.1, 2.0))
    assert simulate(WORK, shaky, FREE, 3) == simulate(WORK, shaky, FREE, 3)
    assert simulate(WORK, shaky, FREE, 3) != simulate(WORK, shaky, FREE, 4)


def test_tasks_simulated_together_take_as_long() -> None:
    many = dataclasses.replace(WORK, cases=100_000)
    workers, disk = Workers(4, send=0.01), Storage(written=1e9)
    fine, coarse = simulate(many, workers, disk), simulate(many, workers, disk, most_tasks=100)
    assert fine.tasks == coarse.tasks == 391
    assert coarse.cases == 100_000 and coarse.seconds == pytest.approx(fine.seconds, rel=0.03)


def test_packing_changes_files_and_nothing_else() -> None:
    packed = WORK.packed(100)
    assert (packed.files, packed.changes, packed.look_ups) == pytest.approx((0.02, 0.08, 0.07))
    assert packed.bytes_written == WORK.bytes_written and packed.seconds == WORK.seconds


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, as it is run: beside the modules that it imports."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("scale")


def test_every_input_has_a_source_and_no_gpu_is_said_to_be_measured(scale: ModuleType) -> None:
    for name, each in scale.INPUTS.items():
        assert each.value > 0 and each.source and each.kind in ("measured", "published", "assumed"), name
    for row in scale.GPU_ROWS:
        assert scale.INPUTS[row.name].kind == "published" and "NOT MEASURED" in scale.INPUTS[row.name].source


def test_bytes_are_those_that_samadapt_stores(scale: ModuleType) -> None:
    row = scale.Row("sam_vit_b", 1024, "bf16", "autosam")
    work = scale.work_of(row, slices=100, per_case=8)
    assert work.cases == 13 and work.files == 2
    assert work.bytes_written == 8 * 2 * 256 * 64 * 64  # the neck in float16
