"""Prediction of a folder: a frozen encoder with its head beside the U-Nets, and pictures in batches beside one by one.

    python benchmarks/predict_speed.py
    python benchmarks/predict_speed.py --data ACDC --cases 6

The same cases, in turn, by `samadapt predict` from reading to the written label maps, at the sides that the learners
have by default. The heads are fresh: time does not depend on their weights.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from side_by_side import in_turn, ratios, spread

import samadapt as sa
from samadapt import io
from samadapt.learner import Learner
from samadapt.phantom import make_phantom
from samadapt.prediction import build_predictor

LEARNERS = {
    "fused on sam_nano": Learner(encoder="sam_nano", head="fused"),
    "fused on imagenet_lite0": Learner(encoder="imagenet_lite0", head="fused"),
    "U-Net from scratch, side 256": Learner(encoder="pixels", head="unet", side=256),
}


def predicting(
    model: sa.prediction.Segmenter, data: sa.Dataset, ids: Sequence[str], out: Path, together: bool
) -> None:
    """From files to label maps."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    cases = (data.case(i) for i in ids)
    if together:
        for case, answers in model.all_answers(cases):
            model.predict_to(case, io.label_file(out, case, None), answers=answers)
        return
    for case in cases:
        model.predict_to(case, io.label_file(out, case, None))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path)
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = sa.open_dataset(given.data or make_phantom(root / "phantom", patients=given.cases))
        ids = list(itertools.islice(data.ids, given.cases))
        runs: dict[str, Callable[[], None]] = {}
        for name, learner in LEARNERS.items():
            model = build_predictor(learner.build(len(data.classes)), data.opening)
            for how, together in (("together", True), ("one by one", False)):
                runs[f"{name}, {how}"] = lambda m=model, t=together: predicting(m, data, ids, root / "out", t)
        for run in runs.values():
            run()
        times = in_turn(runs, given.rounds)
        slices = sum(data.case(i).image.shape[1] for i in ids)
        print(f"{len(ids)} cases, {slices} slices, {given.threads} thread(s)")
        reference = times["U-Net from scratch, side 256, together"]
        for name, values in times.items():
            print(
                f"{name}: {spread([t / slices for t in values], 4)} s a slice, "
                f"{spread(ratios(values, reference))} times the U-Net's"
            )


if __name__ == "__main__":
    main()
