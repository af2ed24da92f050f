"""What encoding costs: a roofline table of every encoder, and how time grows with slices, side, views and labels.

    python benchmarks/costs.py                                  # all encoders at 256; SAM and others also at 512 and 1024
    python benchmarks/costs.py --encoders sam_nano lite_medsam --sides 256
    python benchmarks/costs.py --growth --figure growth.png     # sam_nano on samadapt's phantom: four curves

A row has the floating point operations of a slice (products and convolutions; a multiplication and an addition are two),
the bytes of its weights and of the map that is stored, the seconds of the processor, and what share of the rate of a
large float32 product, measured in the same minute, the encoder reaches. Weights are random where the trained ones are
not on this machine: time does not depend on them.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import torch
from matplotlib import pyplot as plt
from side_by_side import flops, in_turn, matmul_rate, seconds

import samadapt as sa
from samadapt.encoders import ENCODERS, EncoderSpec
from samadapt.features import FeatureStore, MapSpec
from samadapt.names import ENCODER_DTYPES
from samadapt.phantom import make_phantom
from samadapt.types import SamAdaptError
from samadapt.weights import HubModel

SIDES = (256, 512, 1024)
_TICKS = (0.1, 0.2, 0.5, 1, 2, 5)  # seconds


def spec_of(name: str, side: int, precision: str) -> EncoderSpec:
    """With its trained weights where they are here."""
    entry = ENCODERS[name]
    here = not isinstance(entry.published, HubModel | None) and entry.missing_file is None
    checkpoint = None if here else "random"  # nothing is downloaded for a timing
    try:
        return EncoderSpec(name, checkpoint, side, dtype=ENCODER_DTYPES[precision])
    except SamAdaptError:
        return EncoderSpec(name, "random", side, dtype=ENCODER_DTYPES[precision])


def row(name: str, side: int, given: argparse.Namespace) -> str | None:
    """A line of the table; None where the encoder cannot be at this side."""
    try:
        spec = spec_of(name, side, given.precision)
        tap = "neck" if "neck" in spec.taps else list(spec.taps)[-1]
        extractor = spec.load({tap: 1})
    except SamAdaptError as error:
        return None if given.sides != [side] else f"| {name} | {side} | {error} |"
    x = torch.rand(1, 3, side, side)
    with torch.inference_mode():
        extractor(x)
        times = in_turn({name: lambda: extractor(x)}, given.rounds)[name]
        work = flops(lambda: extractor(x))
    rate, taken = matmul_rate(), statistics.median(times)
    weights = sum(p.numel() * p.element_size() for p in extractor.parameters())
    channels, height, width = spec.taps[tap]
    share = work / taken / 1e9 / rate
    return (
        f"| `{name}` | {side} | {work / 1e9:.1f} | {weights / 2**20:.0f} | {2 * channels * height * width / 2**20:.2f} | "
        f"{taken:.3f} | {share:.0%} |"
    )


def table(given: argparse.Namespace) -> None:
    """Of the encoders at the sides."""
    print(f"one slice, one thread, {given.precision}; median of {given.rounds}")
    print(
        "| encoder | side | GFLOP | MiB of weights | MiB of the last map | seconds | share of the matrix rate |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in given.encoders:
        for side in given.sides:
            line = row(name, side, given)
            if line:
                print(line, flush=True)


# ---------------------------------------------------------------- growth


def growth(given: argparse.Namespace) -> None:
    """Four curves of `sam_nano`, and the file with them."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = sa.open_dataset(make_phantom(root / "phantom", patients=10))
        case = data.case(data.ids[0])
        counter = iter(range(10**6))

        def encode(cases: Sequence[sa.Case], views: int, side: int) -> float:
            augmentation = "default" if views > 1 else "none"
            maps = MapSpec(EncoderSpec("sam_nano", None, side), {"neck": 1}, data.window, views, augmentation)
            store = FeatureStore(root / str(next(counter)))
            return seconds(lambda: store.encode(cases, maps))

        def slices(count: int) -> float:
            times = -(-count // case.image.shape[1])
            image = case.image.repeat(1, times, 1, 1)[:, :count].contiguous()
            return encode([dataclasses.replace(case, image=image, label=None)], 1, 128)

        curves: list[tuple[str, Sequence[int], Callable[[int], float]]] = [
            ("slices of a volume (side 128)", (8, 16, 32, 64, 128), slices),
            ("side of the square, pixels", (64, 128, 192, 256), lambda side: encode([case], 1, side)),
            ("stored views of a slice (side 128)", (1, 2, 4, 8), lambda views: encode([case], views, 128)),
            ("labelled cases (side 128, 2 views)", (1, 2, 4, 8),
             lambda labels: encode([data.case(i) for i in data.ids[:labels]], 2, 128)),
        ]  # fmt: skip
        figure, axes = plt.subplots(1, 4, figsize=(14, 3.2), sharey=True, layout="constrained")
        for axis, (what, values, cost) in zip(axes, curves, strict=True):
            cost(values[0])  # the first one is not timed
            taken = [statistics.median(cost(value) for _ in range(3)) for value in values]
            print(
                f"{what}: " + ", ".join(f"{v}: {t:.2f} s" for v, t in zip(values, taken, strict=True)),
                flush=True,
            )
            axis.plot(values, taken, "o-")
            axis.set_xlabel(what)
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xticks(values, [str(v) for v in values])
            axis.minorticks_off()
            axis.set_yticks(_TICKS, [str(tick) for tick in _TICKS])
        axes[0].set_ylabel("seconds of the processor")
        figure.savefig(given.figure, dpi=110)
        print(f"drawn: {given.figure}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    named = [name for name in ENCODERS if name != "pixels"]
    parser.add_argument("--encoders", nargs="+", default=named, choices=named)
    parser.add_argument("--sides", nargs="+", type=int, default=list(SIDES))
    parser.add_argument("--precision", choices=list(ENCODER_DTYPES), default="32")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--growth", action="store_true", help="the curves in place of the table")
    parser.add_argument("--figure", type=Path, default=Path("growth.png"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    growth(given) if given.growth else table(given)


if __name__ == "__main__":
    main()
