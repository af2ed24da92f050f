"""The verb that turns a run into files that other programs use."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from samadapt.cli.app import app
from samadapt.cli.options import Out, Overwrite, Quiet
from samadapt.cli.parameters import Of
from samadapt.cli.results import Result, verb
from samadapt.cli.terminal import case_line
from samadapt.settings import ExportOptions, LearnerSettings


@verb(app)
def export(
    run: Annotated[Path, typer.Argument(help="Run folder of `samadapt train`.")],
    out: Out,
    *,
    what: ExportOptions,
    checkpoint: Annotated[str | None, Of(LearnerSettings)],
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> Result:
    """Export a run for other programs: ONNX, torch.export, a folder for the Hugging Face hub, or a MONAI bundle."""
    from samadapt.export import export_run

    report = export_run(
        run,
        out,
        checkpoint=checkpoint,
        overwrite=overwrite,
        progress=case_line("compared", quiet),
        **vars(what),
    )
    found = report.comparison
    lines = [f"exported: {len(report.files)} files in {out}", f"compared with the run on {found.text}"]
    lines += [f"pushed: {report.pushed}"] if report.pushed else []
    return Result({**vars(report), "holds": found.holds, "text": found.text}, "\n".join(lines), report.next)
