"""The verbs: each calls one public function. Heavy imports wait until a verb runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from samadapt import __version__, names
from samadapt.cli.options import (
    Augment,
    Channels,
    Checkpoint,
    Data,
    Device,
    EncoderName,
    Group,
    Head,
    LabelColumn,
    OpenOptions,
    Options,
    Out,
    Overwrite,
    Prepare,
    Quiet,
    Seed,
    Side,
    SliceAxis,
    Store,
    Task,
    Views,
    Window,
    check_device,
    choice_note,
    live_note,
    make_learner,
    merge,
    number,
)
from samadapt.cli.terminal import (
    encode_line,
    never_fail_to_print,
    note,
    say,
    say_warnings_once,
    split_summary,
)
from samadapt.records import SamAdaptError

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
    views: Views = None,
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
    names.demand_known(device=device)
    opening = OpenOptions(task, slice_axis, group, channels, label_column, window, head)
    chosen = make_learner(head, encoder, checkpoint, side, prepare, options, views, augment)
    check_device(device)
    from samadapt import learner
    from samadapt.features import FeatureStore
    from samadapt.files import demand_writable

    demand_writable(store, "--store")
    opened = opening.open(data)
    total = len(opened)
    say(choice_note(encoder, chosen), quiet)
    say(live_note(chosen), quiet)
    report = learner.encode(chosen, opened, FeatureStore(store), device, progress=encode_line(total, quiet))
    say(report.summary(store), quiet)


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
    views: Views = None,
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
    names.demand_known(tune=tune, precision=precision, backbone=backbone, device=device)
    names.demand_numbers(0, fold=fold, select=select, workers=workers, seed=seed)
    names.demand_numbers(1, steps=steps, batch_size=batch_size)
    budget = number(labels, "labels")
    selection = number(val_labels, "val-labels", "official", whole=True)
    opening = OpenOptions(task, slice_axis, group, channels, label_column, window, head)
    options = [*(options or []), *([f"backbone={backbone}"] if backbone else [])]
    chosen = make_learner(head, encoder, checkpoint, side, prepare, options, views, augment)
    check_device(device)
    from samadapt.features import FeatureStore
    from samadapt.learner import fit
    from samadapt.training import TrainConfig, precision_note

    config = TrainConfig(
        steps=steps, batch_size=batch_size, lr=lr, tune=tune, encoder_lr=encoder_lr, precision=precision,
        balance=balance, seed=seed, device=device, workers=workers,
    )  # fmt: skip
    opened = opening.open(data)
    split = opened.split(budget, seed, select, selection, fold)
    for text in (split_summary(opened, split, chosen), choice_note(encoder, chosen), precision_note(config)):
        say(text, quiet)
    maps = None if live else FeatureStore(store)
    run = fit(chosen, opened, split, config, out, maps, overwrite, encode_line(len(split.train), quiet))
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
    names.demand_known(subset=subset)
    check_device(device)
    from samadapt.folders import predict_folder

    report = predict_folder(
        run, inputs, out, subset=subset, probabilities=probabilities, attention=attention, device=device,
        checkpoint=checkpoint, overwrite=overwrite, progress=None if quiet else note,
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

    evaluation = evaluate_folder(predictions, truth, None if quiet else note)
    table = write_evaluation(evaluation, predictions, truth, out, overwrite)
    print(format_table(evaluation.summary))
    for text in evaluation.notes:
        print(f"note: {text}")
    say(f"scores: {table}", quiet)


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
    encoder: Annotated[
        str | None, typer.Option(help="Also say what the training of this encoder has seen of the data.")
    ] = None,
) -> None:
    """Look for the mistakes that waste a week: pairs, labels, geometry, duplicates, leaks, constant slices."""
    names.demand_known(encoder=encoder)
    from samadapt import check as doctor

    opened = OpenOptions(task, slice_axis, group, channels, label_column, None).open(data)
    findings = doctor.check(opened, encoder=encoder)
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
    names.demand_known(encoder=encoder)
    names.demand_numbers(1, side=side, seeds=seeds, steps=steps, jobs=jobs, budget=budget)
    opening = OpenOptions(task, slice_axis, group, channels, label_column, window)
    check_device(device)
    from samadapt import experiment as study
    from samadapt.features import FeatureStore
    from samadapt.files import demand_writable

    for folder, option in ((out, "--out"), (store, "--store")):
        demand_writable(folder, option)
    opened = opening.open(data)
    settings = study.read_settings(grid) if grid else {}
    learners = [name for text in (heads, baselines) if text for name in text.split(",")]
    counts = None if labels is None else [number(n, "labels", "all") for n in labels.split(",")]
    merge(settings, {"learners": learners or None, "labels": counts, "seeds": seeds})
    shared = settings.setdefault("encoder", {})
    merge(shared, {"encoder": encoder, "checkpoint": checkpoint, "side": side})
    unnamed = not shared.get("encoder")
    if unnamed and (begun := study.encoder_of(out)):
        shared["encoder"] = begun
    merge(settings.setdefault("train", {}), {"steps": steps, "device": device})
    merge(settings.setdefault("nnunet", {}), {"budget": budget, "bin": nnunet_bin})
    chosen, config = study.make_study(settings, opened.task)
    if unnamed:
        say(study.encoder_note(settings, chosen), quiet)
    progress = None if quiet else print
    outcome = study.run_experiment(opened, chosen, config, out, FeatureStore(store), jobs, progress)
    print(study.results_table(out))
    for cell, message in outcome.failed.items() if quiet else ():  # else it was said when it happened
        print(f"samadapt: {cell}: {message}", file=sys.stderr)
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


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2; `--debug` shows the traceback."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    never_fail_to_print()
    say_warnings_once()
    try:
        app(args=[a for a in arguments if a != "--debug"], prog_name="samadapt")
    except KeyboardInterrupt:
        print(
            "samadapt: interrupted; what was finished is kept, and the same command goes on", file=sys.stderr
        )
        sys.exit(130)
    except Exception as error:
        if debug:
            raise
        text, code = _said(error)
        print(f"samadapt: {text}", file=sys.stderr)
        sys.exit(code)


def _said(error: Exception) -> tuple[str, int]:
    """An exception in one line, and the exit code."""
    if isinstance(error, SamAdaptError):
        return str(error), 2
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or error}; check the path and its permissions, or choose another", 2
    first = (str(error).splitlines() or [""])[0]
    return f"internal error: {type(error).__name__}: {first}; run again with --debug and report it", 1
