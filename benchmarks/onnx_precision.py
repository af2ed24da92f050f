"""Exported networks in float16 and int8 beside float32: how many voxels differ, how large the files are, how long a slice takes.

    python benchmarks/onnx_precision.py runs/hippocampus --data Task04_Hippocampus --cases 8

float16 and int8 are made with ONNX Runtime's own tools. int8 "weights" quantises the weights and computes their products
with inputs that are quantised on the fly; int8 "static" also quantises the maps between, by their range on slices of the
first case, which is then not compared.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from samadapt.export import export_run, runner
from samadapt.export.comparing import cases_of
from samadapt.prediction import load_run

CALIBRATION = 16  # slices that tell the ranges for int8 "static"


def squares(model: runner.Model, image: np.ndarray) -> list[np.ndarray]:
    """The prepared slices of a case, (1, channels, S, S) each."""
    limits = runner.fit_window(image, model.about["window"])
    shown = (runner.apply_window(image[:, n], limits) for n in range(image.shape[1]))
    return [runner.prepare(x, model.about["prepare"], model.about["side"])[0][None] for x in shown]


def variants(folder: Path, calibration: Sequence[np.ndarray]) -> Iterator[str]:
    """Names of files that are made beside model.onnx."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process
    from onnxruntime.transformers.float16 import convert_float_to_float16

    half = convert_float_to_float16(onnx.load(folder / "model.onnx"), keep_io_types=True)
    onnx.save(half, folder / "float16.onnx")
    yield "float16"
    quantize_dynamic(folder / "model.onnx", folder / "int8 weights.onnx", weight_type=QuantType.QUInt8)
    yield "int8 weights"

    class Slices(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([{"pixels": x} for x in calibration])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    quant_pre_process(str(folder / "model.onnx"), str(folder / "prepared.onnx"), skip_symbolic_shape=True)
    quantize_static(folder / "prepared.onnx", folder / "int8 static.onnx", Slices(), per_channel=True)
    yield "int8 static"


def answers(model: runner.Model, images: Sequence[np.ndarray]) -> tuple[list[np.ndarray], float]:
    """Of every case, and the seconds that a slice took."""
    model.predict_image(images[0][:, :1])  # warm
    begin = time.perf_counter()
    found = [model.predict_image(image) for image in images]
    return found, (time.perf_counter() - begin) / sum(image.shape[1] for image in images)


def difference(expected: Sequence[np.ndarray], found: Sequence[np.ndarray], segments: bool) -> str:
    if not segments:
        largest = max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True))
        other = sum(int(a.argmax() != b.argmax()) for a, b in zip(expected, found, strict=True))
        return f"largest difference of a probability {largest:.4f}, {other} of {len(found)} of another class"
    voxels, wrong = (
        sum(a.size for a in expected),
        sum(int((a != b).sum()) for a, b in zip(expected, found, strict=True)),
    )
    both = sum(int(((a == b) & (a > 0)).sum()) for a, b in zip(expected, found, strict=True))
    dice = 2 * both / max(1, sum(int((x > 0).sum()) for x in (*expected, *found)))
    return f"{wrong} of {voxels} voxels differ ({wrong / voxels:.1e}), Dice with float32's answers {dice:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=8)
    given = parser.parse_args()
    chosen = itertools.islice(
        cases_of(given.data, given.run, load_run(given.run, "cpu").opening), given.cases + 1
    )
    first, *rest = [case.image.numpy() for case, _ in chosen]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "export"
        export_run(given.run, folder, format="onnx")
        model = runner.Model(folder)
        expected, seconds = answers(model, rest)
        size = (folder / "model.onnx").stat().st_size
        print(f"{'float32':13} {size / 2**20:6.1f} MiB  {seconds * 1000:6.1f} ms a slice", flush=True)
        for name in variants(folder, squares(model, first)[:CALIBRATION]):
            size = (folder / f"{name}.onnx").stat().st_size
            start = f"{name:13} {size / 2**20:6.1f} MiB"
            try:
                model.network = runner.onnx_network(folder, [f"{name}.onnx"])
                found, seconds = answers(model, rest)
            except Exception as error:  # ONNX Runtime raises its own kinds
                print(f"{start}  does not run: {str(error).splitlines()[0][:140]}", flush=True)
                continue
            print(
                f"{start}  {seconds * 1000:6.1f} ms a slice  {difference(expected, found, model.segments)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
