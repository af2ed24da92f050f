"""ONNX files of a model: one, or encoder and head apart."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch.export import ExportedProgram

from samadapt.adapted import AdaptedModel
from samadapt.export import graph
from samadapt.files import replacing
from samadapt.types import PIXELS, SamAdaptError

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_LARGEST = 1_900_000_000  # bytes of weights in one file; protobuf ends at 2 GiB


def demand_packages() -> None:
    """Refuse at once where the extra is not installed."""
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise SamAdaptError(
            f"exporting to ONNX needs {', '.join(missing)}, which is not installed; pip install 'samadapt[onnx]'"
        )


def write_onnx(model: AdaptedModel, folder: Path, parts: bool = False) -> list[str]:
    """The files that compute logits from pixels, in the order in which they run.

    Args:
        parts: encoder.onnx, which gives every map of the encoder, and head.onnx, in place of model.onnx.
    """
    if not parts:
        return [_write(graph.whole(model), folder / "model.onnx", [PIXELS], [graph.LOGITS])]
    graph.demand_parts(model)
    encoder, taps = graph.encoder_part(model)
    head, reads = graph.head_part(model)
    return [
        _write(encoder, folder / "encoder.onnx", [PIXELS], taps),
        _write(head, folder / "head.onnx", reads, [graph.LOGITS]),
    ]


def _write(program: ExportedProgram, path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> str:
    """The name of the file in its folder."""
    with _quiet():
        exported = torch.onnx.export(
            program, dynamo=True, input_names=list(inputs), output_names=list(outputs), verbose=False
        )
    assert exported is not None
    model = exported.model
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, with the folders of this machine
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.metadata_props.clear()
    model.metadata_props.clear()
    size = sum(x.numel() * x.element_size() for x in program.state_dict.values())
    if size <= _LARGEST:
        with replacing(path) as temporary:
            exported.save(temporary, external_data=False)
        return path.name
    place = path.with_name(path.stem)  # a folder: the file names the one beside it that has the weights
    with replacing(place) as temporary:
        temporary.mkdir()
        exported.save(temporary / path.name, external_data=True)
    return f"{place.name}/{path.name}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch reports the packages that it does without, and its own progress."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
