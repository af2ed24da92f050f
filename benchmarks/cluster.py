"""What Ray costs: the start of a cluster and of its workers, and each task, of cells and of encoding.

    python benchmarks/cluster.py
    python benchmarks/cluster.py --ray HOST:PORT --folder /shared/empty

The cells and maps are there already, so that all that is left of a task is to send it, to look whether the machine is
like this one, to find its result, and to answer.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from samadapt.cluster import Cluster, connect
from samadapt.datasets import Dataset, open_dataset
from samadapt.experiment import Grid, Study, TrainedMethod, run_part
from samadapt.experiment.grid import make_cells
from samadapt.features import FeatureStore
from samadapt.learner import Learner
from samadapt.phantom import make_phantom
from samadapt.settings import CellOptions
from samadapt.training import TrainConfig

CONFIG = TrainConfig(steps=3, batch_size=2, check_every=1, device="cpu", precision="32")
UNET = Learner("unet", "pixels", side=32, options={"width": 2})
FUSED = Learner("fused", "sam_nano", "random", side=64, views=2)


def cell_cost(cluster: Cluster, data: Dataset, folder: Path, number: int) -> float:
    """Seconds that one cell takes which is done already, of so many; the workers are there."""
    grid = Grid({"unet": TrainedMethod(UNET)}, (1,), (0,), threads=1)
    store = FeatureStore(folder / "maps")
    if run_part(data, grid, CONFIG, folder / "study", store, CellOptions(), lambda line: None).failed:
        raise RuntimeError("the cell failed")
    study, cells = Study(data, (folder / "study").absolute(), store), make_cells(data, grid, CONFIG)
    for _ in cluster.run(study, cells * 4):
        pass
    start = time.monotonic()
    results = {result for _, result in cluster.run(study, cells * number)}
    if results != {"done"}:
        raise RuntimeError(f"{results} in place of done")
    return (time.monotonic() - start) / number


def encode_cost(cluster: Cluster, data: Dataset, folder: Path) -> float:
    """Seconds of an `encode` that finds all maps stored; the workers are there, their networks are not."""
    maps, root = FUSED.maps({"neck": 1}, data.window), folder / "encoded"
    cluster.encode(root, data, maps, None)
    start = time.monotonic()
    if cluster.encode(root, data, maps, None).written:
        raise RuntimeError("maps were not stored")
    return time.monotonic() - start


@contextmanager
def place(folder: Path | None) -> Iterator[Path]:
    """The folder that was given, else one that goes away."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as own:
        yield Path(own)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ray", default="local", help="as of samadapt")
    parser.add_argument("--cores", type=int, default=2, help="of a local cluster")
    parser.add_argument("--folder", type=Path, help="an empty one that all machines see")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with place(given.folder) as folder:
        data = open_dataset(make_phantom(folder / "data", patients=5, size=48, slices=3))
        start = time.monotonic()
        with connect(given.ray, "cpu", given.cores) as cluster:
            print(f"{cluster.description}: ready after {time.monotonic() - start:.1f} s")
            start = time.monotonic()
            cell_cost(cluster, data, folder, 1)
            print(f"first cell here, and workers that have loaded torch: {time.monotonic() - start:.1f} s")
            for number in (100, 1000):
                each = 1000 * cell_cost(cluster, data, folder, number)
                print(f"overhead of a cell, of {number}: {each:.1f} ms")
            print(f"encode of {len(data)} stored cases: {encode_cost(cluster, data, folder):.2f} s")


if __name__ == "__main__":
    main()
