"""The verbs that tell of what is there: `list`, `info` and `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from samadapt.cli.app import app
from samadapt.cli.results import Result, verb


@verb(app)
def info(
    run: Annotated[Path, typer.Argument(help="Run folder of `samadapt train`.")],
) -> Result:
    """Say what a run is: data, labels, encoder and what its training has seen, head, training, scores, hashes, versions."""
    from samadapt.info import describe_run, format_run

    about = describe_run(run)
    return Result(about, format_run(about))


@verb(app)
def report(
    study: Annotated[Path, typer.Argument(help="The --out of `samadapt experiment`.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder of the report; the study's by default.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="A method to compare all others with too.")] = None,
) -> Result:
    """One HTML page, a tidy table and the curves of a study, from its scores alone."""
    from samadapt.report import write_report

    page = write_report(study, out, against)
    return Result({"page": page}, f"report: {page}")


@verb(app, "list")
def list_names(
    what: Annotated[
        str | None,
        typer.Argument(
            help="What to list: encoders, heads, metrics or settings; everything where it is left out."
        ),
    ] = None,
) -> Result:
    """List what there is to choose from: encoders, heads, metrics, and the settings of a study's file."""
    from samadapt.cli.lists import LISTS, describe, sections

    wanted = list(LISTS) if what is None else [what]
    return Result(
        {one: {name: dict(rows) for name, rows in sections(one).items()} for one in wanted},
        "\n\n".join(describe(one, titled=what is None) for one in wanted),
    )
