"""Peak memory of encoding, each in a process of its own: one slice, a whole volume, any encoder.

    python benchmarks/memory.py                           # sam_vit_b at 1024, one slice and four; sam_nano at 256, one and 500
    python benchmarks/memory.py --encoder lite_medsam --side 256 --slices 1 100

What is printed is the most that the process ever held (ru_maxrss), Python, torch and the weights included.
"""

from __future__ import annotations

import argparse
import dataclasses
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

import samadapt as sa
from samadapt.encoders import EncoderSpec
from samadapt.features import FeatureStore, MapSpec
from samadapt.names import ENCODER_DTYPES
from samadapt.phantom import make_phantom

CASES = [("sam_vit_b", 1024, 1), ("sam_vit_b", 1024, 4), ("sam_nano", 256, 1), ("sam_nano", 256, 500)]


def encode(name: str, side: int, slices: int, precision: str) -> None:
    """In this process; prints the peak in GiB."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = sa.open_dataset(make_phantom(Path(folder) / "phantom", patients=3))
        case = data.case(data.ids[0])
        image = case.image.repeat(1, -(-slices // case.image.shape[1]), 1, 1)[:, :slices].contiguous()
        case = dataclasses.replace(case, image=image, label=None)
        spec = EncoderSpec(name, "random", side, dtype=ENCODER_DTYPES[precision])
        FeatureStore(Path(folder) / "store").encode([case], MapSpec(spec, {"neck": 1}, data.window))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder")
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--slices", type=int, nargs="+", default=[1])
    parser.add_argument("--precision", choices=list(ENCODER_DTYPES), default="32")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        encode(given.encoder, given.side, given.slices[0], given.precision)
        return
    cases = [(given.encoder, given.side, n) for n in given.slices] if given.encoder else CASES
    for name, side, slices in cases:
        options = [
            "--encoder",
            name,
            "--side",
            str(side),
            "--slices",
            str(slices),
            "--precision",
            given.precision,
        ]
        done = subprocess.run(
            [sys.executable, __file__, *options, "--here"], capture_output=True, text=True, check=True
        )
        print(
            f"{name}, side {side}, {slices} slice(s), {given.precision}: {float(done.stdout):.2f} GiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
