"""The findings as one HTML page that needs nothing else, with pictures of the suspects."""

from __future__ import annotations

import base64
import io as memory
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from samadapt.check.findings import SEVERITIES, Finding, counts, files_of
from samadapt.datasets import Dataset
from samadapt.figures import COLOURS
from samadapt.files import write_text
from samadapt.types import Case, SamAdaptError

_OF_A_KIND = 12  # findings of one kind that get pictures: the page must stay small enough to open
_OF_A_FINDING = 2  # cases of one finding that are drawn
_INCHES = 2.4

_Wanted = tuple[str, int | None]  # a case, and the slice


def demand_page(path: str | Path) -> None:
    """Refuse to replace a file that is no earlier page: a slip of the keyboard must not cost a scan.

    Raises:
        SamAdaptError: it is something else.
    """
    path = Path(path)
    if path.is_file() and path.stat().st_size and b"<title>Check of " not in path.read_bytes()[:4096]:
        raise SamAdaptError(f"{path} is there and is no page of samadapt check; give --html another name")


def write_page(findings: Sequence[Finding], data: Dataset, path: str | Path) -> Path:
    """Write the page; the suspects are read once more for their pictures.

    Raises:
        SamAdaptError: the file cannot be written.
    """
    demand_page(path)
    groups = {severity: _by_kind([f for f in findings if f.severity == severity]) for severity in SEVERITIES}
    drawn = _pictures(_wanted(groups["error"]) | _wanted(groups["warning"]), data)
    text = files("samadapt.check").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(text).render(
        data=data,
        counts=counts(findings, len(data)),
        groups=groups,
        picture=drawn.get,
        wanted=_of,
        files={
            case: [_short(f, data) for f in files_of(data, case)] for f in findings for case in f.cases[:20]
        },
        legend=[(name, COLOURS[(n - 1) % len(COLOURS)]) for n, name in enumerate(data.classes) if n]
        if data.task == "segmentation"
        else [],
        of_a_kind=_OF_A_KIND,
    )
    write_text(path, page)
    return Path(path)


def _by_kind(findings: Iterable[Finding]) -> dict[str, list[Finding]]:
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.kind, []).append(finding)
    return groups


def _short(file: Path, data: Dataset) -> str:
    return str(file.relative_to(data.root)) if file.is_relative_to(data.root) else str(file)


def _of(finding: Finding) -> list[_Wanted]:
    """What is drawn of a finding."""
    return [(case, finding.slice_index) for case in finding.cases[:_OF_A_FINDING]]


def _wanted(kinds: dict[str, list[Finding]]) -> set[_Wanted]:
    return {w for found in kinds.values() for finding in found[:_OF_A_KIND] for w in _of(finding)}


def _pictures(wanted: set[_Wanted], data: Dataset) -> dict[_Wanted, str]:
    """Each as an address that needs no file; those of one case one after the other, so that it is read once."""
    drawn, case = {}, None
    for case_id, index in sorted(wanted, key=lambda w: (w[0], -1 if w[1] is None else w[1])):
        if case is None or case.id != case_id:
            try:
                case = data.case(case_id)
            except SamAdaptError:  # that is what the finding says
                case = None
                continue
        drawn[case_id, index] = _picture(case, index)
    return drawn


def _picture(case: Case, index: int | None) -> str:
    image = case.image.numpy()
    label = case.label.numpy() if case.label is not None and case.label.ndim == 3 else None
    if index is None:
        index = len(image[0]) // 2 if label is None else int((label > 0).sum((1, 2)).argmax())
    figure = Figure(figsize=(_INCHES, _INCHES * min(max(image.shape[2] / image.shape[3], 0.4), 2.0) + 0.25))
    axes = figure.add_axes((0, 0, 1, 1 - 0.25 / figure.get_size_inches()[1]))
    axes.set_axis_off()
    axes.set_title(f"{case.id}" + (f", slice {index}" if len(image[0]) > 1 else ""), fontsize=7.5, pad=3)
    low, high = np.percentile(image, (1, 99.5))
    shown = np.clip((image[:, index] - low) / max(high - low, 1e-12), 0, 1)
    if len(image) == 3:
        axes.imshow(shown.transpose(1, 2, 0))
    else:
        axes.imshow(shown[0], cmap="gray", vmin=0, vmax=1)
    if label is not None and min(label.shape[1:]) > 1:
        _outline(axes, label[index])
    axes.set(xlim=(-0.5, image.shape[3] - 0.5), ylim=(image.shape[2] - 0.5, -0.5))
    content = memory.BytesIO()
    FigureCanvasAgg(figure).print_figure(content, dpi=100, format="png")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def _outline(axes: Axes, label: np.ndarray) -> None:
    """Of each class; padded, so that outlines close at the border."""
    padded = np.pad(label, 1)
    rows, columns = (np.arange(-1, n - 1) for n in padded.shape)
    for k in map(int, np.unique(label)):
        if k:
            colour = COLOURS[(k - 1) % len(COLOURS)]
            axes.contour(columns, rows, padded == k, levels=[0.5], colors=[colour], linewidths=1.1)
