"""The verb that puts trained runs behind HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from samadapt.cli.app import app
from samadapt.cli.options import Device, check_device
from samadapt.cli.parameters import Of
from samadapt.cli.results import Result, verb
from samadapt.serving.options import ServeOptions, demand_packages
from samadapt.settings import LearnerSettings


@verb(app)
def serve(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of `samadapt train`.")],
    *,
    what: ServeOptions,
    checkpoint: Annotated[str | None, Of(LearnerSettings)],
    device: Device,
) -> Result:
    """Answer with trained runs over HTTP: a page to drop a scan on, and an API for programs. Ctrl+C stops it."""
    demand_packages()
    check_device(device)
    from samadapt.serving.door import serve as run_server

    def ready(address: str, models: Sequence[str]) -> None:
        print(f"serving {', '.join(models)} at {address} (Ctrl+C stops it)", flush=True)

    run_server(runs, device=device, checkpoint=checkpoint, options=what, ready=ready)
    return Result({"runs": runs})
