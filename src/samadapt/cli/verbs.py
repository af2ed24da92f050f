"""The verbs: each calls one public function. Heavy imports wait until a verb runs."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from samadapt import __version__, names
from samadapt.cli.options import (
    CHECKED,
    Data,
    Device,
    Out,
    Overwrite,
    Quiet,
    Store,
    check_device,
    choice_note,
    live_note,
    make_learner,
    open_data,
)
from samadapt.cli.parameters import Given, Of, from_options
from samadapt.cli.terminal import (
    case_line,
    never_fail_to_print,
    one_voice,
    say,
    say_warnings_once,
    speaks,
    split_summary,
    unlabelled_note,
)
from samadapt.options import Option
from samadapt.progress import Progress
from samadapt.records import SamAdaptError
from samadapt.settings import (
    LearnerSettings,
    NnUNetConfig,
    OpenOptions,
    SplitOptions,
    StudySettings,
    TrainConfig,
    UnlabelledOptions,
)

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
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version, and stop.")
    ] = False,
) -> None:
    # Threads that wait sleep instead of spinning; read when torch is loaded. Two spinning threads beside another
    # program made the demo more than five times slower on two cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@app.command()
@from_options
def encode(
    data: Data,
    *,
    settings: LearnerSettings,
    store: Store = Path("features"),
    opening: OpenOptions,
    device: Device,
    quiet: Quiet = False,
) -> None:
    """Run the frozen encoder once and store the maps that a head reads."""
    chosen = make_learner(settings)
    check_device(device)
    from samadapt import learner
    from samadapt.features import FeatureStore, encode_line
    from samadapt.files import demand_writable

    demand_writable(store, "--store")
    opened = open_data(data, opening, settings.head)
    total = len(opened)
    say(choice_note(settings.encoder, chosen), quiet)
    say(live_note(chosen), quiet)
    report = learner.encode(
        chosen, opened, FeatureStore(store), device, progress=encode_line(total, quiet=quiet)
    )
    say(report.summary(store), quiet)


@app.command()
@from_options
def train(
    data: Data,
    out: Out,
    *,
    settings: LearnerSettings,
    backbone: Annotated[
        str | None,
        Option("Network of a classification head, such as resnet18.", names=names.BACKBONES),
    ] = None,
    budget: SplitOptions,
    config: TrainConfig,
    scans: UnlabelledOptions,
    opening: OpenOptions,
    store: Store = Path("features"),
    live: Annotated[bool, Option("Run the encoder in every step and store nothing.", flag="--live")] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Train a head on few labelled patients. Rerunning the same command resumes."""
    given = {"backbone": backbone} if backbone else {}
    chosen = make_learner(dataclasses.replace(settings, options={**settings.options, **given}))
    check_device(config.device)
    from samadapt.features import FeatureStore, encode_line
    from samadapt.learner import FitOptions, fit
    from samadapt.runs import precision_note

    opened = open_data(data, opening, settings.head)
    split = opened.split(budget.labels, config.seed, budget.select, budget.val_labels, budget.fold)
    notes = (
        split_summary(opened, split, chosen),
        choice_note(settings.encoder, chosen),
        precision_note(config),
    )
    for text in notes:
        say(text, quiet)
    maps = None if live else FeatureStore(store)
    run = fit(
        chosen,
        opened,
        split,
        config,
        out,
        maps,
        FitOptions(overwrite, functools.partial(encode_line, quiet=quiet), unlabelled=scans),
    )
    if text := unlabelled_note(run):
        say(text, quiet)
    print(f"trained: {run}")
    say(f"next: samadapt predict {run} FOLDER_OF_SCANS --out predictions/{run.name}", quiet)


@app.command()
@from_options
def predict(
    run: Annotated[Path, typer.Argument(help="Run folder of `samadapt train`.")],
    inputs: Annotated[Path, typer.Argument(help="A scan, a folder of scans, or a data set.")],
    out: Out,
    *,
    subset: Annotated[
        str | None, Option("Part of a data set: train, val, test or all.", names=names.SUBSETS)
    ] = None,
    probabilities: Annotated[
        bool, Option("Also write class probabilities (.npy).", flag="--probabilities")
    ] = False,
    attention: Annotated[
        bool, Option("Also draw where a classifier looked (.png).", flag="--attention")
    ] = False,
    format: Annotated[
        str | None,
        Option(
            "Write label maps in this format; else that of the scans, NIfTI for DICOM.",
            names=names.LABEL_FORMATS,
        ),
    ] = None,
    codes: Annotated[
        Path | None, Option("CSV of class, value, meaning: codes of the classes in a DICOM SEG.")
    ] = None,
    checkpoint: Annotated[str | None, Of(LearnerSettings)],
    taken: Annotated[dict[str, Any], Given(OpenOptions, ("modality", "anonymous", "allow_outside"))],
    device: Device,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Segment (or classify) scans; label maps come in the source's own geometry."""
    check_device(device)
    from samadapt.folders import predict_folder
    from samadapt.inputs import Taken

    report = predict_folder(
        run, inputs, out, subset=subset, probabilities=probabilities, attention=attention, device=device,
        checkpoint=checkpoint, overwrite=overwrite, progress=case_line("predicted", quiet), format=format, codes=codes,
        taken=Taken(**taken),
    )  # fmt: skip
    print(f"predicted: {report.done} case{'s'[: report.done != 1]} in {out}")
    for case, message in report.failed.items():
        print(f"samadapt: {case} was not predicted: {message}", file=sys.stderr)
    if report.failed:
        raise typer.Exit(1)


@app.command()
@from_options
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="Folder of `samadapt predict`.")],
    truth: Annotated[Path, typer.Argument(help="The data set, or a folder of label files.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="File of the scores; else scores.csv in the folder of predictions."),
    ] = None,
    *,
    taken: Annotated[dict[str, Any], Given(OpenOptions, ("anonymous", "allow_outside"))],
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a file that is not these predictions' table.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Score predictions in mm, with a 95 % interval over patients."""
    from samadapt.evaluation import evaluate_folder, write_evaluation
    from samadapt.metrics import format_table

    evaluation = evaluate_folder(predictions, truth, case_line("scored", quiet), **taken)
    table = write_evaluation(evaluation, predictions, truth, out, overwrite)
    print(format_table(evaluation.summary))
    for text in evaluation.notes:
        print(f"note: {text}")
    say(f"scores: {table}", quiet)


@app.command()
@from_options
def demo(
    *,
    out: Out = Path("demo"),
    steps: Annotated[int, Of(TrainConfig)] = 200,
    seed: Annotated[int, Of(TrainConfig)],
    overwrite: Overwrite = False,
) -> None:
    """Phantom data, two labelled patients, a head and a U-Net, scores and pictures: no network needed."""
    from samadapt.demo import run_demo

    run_demo(out, steps=steps, seed=seed, overwrite=overwrite)


@app.command()
@from_options
def check(
    data: Data,
    opening: Annotated[
        dict[str, Any],
        Given(OpenOptions, CHECKED),
    ],
    encoder: Annotated[
        str | None,
        Option("Also say what the training of this encoder has seen of the data.", names=names.ENCODERS),
    ] = None,
    html: Annotated[
        Path | None, Option("Also write a page with pictures of the suspects to this file.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as one JSON document.")] = False,
    quiet: Quiet = False,
) -> None:
    """Check pairing, labels, geometry, duplicates, outliers and leakage before training."""
    import json as documents
    import shutil

    from samadapt import check as doctor

    opened = open_data(data, OpenOptions(**opening))
    progress, total = Progress(quiet), len(opened)
    findings = doctor.check(
        opened, lambda n: progress(lambda: f"checked {n} of {total} cases", n / total), encoder
    )
    progress.close()
    if html is not None:
        doctor.write_page(findings, opened, html)
    if json:
        print(documents.dumps(doctor.to_json(findings, opened), indent=1))
    else:
        print(doctor.summary(findings, total, shutil.get_terminal_size((120, 24)).columns))
        say(f"page: {html}" if html else None, quiet)
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)


@app.command()
@from_options
def experiment(
    data: Data,
    out: Out,
    *,
    grid: Annotated[str | None, Option("A TOML file or a preset that holds the study.")] = None,
    heads: Annotated[tuple[str, ...], Option("Heads on the encoder: linear,cnn,autosam.")] = (),
    baselines: Annotated[tuple[str, ...], Option("Methods beside them: unet,simclr,zero_shot.")] = (),
    study: Annotated[dict[str, Any], Given(StudySettings, ("labels", "seeds"))],
    shared: Annotated[dict[str, Any], Given(LearnerSettings, ("encoder", "checkpoint", "side"))],
    common: Annotated[dict[str, Any], Given(TrainConfig, ("steps", "device"))],
    nnunet: Annotated[dict[str, Any], Given(NnUNetConfig, ("budget", "bin"))],
    opening: OpenOptions,
    jobs: Annotated[int, Option("Cells to run side by side.", least=1)] = 1,
    store: Store = Path("features"),
    quiet: Quiet = False,
) -> None:
    """Compare methods at several numbers of labelled patients, with several seeds. Rerunning the same command resumes."""
    check_device(common.get("device", TrainConfig.device))
    from samadapt import experiment as studies
    from samadapt.features import FeatureStore
    from samadapt.files import demand_writable
    from samadapt.report import results_table

    for folder, option in ((out, "--out"), (store, "--store")):
        demand_writable(folder, option)
    settings = studies.read_settings(grid) if grid else {}
    opened = open_data(data, opening)
    typed = {"encoder": shared, "train": common, "nnunet": nnunet}
    settings |= study | ({"learners": [*heads, *baselines]} if heads or baselines else {})
    settings |= {table: settings.get(table, {}) | given for table, given in typed.items()}
    unnamed = not settings["encoder"].get("encoder")
    if unnamed and (begun := studies.encoder_of(out)):
        settings["encoder"]["encoder"] = begun
    chosen, config = studies.make_study(settings, opened.task)
    if unnamed:
        say(studies.encoder_note(settings, chosen), quiet)
    progress = None if quiet else print
    outcome = studies.run_experiment(opened, chosen, config, out, FeatureStore(store), jobs, progress)
    if outcome.found or outcome.done:
        print(results_table(out))
    for cell, message in outcome.failed.items() if quiet else ():  # else it was said when it happened
        print(f"samadapt: {cell}: {message}", file=sys.stderr)
    if outcome.failed:
        raise typer.Exit(1)


@app.command()
def report(
    study: Annotated[Path, typer.Argument(help="The --out of `samadapt experiment`.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the report; the study's by default.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="A method to compare all others with too.")] = None,
) -> None:
    """One HTML page, a tidy table and the curves of a study, from its scores alone."""
    from samadapt.report import write_report

    print(f"report: {write_report(study, out, against)}")


@app.command("list")
def list_names(
    what: Annotated[str, typer.Argument(help="What to list: encoders, heads, metrics or settings.")],
) -> None:
    """List what there is to choose from: encoders, heads, metrics, and the settings of a study's file."""
    from samadapt.cli.lists import describe

    print(describe(what))


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2; `--debug` shows the traceback."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    never_fail_to_print()
    say_warnings_once()
    one_voice()
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
        # A mistake of the user's is found by all processes.
        if speaks() or not isinstance(error, SamAdaptError):
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
