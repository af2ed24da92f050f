"""Small data, studies and comparisons that the tests of a cluster share."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from samadapt.cluster import Cluster
from samadapt.experiment import Grid, TrainedMethod, run_part
from samadapt.features import FeatureStore
from samadapt.learner import Learner
from samadapt.settings import CellOptions
from samadapt.training import TrainConfig

CONFIG = TrainConfig(steps=3, batch_size=2, check_every=1, device="cpu", precision="32")
FUSED = Learner("fused", "sam_nano", "random", side=64, views=2)
UNET = Learner("unet", "pixels", side=32, options={"width": 2})


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


def fragile(cluster: Cluster, shards: list[tuple[str, str]]) -> list[tuple[tuple[str, str], int]]:
    """Each shard with its result, of workers that die."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import tests
    try:
        return list(cluster._results("the test", Fragile, (), shards))
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
