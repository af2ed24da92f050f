"""The verbs: each calls one public function. Heavy imports wait until a verb runs."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from samadapt import names
from samadapt.cli.app import app
from samadapt.cli.options import (
    CHECKED,
    Data,
    Device,
    Out,
    Overwrite,
    Quiet,
    SeenBy,
    Store,
    abstained_note,
    after_evaluation,
    after_prediction,
    check_device,
    choice_note,
    live_note,
    make_learner,
    on_cluster,
    open_data,
    suited,
)
from samadapt.cli.parameters import Given, Of
from samadapt.cli.results import Result, command, verb
from samadapt.cli.terminal import case_line, say
from samadapt.options import Option
from samadapt.progress import Progress
from samadapt.settings import (
    CellOptions,
    FinishOptions,
    LearnerSettings,
    NnUNetConfig,
    OpenOptions,
    PredictOptions,
    RayOptions,
    SplitOptions,
    StudySettings,
    TrainConfig,
    UnlabelledOptions,
)


@verb(app)
def encode(
    data: Data,
    *,
    settings: LearnerSettings,
    store: Store = Path("features"),
    opening: OpenOptions,
    device: Device,
    ray: RayOptions,
    quiet: Quiet = False,
) -> Result:
    """Run the frozen encoder once and store the maps that a head reads."""
    chosen = make_learner(settings)
    from samadapt import learner
    from samadapt.features import FeatureStore, demand_store, encode_line

    demand_store(store)
    opened = open_data(data, opening, settings.head)
    total = len(opened)
    say(choice_note(settings.encoder, chosen), quiet)
    chosen = suited(chosen, opened, quiet)
    say(live_note(chosen), quiet)
    progress = encode_line(total, quiet=quiet)
    with on_cluster(ray, device, quiet) as cluster:
        maps = FeatureStore(store) if cluster is None else cluster.store(store)
        report = learner.encode(chosen, opened, maps, "cpu" if cluster else device, progress=progress)
    typed = ["--encoder", chosen.encoder, "--head", chosen.head, "--store", store]
    typed += [] if chosen.views else ["--views", learner.STORED_VIEWS]
    return Result(
        {"store": store, "encoder": chosen.encoder, **vars(report)},
        "" if quiet else report.summary(store),
        command("train", data, *typed, "--out", f"runs/{chosen.head}"),
    )


@verb(app)
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
    ending: FinishOptions,
    opening: OpenOptions,
    store: Store = Path("features"),
    live: Annotated[bool, Option("Run the encoder in every step and store nothing.", flag="--live")] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> Result:
    """Train a head on few labelled patients. Rerunning the same command resumes."""
    given = {"backbone": backbone} if backbone else {}
    chosen = make_learner(dataclasses.replace(settings, options={**settings.options, **given}))
    check_device(config.device)
    from samadapt.cli.training import Training, train_folds, train_heads, train_once
    from samadapt.features import FeatureStore
    from samadapt.inputs import Taken
    from samadapt.runs import precision_note

    opened = open_data(data, opening, settings.head)
    say(choice_note(settings.encoder, chosen), quiet)
    chosen = suited(chosen, opened, quiet)
    say(precision_note(config), quiet)
    maps = None if live else FeatureStore(store)
    taken = Taken(opening.modality, opening.anonymous, opening.allow_outside)
    asked = Training(
        chosen,
        opened,
        budget,
        config,
        data,
        out,
        maps,
        scans,
        taken,
        ending,
        overwrite,
        quiet,
    )
    if ending.heads_ensemble > 1:
        return train_heads(asked)
    return train_folds(asked) if budget.fold == "all" else train_once(asked)


@verb(app)
def predict(
    run: Annotated[Path, typer.Argument(help="Run folder of `samadapt train`.")],
    inputs: Annotated[Path, typer.Argument(help="A scan, a folder of scans, or a data set.")],
    out: Out,
    *,
    what: PredictOptions,
    checkpoint: Annotated[str | None, Of(LearnerSettings)],
    taken: Annotated[dict[str, Any], Given(OpenOptions, ("modality", "anonymous", "allow_outside"))],
    device: Device,
    ray: RayOptions,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> Result:
    """Segment (or classify) scans; label maps come in the source's own geometry."""
    from samadapt.folders import predict_folder
    from samadapt.inputs import Taken

    progress = case_line("predicted", quiet)
    with on_cluster(ray, device, quiet) as cluster:
        report = predict_folder(
            run,
            inputs,
            out,
            **vars(what),
            device="cpu" if cluster else device,
            checkpoint=checkpoint,
            overwrite=overwrite,
            progress=progress,
            taken=Taken(**taken),
            spread=cluster.predict if cluster else None,
        )
    for case, message in report.failed.items():
        print(f"samadapt: {case} was not predicted: {message}", file=sys.stderr)
    return Result(
        {**vars(report), "pictures": out / "pictures" if what.pictures else None},
        f"predicted: {report.done} case{'s'[: report.done != 1]} in {out}" + abstained_note(report.abstained),
        after_prediction(out, inputs, report.labelled, what.pictures),
        bool(report.failed),
    )


@verb(app)
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
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Also draw the worst, the median and the best case.")
    ] = False,
    quiet: Quiet = False,
) -> Result:
    """Score predictions in mm, with a 95 % interval over patients."""
    from samadapt.evaluation import draw_evaluation, evaluate_folder, write_evaluation
    from samadapt.info import record_evaluation
    from samadapt.metrics import format_table

    evaluation = evaluate_folder(predictions, truth, case_line("scored", quiet), **taken)
    table = write_evaluation(evaluation, predictions, truth, out, overwrite)
    drawn = draw_evaluation(evaluation, table) if pictures else []
    recorded = record_evaluation(predictions, table)
    notes = [f"note: {text}" for text in evaluation.notes]
    places = [f"scores: {table}", *(f"picture: {path}" for path in drawn)]
    return Result(
        {"scores": table, "summary": evaluation.summary, "notes": evaluation.notes, "pictures": drawn},
        "\n".join([format_table(evaluation.summary), *notes, *([] if quiet else places)]),
        after_evaluation(recorded) if pictures else command("evaluate", predictions, truth, "--pictures"),
    )


@verb(app)
def demo(
    *,
    out: Out = Path("demo"),
    steps: Annotated[int, Of(TrainConfig)] = 200,
    seed: Annotated[int, Of(TrainConfig)],
    overwrite: Overwrite = False,
) -> Result:
    """Phantom data, two labelled patients, a head and a U-Net, scores and pictures: no network needed."""
    from samadapt.demo import run_demo

    run_demo(out, steps=steps, seed=seed, overwrite=overwrite)
    return Result({"out": out}, next=command("check", "YOUR_DATA"))


@verb(app)
def check(
    data: Data,
    opening: Annotated[
        dict[str, Any],
        Given(OpenOptions, CHECKED),
    ],
    encoder: SeenBy = None,
    html: Annotated[
        Path | None, Option("Also write a page with pictures of the suspects to this file.")
    ] = None,
    quiet: Quiet = False,
) -> Result:
    """Check pairing, labels, geometry, duplicates, outliers and leakage before training."""
    import shutil

    from samadapt import check as doctor

    if html is not None:
        doctor.demand_page(html)  # before the work
    opened = open_data(data, OpenOptions(**opening))
    progress, total = Progress(quiet), len(opened)
    findings = doctor.check(
        opened, lambda n: progress(lambda: f"checked {n} of {total} cases", n / total), encoder
    )
    if html is not None:
        doctor.write_page(findings, opened, html)
    page = [f"page: {html}"] if html and not quiet else []
    wrong = any(finding.severity == "error" for finding in findings)
    return Result(
        doctor.to_json(findings, opened),
        "\n".join([doctor.summary(findings, total, shutil.get_terminal_size((120, 24)).columns), *page]),
        "" if wrong else command("train", data, "--out", "runs/first"),
        failed=wrong,
    )


@verb(app)
def experiment(
    data: Data,
    out: Out,
    *,
    grid: Annotated[str | None, Option("A TOML file or a preset that holds the study.")] = None,
    heads: Annotated[tuple[str, ...], Option("Heads on the encoder: linear,cnn,autosam.")] = (),
    baselines: Annotated[tuple[str, ...], Option("Methods beside them: unet,simclr,zero_shot.")] = (),
    study: Annotated[dict[str, Any], Given(StudySettings, ("labels", "seeds", "quick", "threads"))],
    shared: Annotated[dict[str, Any], Given(LearnerSettings, ("encoder", "checkpoint", "side"))],
    common: Annotated[dict[str, Any], Given(TrainConfig, ("steps", "device"))],
    nnunet: Annotated[dict[str, Any], Given(NnUNetConfig, ("budget", "bin"))],
    part: CellOptions,
    ray: RayOptions,
    opening: OpenOptions,
    store: Store = Path("features"),
    quiet: Quiet = False,
) -> Result:
    """Compare methods at several numbers of labelled patients, with several seeds. Rerunning the same command resumes."""
    part.demand_fits(ray)
    from samadapt.cli import studying
    from samadapt.experiment import run_part
    from samadapt.features import FeatureStore, demand_store
    from samadapt.files import demand_writable

    demand_writable(out, "--out")
    demand_store(store)
    studying.demand_one_source(study, grid)
    opened = open_data(data, opening)
    typed = {"encoder": shared, "train": common, "nnunet": nnunet}
    chosen, config = studying.choose_study(grid, study, [*heads, *baselines], typed, opened, out, quiet)
    progress = None if quiet else print
    with on_cluster(ray, config.device, quiet) as cluster:
        maps = FeatureStore(store)
        if cluster is not None:
            maps = cluster.store(store)
            config = dataclasses.replace(config, device="cpu")  # of this process; the workers have their own
        outcome = run_part(opened, chosen, config, out, maps, part, progress, executor=cluster)
    if part.list_cells:
        return studying.cell_lines(outcome)
    for cell, message in outcome.failed.items() if quiet else ():  # else it was said when it happened
        print(f"samadapt: {cell}: {message}", file=sys.stderr)
    return studying.study_result(outcome)
