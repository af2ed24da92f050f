"""What `scale.py` measures on this machine: the parts of an encode, a whole encode, planning, and listing a large store.

Every part is measured by itself, with functions of samadapt, so that a whole encode can be predicted from them.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from samadapt.datasets import Dataset, open_dataset
from samadapt.features import MapSpec
from samadapt.features.encoding import default_batch
from samadapt.features.notes import write_note
from samadapt.files import Drafts
from samadapt.learner import Learner
from samadapt.transforms import image_hash
from samadapt.types import Frame

_TOGETHER = 64  # cases of one slice that get their names together, as in features.encoding


@dataclass(frozen=True)
class Parts:
    """Seconds of one core, for a case that is one picture: each part of an encode by itself."""

    opening: float  # in the driver: listing, names, patients
    reading: float  # file -> pixels of the encoder's square, and the hash of the image
    network: float
    writing: float  # files of maps and their notes, on the disk


def make_pictures(folder: Path, number: int, side: int) -> Path:
    """A data set of two classes of grey noise."""
    draw = np.random.default_rng(0)
    for name in "ab":
        (folder / name).mkdir(parents=True)
    for i in range(number):
        pixels = draw.integers(0, 255, (side, side), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "ab"[i % 2] / f"p{i:07d}.png")
    return folder


def measure_parts(data: Path, learner: Learner, head_classes: int = 2) -> Parts:
    """Of the encode of a folder of some hundred pictures."""
    opened, opening = timed(lambda: open_dataset(data))
    maps = learner.maps(learner.build(head_classes).head.reads, opened.window).unaugmented
    pixels, reading = timed(lambda: [_prepared(opened, name, maps) for name in opened.ids])
    size = default_batch(maps.encoder.side)
    extractor = maps.encoder.load(maps.taps)
    batch = torch.stack(pixels[:size])
    with torch.inference_mode():
        made = extractor(batch)
        _, network = timed(lambda: [extractor(batch) for _ in range(max(200 // size, 3))])
    arrays = {tap: made[tap][0].float().numpy().astype(np.float16) for tap in extractor.reads}
    with tempfile.TemporaryDirectory(dir=data.parent) as folder:
        _, writing = timed(lambda: _write(Path(folder), 4 * _TOGETHER, maps, arrays))
    number = len(opened)
    rounds = max(200 // size, 3) * size
    return Parts(opening / number, reading / number, network / rounds, writing / (4 * _TOGETHER))


def preparing(data: Path, learner: Learner) -> float:
    """Seconds of the processor for a picture: file -> pixels of the encoder's square, and the hash of the image."""
    opened = open_dataset(data)
    maps = learner.maps(learner.build(2).head.reads, opened.window).unaugmented
    start = time.process_time()
    for name in opened.ids:
        _prepared(opened, name, maps)
    return (time.process_time() - start) / len(opened)


def _prepared(data: Dataset, name: str, maps: MapSpec) -> torch.Tensor:
    case = data.case(name)
    image_hash(case)
    return maps.view.of(case)(0, None)[0]


def _write(folder: Path, number: int, maps: MapSpec, arrays: dict[str, np.ndarray]) -> None:
    frame = Frame((28, 28), (maps.encoder.side,) * 2, maps.encoder.side)
    for start in range(0, number, _TOGETHER):
        with Drafts() as drafts:
            paths = {
                i: [folder / f"p{i}" / f"{tap}@1.npy" for tap in arrays]
                for i in range(start, start + _TOGETHER)
            }
            for case in paths.values():
                for path, array in zip(case, arrays.values(), strict=True):
                    drafts.write(path, array.tobytes())
                    drafts.end(path)
            drafts.place()
            for i, case in paths.items():
                write_note(folder / f"p{i}", "0" * 64, frame, {path: 1 for path in case}, 1)


def timed(run: Callable[[], object]) -> tuple[object, float]:
    """What it gives, and how many seconds it took."""
    start = time.monotonic()
    result = run()
    return result, time.monotonic() - start


def encode_seconds(data: Path, store: Path, words: list[str]) -> float:
    """Of `samadapt encode` as a command, on one core."""
    core = min(os.sched_getaffinity(0))
    command = [sys.executable, "-m", "samadapt.cli", "encode", str(data), *words, "--store", str(store), "--json", "--quiet"]  # fmt: skip
    start = time.monotonic()
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    return time.monotonic() - start


def planning(number: int, root: Path) -> str:
    """What the driver does before the first task, for so many pictures."""
    folder = make_pictures(root / f"pictures{number}", number, 28)
    start = time.process_time()
    data = open_dataset(folder)
    opening = time.process_time() - start
    sent = pickle.dumps(data)
    tracemalloc.start()
    copy = pickle.loads(sent)  # as each worker does
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del copy
    start = time.process_time()
    data.split(labels=10)
    splitting = time.process_time() - start
    _, hashing = timed(lambda: data.hash)
    _, headers = timed(lambda: [data.depth(name) for name in data.ids[:500]])
    return (
        f"{number} pictures: open_dataset {1e3 * opening / number:.2f} ms of the processor each, split {splitting:.2f} s, hash of all files "
        f"{1e3 * hashing / number:.2f} ms each, header {2 * headers:.2f} ms each, {len(sent) / number:.0f} bytes each sent to a worker, which "
        f"holds {held / number:.0f} bytes each"
    )


def listing(number: int, root: Path) -> str:
    """A store of so many cases that are not real: making it, listing it, asking for cases in it."""
    folder = root / "store"
    note = json.dumps({"image_sha256": "0" * 64, "frame": {}, "maps": {"neck@1": {"views": 1, "bytes": 128}}})

    def make() -> None:
        for i in range(number):
            case = folder / f"train_{i:08d}-{i:012x}"
            case.mkdir(parents=True)
            (case / "frame.json").write_text(note)
            (case / "neck@1.npy").write_bytes(bytes(128))

    def ask() -> None:
        for i in range(0, number, 10):
            json.loads((folder / f"train_{i:08d}-{i:012x}" / "frame.json").read_text())

    _, making = timed(make)
    _, names = timed(lambda: sum(1 for _ in os.scandir(folder)))
    _, notes = timed(lambda: sum(1 for _ in folder.glob("*/frame.json")))
    _, asking = timed(ask)
    taken = sum(path.stat().st_blocks * 512 for case in os.scandir(folder) for path in Path(case).iterdir())
    return (
        f"a store of {number} cases: made in {1e3 * making / number:.2f} ms each, its names listed in {names:.2f} s, its notes found in "
        f"{notes:.1f} s, one note read in {1e4 * asking / number:.3f} ms; files of 128 and {len(note)} bytes take {taken / number:.0f} bytes of the "
        "disk, and their folder 4096"
    )
