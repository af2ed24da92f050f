"""What 1 million and 100 million slices would cost: a simulation from measured figures, and the table of docs/scale.md.

    python benchmarks/scale.py                       # the table
    python benchmarks/scale.py --inputs              # its figures, each with its source
    python benchmarks/scale.py --storage s3 --pack 256 --slices-per-case 10
    python benchmarks/scale.py --validate            # a real encode beside what the simulation says of it
    python benchmarks/scale.py --measure             # planning and listing on this machine

The model is in `scale_model.py`, what is measured here in `scale_measures.py`. Needs simpy (`pip install -e .[dev]`).
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from scale_measures import encode_seconds, listing, make_pictures, measure_parts, planning, preparing
from scale_model import Outcome, Storage, Work, Workers, simulate

from samadapt.learner import Learner

MEASURED, PUBLISHED, ASSUMED = "measured", "published", "assumed"


@dataclass(frozen=True)
class Input:
    """A figure, and how it is known."""

    value: float
    unit: str
    kind: str
    source: str


_SPEED = "benchmarks/README.md, encoder_speed.py, one core of an AMD EPYC"
_SAF = "pytorch-labs/segment-anything-fast at 00dc2cb, experiments/results.csv: vit_b, bf16, batch 32, one A100 of 80 GB, with its decoder"
_EFS = "Amazon's page of EFS performance: regional, provisioned throughput, upper limits (2025)"
_S3 = "Amazon's pages of S3 performance: at least so much for each prefix (2025)"
INPUTS: dict[str, Input] = {
    # ------------------------------------------------ encoders
    "lite_medsam 256 float32": Input(1.25, "s/slice", MEASURED, _SPEED),
    "lite_medsam 256 bf16": Input(0.75, "s/slice", MEASURED, _SPEED),
    "imagenet_lite0 256 float32": Input(0.023, "s/slice", MEASURED, "benchmarks/README.md, costs.py, one round, one core of an AMD EPYC"),
    "sam_vit_b 1024 bf16": Input(7.8, "s/slice", MEASURED, f"{_SPEED} (--encoder sam_vit_b --precision bf16), other work on the machine"),
    "sam_vit_b 1024 A100": Input(1 / 36.9, "s/slice", PUBLISHED, f"NOT MEASURED BY US: 36.9 images/s in {_SAF}"),
    "sam_vit_b 1024 A100, tuned": Input(1 / 88.9, "s/slice", PUBLISHED, f"NOT MEASURED BY US: 88.9 images/s, torch.compile, Triton and nested tensors, which samadapt has not: {_SAF}"),
    "spread": Input(0.06, "of the logarithm", MEASURED, "1.16 to 1.47 s around 1.25 in ten rounds of encoder_speed.py, taken as a range of four deviations"),
    "reading": Input(0.0096, "s/slice", MEASURED, "scale.py --measure: 512 px PNG of noise -> square of 256, hash included"),
    # ------------------------------------------------ driver and workers
    "plan": Input(0.0004, "s/case", MEASURED, "scale.py --measure: open_dataset on a folder of classes, 10,000 and 40,000 pictures"),
    "send": Input(0.005, "s/task", MEASURED, "decision 030: a cell that is done, on two Ray workers; an empty Ray task takes 1 ms, 0.8 ms of it in the driver"),
    "start": Input(20.0, "s", ASSUMED, "import and loading of the network take 5 to 10 s here; more from a shared disk"),
    "losses": Input(0.001, "per worker-hour", ASSUMED, "one worker in six weeks; interruptible machines are lost far more often"),
    "slow share": Input(0.02, "of the workers", ASSUMED, "stragglers"),
    "slow times": Input(2.0, "times as long", ASSUMED, "stragglers"),
    # ------------------------------------------------ files
    "changes of a case": Input(5.0, "calls", MEASURED, "strace of `samadapt encode` with 100 and 300 pictures: folder, note, their names"),
    "changes of a map": Input(3.0, "calls", MEASURED, "the same: made, awaited, named"),
    "look-ups of a case": Input(7.0, "calls", MEASURED, "the same: is it there, leftovers, the picture itself"),
    "bytes of a picture": Input(150e3, "bytes", ASSUMED, "512 px, 8 bit, compressed by half"),
    "nfs changes": Input(25e3, "calls/s", PUBLISHED, _EFS),
    "nfs look-ups": Input(55e3, "calls/s", PUBLISHED, _EFS),
    "nfs written": Input(3.33 * 2**30, "bytes/s", PUBLISHED, _EFS),
    "nfs read": Input(10 * 2**30, "bytes/s", PUBLISHED, _EFS),
    "nfs change wait": Input(0.0027, "s", PUBLISHED, _EFS),
    "nfs look-up wait": Input(0.001, "s", PUBLISHED, _EFS),
    "s3 changes": Input(3500.0, "calls/s", PUBLISHED, _S3),
    "s3 look-ups": Input(5500.0, "calls/s", PUBLISHED, _S3),
    "s3 bandwidth": Input(12.5e9, "bytes/s", ASSUMED, "100 Gbit/s in all; the store itself has no such limit"),
    "s3 wait": Input(0.15, "s", PUBLISHED, "Amazon's S3 design patterns: 100 to 200 ms for small objects"),
    # ------------------------------------------------ money
    "core-hour": Input(0.051, "USD", ASSUMED, "list price of a c7a.large (two cores of an AMD EPYC) without any contract, us-east-1, read at second hand"),
    "GPU-hour": Input(1.84, "USD", PUBLISHED, "Amazon's page of capacity blocks, p4d, US East (Ohio), end of 2024"),
    "GB-month": Input(0.023, "USD", PUBLISHED, "Amazon S3 Standard, us-east-1, first 50 TB"),
}  # fmt: skip


def of(name: str) -> float:
    """The value of an input."""
    return INPUTS[name].value


@dataclass(frozen=True)
class Row:
    """An encoder, and the head that reads its maps."""

    encoder: str
    side: int
    speed: str  # float32, bf16, or a GPU
    head: str = "fused"
    gpu: bool = False

    @property
    def name(self) -> str:
        return f"{self.encoder} {self.side} {self.speed}"


ROWS = (
    Row("lite_medsam", 256, "float32"),
    Row("lite_medsam", 256, "bf16"),
    Row("imagenet_lite0", 256, "float32"),
    Row("sam_vit_b", 1024, "bf16", "autosam"),
)
GPU_ROWS = (
    Row("sam_vit_b", 1024, "A100", "autosam", gpu=True),
    Row("sam_vit_b", 1024, "A100, tuned", "autosam", gpu=True),
)


# ---------------------------------------------------------------- from inputs to a simulation


def maps_of(encoder: str, side: int, head: str) -> tuple[int, int]:
    """Bytes of a slice in a store, one view of it, and how many maps it has: what samadapt itself says."""
    found = None if encoder != "sam_vit_b" else "random"  # SAM's weights are not needed to know its maps
    learner = Learner(encoder=encoder, head=head, side=side, checkpoint=found, views=1, augment="none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the decoder that the head would start from
        maps = learner.maps(learner.build(4, started=False).head.reads, "percentile")
    return maps.bytes_per_slice, len(maps.taps)


def work_of(row: Row, slices: int, per_case: int, pack: int = 1) -> Work:
    """So many slices, in cases of so many, seen as this row sees them."""
    size, taps = maps_of(row.encoder, row.side, row.head)
    work = Work(
        cases=-(-slices // per_case),
        slices=per_case,
        seconds=of(row.name) + (0 if row.gpu else of("reading")),  # a GPU's reading is done by other cores
        spread=of("spread"),
        bytes_read=of("bytes of a picture") * per_case,
        bytes_written=size * per_case,
        files=taps + 1,
        changes=of("changes of a case") + of("changes of a map") * taps,
        look_ups=of("look-ups of a case"),
    )
    return work.packed(pack)


def workers_of(number: int, listed: bool = False) -> Workers:
    """So many, with the measured and assumed costs of all.

    Args:
        listed: whether a list of the cases is there already, so that the driver does not look through folders.
    """
    return Workers(
        number,
        plan=0.0 if listed else of("plan"),
        send=of("send"),
        start=of("start"),
        losses=of("losses"),
        slow=(of("slow share"), of("slow times")),
    )


def storage_of(name: str) -> Storage:
    """`nfs`: a shared file system with published limits; `s3`: an object store, if samadapt could write to one."""
    if name == "s3":
        band, wait = of("s3 bandwidth"), of("s3 wait")
        return Storage(of("s3 changes"), of("s3 look-ups"), band, band, wait, wait)
    values = ("changes", "look-ups", "written", "read", "change wait", "look-up wait")
    return Storage(*(of(f"nfs {value}") for value in values))


def amount(value: float) -> str:
    """Two or three digits, with commas."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def disk(size: float) -> str:
    """In the unit that suits."""
    unit, divisor = next(
        (u, d) for u, d in (("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6)) if size >= d or u == "MB"
    )
    return f"{amount(size / divisor)} {unit}"


def line(row: Row, slices: int, number: int, given: argparse.Namespace) -> str:
    """Of the table."""
    work = work_of(row, slices, given.slices_per_case, given.pack)
    out = simulate(work, workers_of(number, given.listed), storage_of(given.storage), given.seed)
    hours = out.seconds / 3600
    price = of("GPU-hour" if row.gpu else "core-hour") * hours * number
    size, files = work.bytes_written * work.cases, work.files * work.cases
    month = size / 1e9 * of("GB-month")
    unit = "GPUs" if row.gpu else "cores"
    cells = (
        f"{slices:.0e}".replace("e+0", "e"),
        f"`{row.encoder}` {row.side}, {row.speed}, `{row.head}`",
        f"{number} {unit}",
        f"{amount(out.planning / 3600)} + {amount(out.encoding / 3600)}",
        amount(hours * number),
        f"${amount(price)}",
        disk(size),
        f"${amount(month)}",
        amount(files),
        reading_of(out),
    )
    return f"| {' | '.join(cells)} |"


def reading_of(out: Outcome) -> str:
    """The bottleneck, and the share of the time that each resource was in use, where it was at all."""
    shares = sorted(out.use.items(), key=lambda item: -item[1])
    words = ", ".join(f"{name} {share:.0%}" for name, share in shares if share >= 0.01)
    failed = f"; {out.failed} cases failed" if out.failed else ""
    return f"**{out.bottleneck}**: {words}{failed}"


def table(given: argparse.Namespace) -> None:
    """For all rows, numbers of slices and numbers of workers."""
    print(
        f"cases of {given.slices_per_case} slices, {given.pack} in a file, storage {given.storage}, one view, seed {given.seed}"
    )
    print(
        "| slices | encoder and head | workers | hours: listing + encoding | core- or GPU-hours | their price | maps | kept for a month | "
        "files | takes most of the time: use while encoding |"
    )
    print("|" + "---|" * 10)
    for slices in (10**6, 10**8):
        for row in ROWS:
            for number in (2, 64, 1000):
                print(line(row, slices, number, given), flush=True)
        for row in GPU_ROWS:
            print(line(row, slices, 8, given), flush=True)


# ---------------------------------------------------------------- measured here


def validate(given: argparse.Namespace) -> None:
    """A real encode on one core, beside what the simulation says of it from parts that were measured alone."""
    learner = Learner(encoder=given.encoder, head="linear_probe", side=given.side, views=1, augment="none")
    words = ["--encoder", given.encoder, "--side", str(given.side), "--head", "linear_probe", "--views", "1"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = make_pictures(root / "data", given.pictures, 28)
        sample, few = make_pictures(root / "sample", 200, 28), make_pictures(root / "few", 8, 28)
        before = measure_parts(sample, learner)
        start = encode_seconds(few, root / "store0", words)
        real = encode_seconds(data, root / "store1", words)
        after = measure_parts(sample, learner)
        parts = {
            name: (value + getattr(after, name)) / 2 for name, value in dataclasses.asdict(before).items()
        }
        print("parts, ms a picture: " + ", ".join(f"{name} {1e3 * v:.2f}" for name, v in parts.items()))
        work = Work(given.pictures, 1, parts["reading"] + parts["network"], of("spread"), 0, 0, 2, 1, 0)
        own = Workers(1, plan=parts["opening"], start=start - 8 * sum(parts.values()))
        out = simulate(work, own, Storage(change_wait=parts["writing"]), given.seed)
        print(f"start of the command: {own.start:.1f} s")
        print(
            f"{given.pictures} pictures of 28 px with {given.encoder} at {given.side}, one core: measured {real:.1f} s, "
            f"simulated {out.seconds:.1f} s, {out.seconds / real:.2f} times as long"
        )


def measure(given: argparse.Namespace) -> None:
    """Figures of this machine that the inputs and docs/scale.md name."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number in given.numbers:
            print(planning(number, root), flush=True)
        sample = make_pictures(root / "sample", 100, 512)
        learner = Learner(encoder="imagenet_lite0", head="fused", side=256, views=1, augment="none")
        parts = measure_parts(sample, learner)
        print(
            f"a PNG of 512 px for a square of 256: {1e3 * preparing(sample, learner):.2f} ms of the processor; `fused` on `imagenet_lite0`: "
            f"network {1e3 * parts.network:.1f} ms, maps written in {1e3 * parts.writing:.2f} ms"
        )
        print(listing(given.store, root))


def inputs() -> None:
    """All of them, as a table."""
    print("| input | value | | source |\n|---|---|---|---|")
    for name, each in INPUTS.items():
        print(f"| {name} | {each.value:.4g} {each.unit} | {each.kind} | {each.source} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", action="store_true")
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--storage", choices=("nfs", "s3"), default="nfs")
    parser.add_argument("--slices-per-case", type=int, default=1)
    parser.add_argument("--pack", type=int, default=1, help="cases in a file: a change that is proposed")
    parser.add_argument(
        "--listed", action="store_true", help="the driver has a list of the cases: a change that is proposed"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=1000, help="of --validate")
    parser.add_argument("--encoder", default="sam_nano", help="of --validate")
    parser.add_argument("--side", type=int, default=64, help="of --validate")
    parser.add_argument(
        "--numbers", type=int, nargs="+", default=[10_000, 40_000], help="pictures, of --measure"
    )
    parser.add_argument("--store", type=int, default=100_000, help="cases, of --measure")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.slices_per_case < 1 or given.pack < 1:
        parser.error("--slices-per-case and --pack: expected at least 1")
    if given.inputs:
        inputs()
    elif given.validate:
        validate(given)
    elif given.measure:
        measure(given)
    else:
        table(given)


if __name__ == "__main__":
    main()
