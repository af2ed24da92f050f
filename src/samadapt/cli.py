"""The command line: a verb is a public function. Heavy imports wait until a verb runs."""

from __future__ import annotations

import dataclasses
import io
import os
import sys
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samadapt import __version__

if TYPE_CHECKING:
    from samadapt.datasets import Dataset, Split
    from samadapt.features import EncodeReport
    from samadapt.learner import Learner

app = typer.Typer(
    help="Adapt Segment Anything to medical images: frozen encoder, light prompt-free heads, few labels.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"samadapt {__version__}")
        raise typer.Exit


@app.callback()
def _before(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it, and stop.")
    ] = False,
) -> None:
    # Threads that wait sleep instead of spinning; read when torch is loaded. Two spinning threads beside another
    # program made the demo more than five times slower on two cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


Data = Annotated[
    Path,
    typer.Argument(help="Data set: nnU-Net raw, MSD, images/ + masks/, class folders, CSV, MedMNIST npz."),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where the result goes.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is in the output folder.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")]
Head = Annotated[str, typer.Option(help="See `samadapt list heads`.")]
EncoderName = Annotated[
    str | None,
    typer.Option("--encoder", help="See `samadapt list encoders`; else sam_nano, for head unet pixels."),
]
Checkpoint = Annotated[
    str | None, typer.Option(help='The encoder\'s weights: a .pth file, a Hugging Face folder, or "random".')
]
Side = Annotated[int | None, typer.Option(help="Side of the encoder's square input, in pixels.")]
Prepare = Annotated[
    str | None, typer.Option(help="Intensity and geometry preparation, if not the encoder's own.")
]
Options = Annotated[
    list[str] | None, typer.Option("--set", help="Option of the head: --set preset=faithful.")
]
Views = Annotated[int, typer.Option(help="Stored views of each training slice.")]
Augment = Annotated[str, typer.Option(help="none, default, mirror (also flips).")]
Store = Annotated[Path, typer.Option(help="Folder of feature maps.")]
SliceAxis = Annotated[
    int | None, typer.Option(help="File axis to slice along; else the one of the largest spacing.")
]
Group = Annotated[
    str | None, typer.Option(help="Patient of a case: a regular expression with one group, or a CSV file.")
]
Task = Annotated[
    str | None, typer.Option(help="segmentation or classification, where a data set has labels for both.")
]
LabelColumn = Annotated[
    str | None, typer.Option(help="Of the label table; several (a,b) are one number for each class.")
]
Window = Annotated[str | None, typer.Option(help="Intensities shown: percentile, ct, none, or LOW,HIGH.")]
Channels = Annotated[str | None, typer.Option(help="Image channels to use: 0 or 0,1,2.")]
Seed = Annotated[int, typer.Option(help="Draws the labelled patients, the head's start and the batches.")]


@dataclasses.dataclass(frozen=True)
class _Sight:
    """How a data set is opened, as options of a verb."""

    task: str | None
    slice_axis: int | None
    group: str | None
    channels: str | None
    label_column: str | None
    window: str | None

    def open(self, path: Path) -> Dataset:
        from samadapt.datasets import open_dataset

        channels = (
            None
            if self.channels is None
            else [int(c) if c.isdigit() else c for c in self.channels.split(",")]
        )
        data = open_dataset(
            path, task=self.task, slice_axis=self.slice_axis, group=self.group, channels=channels,  # type: ignore[arg-type]
            label_column=self.label_column,
        )  # fmt: skip
        return data if self.window is None else data.with_window(self.window)


def _learner(
    head: str, encoder: str | None, checkpoint: str | None, side: int | None, prepare: str | None, options: list[str] | None,
    views: int, augment: str,
) -> Learner:  # fmt: skip
    from samadapt.heads import HEADS
    from samadapt.learner import Learner, parse_options

    if encoder is None and head in HEADS:
        encoder = HEADS[head].encoder
    return Learner(
        head, encoder or "sam_nano", checkpoint, side, prepare, parse_options(options or []), views, augment
    )


@app.command()
def encode(
    data: Data,
    encoder: EncoderName = None,
    head: Head = "fused",
    store: Store = Path("features"),
    checkpoint: Checkpoint = None,
    side: Side = None,
    prepare: Prepare = None,
    options: Options = None,
    views: Views = 6,
    augment: Augment = "default",
    slice_axis: SliceAxis = None,
    group: Group = None,
    task: Task = None,
    label_column: LabelColumn = None,
    window: Window = None,
    channels: Channels = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Run the frozen encoder once and store the maps that a head reads."""
    from samadapt import learner
    from samadapt.features import FeatureStore

    opened = _Sight(task, slice_axis, group, channels, label_column, window).open(data)
    chosen = _learner(head, encoder, checkpoint, side, prepare, options, views, augment)
    total = len(opened)
    report = learner.encode(chosen, opened, FeatureStore(store), device, progress=_encode_line(total, quiet))
    _say(report.summary(store), quiet)


@app.command()
def train(
    data: Data,
    out: Out,
    head: Head = "fused",
    encoder: EncoderName = None,
    labels: Annotated[
        str | None, typer.Option(help="Labelled patients to use (5), or a share (0.25); else all.")
    ] = None,
    select: Annotated[int, typer.Option(help="Of these, patients set aside to choose the best step.")] = 0,
    val_labels: Annotated[
        str | None, typer.Option(help="Further labelled patients for that (more labels!), or: official.")
    ] = None,
    fold: Annotated[int, typer.Option(help="Fold of splits_final.json.")] = 0,
    seed: Seed = 0,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 1000,
    batch_size: Annotated[int, typer.Option(help="Slices in a step.")] = 8,
    lr: Annotated[float | None, typer.Option(help="Learning rate of the head; else its own.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Network of a classification head: resnet18, ...")
    ] = None,
    balance: Annotated[bool, typer.Option(help="Classification: draw the classes equally often.")] = False,
    tune: Annotated[str, typer.Option(help="The encoder: none (frozen) or all (trained too).")] = "none",
    encoder_lr: Annotated[float, typer.Option(help="Learning rate of what is pretrained and tuned.")] = 1e-4,
    precision: Annotated[str, typer.Option(help="auto, 32 or bf16.")] = "auto",
    workers: Annotated[int, typer.Option(help="Processes that load batches.")] = 0,
    store: Store = Path("features"),
    live: Annotated[
        bool, typer.Option("--live", help="Run the encoder in every step; store nothing.")
    ] = False,
    checkpoint: Checkpoint = None,
    side: Side = None,
    prepare: Prepare = None,
    options: Options = None,
    views: Views = 6,
    augment: Augment = "default",
    slice_axis: SliceAxis = None,
    group: Group = None,
    task: Task = None,
    label_column: LabelColumn = None,
    window: Window = None,
    channels: Channels = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train a head on few labelled patients. Rerunning the same command resumes."""
    from samadapt.features import FeatureStore
    from samadapt.learner import fit
    from samadapt.training import TrainConfig, precision_note

    opened = _Sight(task, slice_axis, group, channels, label_column, window).open(data)
    split = opened.split(
        _number(labels, "labels"), seed, select, _number(val_labels, "val-labels", "official"), fold
    )
    options = [*(options or []), *([f"backbone={backbone}"] if backbone else [])]
    chosen = _learner(head, encoder, checkpoint, side, prepare, options, views, augment)
    config = TrainConfig(
        steps=steps, batch_size=batch_size, lr=lr, tune=tune, encoder_lr=encoder_lr, precision=precision,
        balance=balance, seed=seed, device=device, workers=workers,
    )  # fmt: skip
    _say(_split_summary(opened, split), quiet)
    _say(precision_note(config), quiet)
    maps = None if live else FeatureStore(store)
    run = fit(chosen, opened, split, config, out, maps, overwrite, _encode_line(len(split.train), quiet))
    print(f"trained: {run}")


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Run folder of `samadapt train`.")],
    inputs: Annotated[Path, typer.Argument(help="A scan, a folder of scans, or a data set.")],
    out: Out,
    subset: Annotated[str | None, typer.Option(help="Of a data set: train, val, test or all.")] = None,
    probabilities: Annotated[
        bool, typer.Option("--probabilities", help="Also write class probabilities (.npy).")
    ] = False,
    attention: Annotated[
        bool, typer.Option("--attention", help="Of a classifier: also draw where it looked (.png).")
    ] = False,
    checkpoint: Checkpoint = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Segment (or classify) scans; label maps come in the source's own geometry."""
    from samadapt.folders import predict_folder

    report = predict_folder(
        run, inputs, out, subset=subset, probabilities=probabilities, attention=attention, device=device,
        checkpoint=checkpoint, overwrite=overwrite, progress=None if quiet else _note,
    )  # fmt: skip
    print(f"predicted: {report.done} cases in {out}")
    for case, message in report.failed.items():
        print(f"samadapt: {case} was not predicted: {message}", file=sys.stderr)
    if report.failed:
        raise typer.Exit(1)


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of `samadapt predict`.")],
    truth: Annotated[Path, typer.Argument(help="The data set, or a folder of label files.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The table; scores.csv in the folder of predictions.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is not these predictions' table.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Score predictions in mm, with a 95 % interval over patients."""
    from samadapt.evaluation import evaluate_folder, write_evaluation
    from samadapt.metrics import format_table

    evaluation = evaluate_folder(predictions, truth, None if quiet else _note)
    table = write_evaluation(evaluation, predictions, truth, out, overwrite)
    print(format_table(evaluation.summary))
    for note in evaluation.notes:
        print(f"note: {note}")
    _say(f"scores: {table}", quiet)


@app.command()
def demo(
    out: Out = Path("demo"),
    steps: Annotated[int, typer.Option(help="Optimiser steps of each training.")] = 200,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Phantom data, two labelled patients, a head and a U-Net, scores and pictures: no network needed."""
    from samadapt.demo import run_demo

    run_demo(out, steps=steps, seed=seed, overwrite=overwrite)


@app.command()
def check(
    data: Data,
    slice_axis: SliceAxis = None,
    group: Group = None,
    task: Task = None,
    label_column: LabelColumn = None,
    channels: Channels = None,
) -> None:
    """Look for the mistakes that waste a week: pairs, labels, geometry, duplicates, leaks, constant slices."""
    from samadapt import check as doctor

    opened = _Sight(task, slice_axis, group, channels, label_column, None).open(data)
    findings = doctor.check(opened)
    print(doctor.summary(findings, len(opened)))
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)


@app.command()
def experiment(
    data: Data,
    out: Out,
    grid: Annotated[str | None, typer.Option(help="A TOML file or a preset that holds the study.")] = None,
    heads: Annotated[str | None, typer.Option(help="Learners on the encoder: linear,cnn,autosam.")] = None,
    baselines: Annotated[
        str | None, typer.Option(help="Learners beside them: unet,simclr,zero_shot.")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="See `samadapt list encoders`.")] = None,
    checkpoint: Checkpoint = None,
    side: Side = None,
    labels: Annotated[str | None, typer.Option(help="Labelled patients: 1,2,5,all, or shares.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of each training.")] = None,
    jobs: Annotated[int, typer.Option(help="Cells side by side.")] = 1,
    budget: Annotated[int | None, typer.Option(help="nnunet: epochs at most.")] = None,
    nnunet_bin: Annotated[
        str | None, typer.Option(help="nnunet: folder of its commands, if not on the PATH.")
    ] = None,
    store: Store = Path("features"),
    slice_axis: SliceAxis = None,
    group: Group = None,
    task: Task = None,
    label_column: LabelColumn = None,
    window: Window = None,
    channels: Channels = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Compare learners at several label counts and seeds. Rerunning the same command resumes."""
    from samadapt import experiment as study
    from samadapt.features import FeatureStore

    opened = _Sight(task, slice_axis, group, channels, label_column, window).open(data)
    settings = study.read_settings(grid) if grid else {}
    names = [name for text in (heads, baselines) if text for name in text.split(",")]
    counts = None if labels is None else [_number(n, "labels", "all") for n in labels.split(",")]
    _merge(settings, {"learners": names or None, "labels": counts, "seeds": seeds})
    _merge(settings.setdefault("encoder", {}), {"encoder": encoder, "checkpoint": checkpoint, "side": side})
    _merge(settings.setdefault("train", {}), {"steps": steps, "device": device})
    _merge(settings.setdefault("nnunet", {}), {"budget": budget, "bin": nnunet_bin})
    chosen, config = study.make_study(settings, opened.task)
    say = None if quiet else print
    outcome = study.run_experiment(opened, chosen, config, out, FeatureStore(store), jobs, say)
    print(study.results_table(out))
    if outcome.failed:
        raise typer.Exit(1)


@app.command()
def report(
    study: Annotated[Path, typer.Argument(help="The --out of `samadapt experiment`.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder; the study's by default.")] = None,
    against: Annotated[str | None, typer.Option(help="A learner to compare all others with too.")] = None,
) -> None:
    """One HTML page, a tidy table and the curves of a study, from its scores alone."""
    from samadapt.report import write_report

    print(f"report: {write_report(study, out, against)}")


@app.command("list")
def list_names(what: Annotated[str, typer.Argument(help="encoders, heads or metrics.")]) -> None:
    """What there is to choose from."""
    from samadapt.listing import describe

    print(describe(what))


# ---------------------------------------------------------------- words on the terminal


def _say(text: str | None, quiet: bool) -> None:
    if text and not quiet:
        print(text, flush=True)


def _note(text: str) -> None:
    """Progress, which a file or a pipe need not keep."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _number(text: str | None, option: str, *words: str) -> Any:
    """ "5" -> 5, "0.25" -> 0.25, a word that the option knows as it is."""
    from samadapt.types import SamAdaptError

    if text is None or text in words:
        return text
    try:
        return int(text) if text.lstrip("-").isdigit() else float(text)
    except ValueError:
        known = "".join(f", or {word}" for word in words)
        raise SamAdaptError(f"--{option} is {text!r}; expected a number{known}") from None


def _merge(settings: dict[str, Any], options: dict[str, Any]) -> None:
    """What was typed goes before what the file says."""
    settings |= {key: value for key, value in options.items() if value is not None}


def _split_summary(data: Dataset, split: Split) -> str:
    from samadapt.datasets import unit_of

    patients = sorted({data.groups[i] for i in split.train})
    chosen = ", ".join(patients[:6]) + (", ..." if len(patients) > 6 else "")
    of = f" of {len(patients)} patients" if unit_of(data) == "patient" else ""
    return (
        f"{data.name} ({data.layout}): {len(data)} cases; {data.group_rule}\n"
        f"{data.opening.slices}\n{split.rule}\ntraining on {len(split.train)} cases{of}: {chosen}"
    )


def _encode_line(total: int, quiet: bool) -> Any:
    """A progress callback: throughput, bytes, time left."""
    start = time.monotonic()

    def show(report: EncodeReport) -> None:
        seconds = time.monotonic() - start
        left = seconds / max(report.cases, 1) * (total - report.cases) if report.written else 0.0
        _note(
            f"encoded {report.cases}/{total} cases, {report.slices / max(seconds, 1e-9):.1f} slices/s, "
            f"{report.bytes / 2**20:.0f} MiB, {left:.0f} s left"
        )

    return None if quiet else show


def _say_warnings_once() -> None:
    """What was assumed or left out, a line each on stderr; Python's own form would add a place in the code."""
    usual = warnings.showwarning
    said: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if category.__name__ != "SamAdaptWarning":  # imported by name it would load torch
            usual(message, category, *place, **more)
        elif str(message) not in said:
            said.add(str(message))
            print(f"samadapt: note: {message}", file=sys.stderr, flush=True)

    warnings.showwarning = show


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2; `--debug` shows the traceback."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # printing a file name must never fail
    _say_warnings_once()
    try:
        app(args=[a for a in arguments if a != "--debug"], prog_name="samadapt")
    except Exception as error:
        from samadapt.types import SamAdaptError

        if debug or not isinstance(error, SamAdaptError):
            raise
        print(f"samadapt: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
