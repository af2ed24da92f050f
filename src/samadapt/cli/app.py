"""The app that the verbs are commands of."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from samadapt import __version__

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
