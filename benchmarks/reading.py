"""Does training wait for reading? Batches from a store beside the same bytes read raw, and beside a step of the head.

    python benchmarks/reading.py
    python benchmarks/reading.py --data ACDC --encoder imagenet_lite0 --head fused

The same slices of the same maps, in the same random order, in turn: `raw` copies them out of memory-mapped files, with
nothing around it; `store` is what training does, with the placing of targets and the decoding of views; `step` is one
step of the head on a batch that is there already.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from side_by_side import head_loop, in_turn, ratios, spread

import samadapt as sa
from samadapt.features import FeatureStore, Pairs
from samadapt.learner import Learner
from samadapt.phantom import make_phantom

BATCH, BATCHES = 8, 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--encoder", default="sam_nano")
    parser.add_argument("--head", default="fused")
    parser.add_argument("--labels", type=int, default=5)
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = sa.open_dataset(given.data or make_phantom(root / "phantom", patients=given.labels + 2))
        training = data[data.split(labels=given.labels).train]
        learner = Learner(encoder=given.encoder, head=given.head, views=given.views)
        model = learner.build(len(data.classes))
        maps, store = learner.maps(model.head.reads, data.window), FeatureStore(root / "store")
        store.encode(training, maps)
        pairs = Pairs(training, maps, store)
        loop = head_loop(model)
        files = [store.read(training.case(i), maps)[0] for i in training.ids]
        draw = np.random.default_rng(0)
        order = [draw.integers(len(pairs), size=BATCH) for _ in range(BATCHES)]
        where = [
            (n, d) for n, arrays in enumerate(files) for d in range(next(iter(arrays.values())).shape[1])
        ]
        bytes_read = 0

        def raw() -> None:
            nonlocal bytes_read
            bytes_read = 0
            for number, items in enumerate(order):
                for item in items:
                    n, index = where[item]
                    for array in files[n].values():
                        bytes_read += np.array(array[number % len(array), index]).nbytes

        def stored() -> None:
            for number, items in enumerate(order):
                pairs.batch([int(i) for i in items], key=(0, number * BATCH))

        x, target = pairs.batch(list(range(BATCH)))
        runs = {"raw": raw, "store": stored, "step": lambda: loop.update(x, target)}
        for run in runs.values():
            run()
        times = in_turn(runs, given.rounds)
        raw_, store_ = ([t / BATCHES for t in times[name]] for name in ("raw", "store"))
        print(
            f"{given.head} on {given.encoder}, {len(pairs)} slices, {given.views} views, batches of {BATCH}"
        )
        print(f"raw: {spread(raw_, 4)} s a batch, {bytes_read / BATCHES / 2**20:.1f} MiB")
        print(f"store: {spread(store_, 4)} s a batch, {spread(ratios(store_, raw_))} times raw")
        print(
            f"step of the head: {spread(times['step'], 4)} s; reading takes {spread(ratios(store_, times['step']), 3)} of it"
        )


if __name__ == "__main__":
    main()
