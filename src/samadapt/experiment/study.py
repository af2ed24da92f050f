"""Run the grid: encode once, then cell by cell or several side by side; resumable; a failure stops only itself."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samadapt.datasets import Dataset
from samadapt.experiment.cells import Study
from samadapt.experiment.executors import Executor, LocalExecutor
from samadapt.experiment.grid import Cell, Grid, make_cells, open_experiment
from samadapt.experiment.methods import Encode
from samadapt.features import EncodeReport, FeatureStore, encode_line
from samadapt.files import demand_writable, write_json
from samadapt.metrics import check_cell_scores
from samadapt.progress import clock
from samadapt.runs import pick_device, precision_note
from samadapt.settings import CellOptions
from samadapt.training import TrainConfig
from samadapt.types import SamAdaptError

Progress = Callable[[str], None]
#: Fewer stored pictures than this are said aloud: they can cost much (docs/studies.md).
FEW_PICTURES = 300


@dataclass
class Outcome:
    """What became of the cells."""

    out: Path
    found: int = 0  # done before
    done: int = 0  # done now
    failed: dict[str, str] = field(default_factory=dict)  # cell, in words -> message
    cells: list[dict[str, Any]] = field(default_factory=list)  # where listed: what each is, and its state


def run_experiment(
    data: Dataset,
    grid: Grid,
    config: TrainConfig,
    out: str | Path,
    store: FeatureStore,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Outcome:
    """Fill the grid in a folder. Running it again does what is missing, and what failed.

    Every number depends on the cell alone: not on the order, on `jobs`, or on what was resumed. The number of
    threads of a cell can change the last digits, so `experiment.json` keeps it.

    Args:
        config: of all learners; a cell's seed is the grid's.
        store: where the frozen encoders' maps lie; what is missing is encoded first, once.
        jobs: cells side by side, each in a process of its own.
        progress: called with a line of text after each step.
    """
    return run_part(data, grid, config, out, store, CellOptions(jobs=jobs), progress)


def run_part(
    data: Dataset,
    grid: Grid,
    config: TrainConfig,
    out: str | Path,
    store: FeatureStore,
    part: CellOptions,
    progress: Progress | None = None,
    *,
    executor: Executor | None = None,
) -> Outcome:
    """`run_experiment`, or that part of it that is to be done here where other processes do the rest.

    Args:
        executor: runs the cells; None: processes of this machine.
    """
    jobs, executor = part.jobs, executor or LocalExecutor(part.jobs)
    if config.devices > 1:
        raise SamAdaptError(
            f"devices is {config.devices}; each run of a study has one device: leave it out, and run several side by side "
            "with --jobs"
        )
    demand_writable(out, "--out")
    say, out = progress or _silent, Path(out)
    cells = make_cells(data, grid, config)
    threads = open_experiment(out, data, grid, config, cells, jobs, shared=bool(part.cell))
    study = Study(data, out, store, threads)
    if part.list_cells:
        return Outcome(out, cells=[_listed(cell, out / cell.digest) for cell in cells])
    cells = _chosen(cells, part.cell)
    missing = [cell for cell in cells if not (out / cell.digest / "scores.csv").is_file()]
    for cell in cells:
        if cell not in missing:
            check_cell_scores(out / cell.digest)
    outcome = Outcome(out, found=len(cells) - len(missing))
    say(
        f"{len(cells)} cells, {outcome.found} done before; {executor.places}, {threads} thread{'s' * (threads > 1)} each"
    )
    if missing:
        if note := precision_note(config):
            say(note)
        _encode(study, missing, config.device, say)
        _prepare(study, missing, executor, say)
    start = time.monotonic()
    if part.prepare:
        return outcome
    for number, (cell, result) in enumerate(executor.run(study, missing), start=1):
        if result == "done":
            outcome.done += 1
        else:
            outcome.failed[str(cell)] = result
        left = (time.monotonic() - start) / number * (len(missing) - number)
        what = "done" if result == "done" else f"FAILED: {result}"
        say(f"[{number}/{len(missing)}] {cell}: {what}; {clock(left)} left")
    return outcome


def _listed(cell: Cell, folder: Path) -> dict[str, Any]:
    """A line of the list of cells."""
    names = {"scores.csv": "done", "failed.json": "failed", "config.json": "begun"}
    state = next((state for name, state in names.items() if (folder / name).is_file()), "waiting")
    what = {"learner": cell.learner, "labels": cell.labels, "seed": cell.seed}  # labels: null is all
    return {"digest": cell.digest, "state": state, **what, "cell": str(cell)}


def _chosen(cells: list[Cell], digests: Sequence[str]) -> list[Cell]:
    """The cells of these digests, or all where none is given."""
    known = {cell.digest: cell for cell in cells}
    unknown = [digest for digest in digests if digest not in known]
    if unknown:
        raise SamAdaptError(
            f"the study has no cell {unknown[0]!r}; it has {', '.join(list(known)[:3])}, ... (--list-cells with the same options)"
        )
    return [known[digest] for digest in digests] or cells


# ---------------------------------------------------------------- encode once


def _silent(text: str) -> None:
    """For those who want to hear nothing."""


def _encode(study: Study, cells: list[Cell], device: str, say: Progress) -> None:
    """All maps that the cells will read: each encoder runs once over each image and view."""
    report = EncodeReport()
    wanted = _merged(study, cells, say)
    say(_disk(study, cells, wanted))
    for views in sorted({encode.maps.views for encode in wanted if not encode.scored} - {1}):
        _tell_few(study, cells, views, say)
    for encode in wanted:
        cases = study.data[_read_by(study, cells, encode)]
        try:
            one = study.store.encode(
                cases,
                encode.maps,
                pick_device(device),
                progress=encode_line(len(cases), encode.maps.encoder.name, quiet=say is _silent),
            )
        except SamAdaptError as error:  # the cells that read these maps will fail with it, each recorded
            say(
                f"encoder {encode.maps.encoder.name}: no maps could be stored: {study.data.without_paths(str(error))}"
            )
            continue
        for name in ("written", "bytes", "slices", "seconds"):
            setattr(report, name, getattr(report, name) + getattr(one, name))
    if report.written:
        path = study.out / "encoding.json"
        before = json.loads(path.read_text()) if path.is_file() else {"slices": 0, "bytes": 0, "seconds": 0.0}
        write_json(path, {key: round(value + getattr(report, key), 2) for key, value in before.items()})
        say(f"encoded {report.slices} slices, {report.bytes / 2**20:.0f} MiB, in {clock(report.seconds)}")


def _read_by(study: Study, cells: list[Cell], encode: Encode) -> tuple[str, ...]:
    """The cases whose maps these are."""
    if encode.scored:
        return cells[0].split.val
    wanted = {i for cell in cells for i in (*cell.split.train, *cell.split.select)}
    wanted |= {i for cell in cells for i in cell.split.pool} if encode.pool else set()
    return tuple(i for i in study.data.ids if i in wanted)


def _disk(study: Study, cells: list[Cell], wanted: list[Encode]) -> str:
    """How much of the disk the maps take."""
    size = sum(
        encode.maps.bytes_per_slice * sum(map(study.data.depth, _read_by(study, cells, encode)))
        for encode in wanted
    )
    return study.store.disk_note(size) if size else "no feature maps are stored"


def _tell_few(study: Study, cells: list[Cell], views: int, say: Progress) -> None:
    """Stored views are all that a method sees; of few slices that is little."""
    fewest = min((cell.split.train for cell in cells), key=len)
    slices = sum(study.data.case(i).image.shape[1] for i in fewest)
    if slices * views < FEW_PICTURES:
        say(
            f"the smallest training set has {slices} slice{'s'[: slices != 1]}: with {views} stored views of each a learner sees "
            f"{slices * views} pictures in all; more views, or 0 (a new one in every step), may do better "
            "(`views` in the table [encoder] of a --grid file, docs/studies.md)"
        )


def _merged(study: Study, cells: list[Cell], say: Progress) -> list[Encode]:
    """The maps that the methods of one encoder read, together, so that it runs once for all of them."""
    merged: dict[object, Encode] = {}
    seen: set[tuple[str, int]] = set()
    for cell in cells:
        key = (cell.learner, cell.seed if cell.method.seeded_encoder else 0)
        if key in seen:
            continue
        seen.add(key)
        try:
            wanted = cell.method.encode(study.data, key[1])
        except SamAdaptError as error:  # its cells will fail with it, each recorded; the others go on
            say(f"{cell.learner} cannot be encoded for: {error}")
            continue
        for encode in wanted:
            _merge(merged, encode)
    return list(merged.values())


def _merge(merged: dict[object, Encode], encode: Encode) -> None:
    maps = encode.maps
    place = (maps.encoder, maps.window, maps.views, maps.augmentation, encode.scored, encode.pool)
    turn = 0  # two heads that want one tap at two pooling windows take two turns
    while (known := merged.get((place, turn))) is not None:
        if all(known.maps.taps.get(tap, window) == window for tap, window in maps.taps.items()):
            break
        turn += 1
    reads = {**(known.maps.taps if known else {}), **maps.taps}
    merged[place, turn] = dataclasses.replace(encode, maps=dataclasses.replace(maps, reads=reads))


def _prepare(study: Study, cells: list[Cell], executor: Executor, say: Progress) -> None:
    """Make what the cells of one method and seed share, before any of them: side by side they would all make it."""
    first = {(cell.learner, cell.seed): cell for cell in reversed(cells)}
    for cell, done in executor.prepare(study, list(reversed(first.values()))):
        if done:
            say(f"{cell.learner}, seed {cell.seed}: {done}")
