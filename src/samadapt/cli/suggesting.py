"""The verbs that say which patients to label next, and whether that pays."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samadapt.cli.app import app
from samadapt.cli.options import (
    Data,
    Device,
    Out,
    Quiet,
    Store,
    check_device,
    choice_note,
    make_learner,
    open_data,
    suited,
)
from samadapt.cli.parameters import Given
from samadapt.cli.results import Result, command, verb
from samadapt.cli.terminal import case_line, data_summary, say, seen_before
from samadapt.records import SamAdaptError
from samadapt.settings import (
    LearnerSettings,
    OpenOptions,
    SuggestOptions,
    SuggestStudySettings,
    TrainConfig,
)

if TYPE_CHECKING:
    from samadapt.suggest import Suggestion


@verb(app)
def suggest(
    places: Annotated[
        list[Path],
        typer.Argument(
            metavar="[RUN] POOL",
            help="Run folder of `samadapt train` (or a folder of run folders), and a folder of scans or a data set. POOL alone where "
            "there is no model yet.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Also write the table to this CSV file.")
    ] = None,
    *,
    options: SuggestOptions,
    compared: Annotated[dict[str, Any], Given(LearnerSettings, ("encoder", "checkpoint", "side"))],
    taken: Annotated[dict[str, Any], Given(OpenOptions, ("modality", "anonymous", "allow_outside"))],
    grouped: Annotated[dict[str, Any], Given(OpenOptions, ("group",))],
    store: Store = Path("features"),
    device: Device,
    quiet: Quiet = False,
) -> Result:
    """Say which patients to label next: those that a model is unsure of, and that differ from what is labelled."""
    run, pool = _run_and_pool(places)
    check_device(device)
    from samadapt.features import FeatureStore, encode_line
    from samadapt.files import demand_writable
    from samadapt.inputs import Taken
    from samadapt.suggest import ColdStart, suggest_patients, write_suggestion

    if out is not None:
        demand_writable(out.parent, "--out")
    found = suggest_patients(
        run,
        pool,
        options,
        FeatureStore(store),
        start=ColdStart(**compared, **grouped),
        taken=Taken(**taken),
        device=device,
        encoding=partial(encode_line, quiet=quiet),
        progress=case_line("looked at", quiet),
    )
    for note in found.notes:
        say(f"note: {note}", quiet)
    if out is not None:
        write_suggestion(found, out)
    more = [f"table: {out}"] if out is not None and not quiet else []
    return Result(
        {**vars(found), "table": out},
        "\n".join([_table(found), *more]),
        "label all scans of these patients, put them with their labels into the data set, and train again ("
        + command("train", "DATA", "--out", "runs/next")
        + ")",
    )


@verb(app, "suggest-study")
def suggest_study(
    data: Data,
    out: Out,
    *,
    study: SuggestStudySettings,
    settings: LearnerSettings,
    common: Annotated[
        dict[str, Any], Given(TrainConfig, ("steps", "batch_size", "lr", "precision", "device"))
    ],
    opening: OpenOptions,
    store: Store = Path("features"),
    quiet: Quiet = False,
) -> Result:
    """Simulate `suggest` on a labelled data set: does choosing patients beat random? Rerunning the same command resumes."""
    chosen, config = make_learner(settings), TrainConfig(**common)
    check_device(config.device)
    from samadapt.features import FeatureStore, encode_line
    from samadapt.files import demand_writable
    from samadapt.suggest import findings_text, simulate, verdict_text

    for folder, option in ((out, "--out"), (store, "--store")):
        demand_writable(folder, option)
    opened = open_data(data, opening, settings.head)
    say(data_summary(opened), quiet)
    say(choice_note(settings.encoder, chosen), quiet)
    chosen = suited(chosen, opened, quiet)
    for note in seen_before(opened, chosen):
        say(note, quiet)
    found = simulate(
        opened,
        chosen,
        config,
        study,
        out,
        FeatureStore(store),
        encoding=partial(encode_line, quiet=quiet),
        say=lambda text: say(text, quiet),
    )
    metric = "Dice" if opened.task == "segmentation" else "accuracy"
    rows = [{**vars(row), "verdict": row.verdict} for row in found.findings]
    return Result(
        {**vars(found), "findings": rows, "verdict": verdict_text(found.findings)},
        findings_text(found.findings, metric),
    )


def _run_and_pool(places: list[Path]) -> tuple[Path | None, Path]:
    """What was typed as [RUN] POOL."""
    if len(places) > 2:
        raise SamAdaptError(
            f"{len(places)} places were given ({', '.join(map(str, places))}); expected RUN and POOL, or POOL alone"
        )
    if len(places) == 1:
        only = places[0]
        if (only / "config.json").is_file() or list(only.glob("*/config.json")):
            raise SamAdaptError(
                f"{only} is a run folder, and no pool was given; give both: samadapt suggest {only} POOL"
            )
        return None, only
    return places[0], places[1]


def _table(found: Suggestion) -> str:
    """The patients, a line each, for the terminal."""
    from samadapt.suggest import STRATEGIES

    how = f"{len(found.patients)} of {found.pool} patients to label next, by strategy {found.strategy} ({STRATEGIES[found.strategy].text})"
    head = ("rank", "patient", "uncertainty", "distance", "reason")
    rows = [
        (
            str(row.rank),
            row.patient + (" (has a label)" if row.labelled else ""),
            "" if row.uncertainty is None else f"{row.uncertainty:.3f}",
            "" if row.distance is None else f"{row.distance:.1f}",
            row.reason,
        )
        for row in found.patients
    ]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head) - 1)]
    lines = [
        "  ".join((*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[-1]))
        for row in (head, *rows)
    ]
    return "\n".join([how, *lines])
