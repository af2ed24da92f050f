"""How much of where a classifier looked lies inside the lesion, for every cell of a study on ISIC 2017.

    samadapt experiment ../shared/data/ISIC2017 --task classification --grid benchmarks/slca_resnet18.toml --out experiments/slca_resnet18_isic
    python benchmarks/inside_lesion.py experiments/slca_resnet18_isic ../shared/data/ISIC2017

Each stage's attention, and Grad-CAM of the likeliest class (of the plain network too); "area" is the mask's share of the picture:
what chance gives. Means over the scored pictures, then over the draws (lowest and highest draw). Flat maps say nothing and are left out.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import torch

import samadapt as sa
from samadapt.heads.classification import share_inside
from samadapt.report.reading import labels_text


def defined(values: Iterable[float]) -> list[float]:
    """Without the nan of flat maps."""
    return [value for value in values if not math.isnan(value)]


def shares(run: Path, cases: list[sa.Case], masks: dict[str, torch.Tensor]) -> dict[str, float]:
    """{map: mean share inside the mask} of one trained classifier."""
    model = sa.load_run(run)
    found: dict[str, list[float]] = defaultdict(list)
    for case in cases:
        look = model.saliency_maps(case, model.predict_slices(case))
        mask = masks[case.id][look.slice_index]
        for name, attention in look.maps.items():
            found[name].append(share_inside(torch.from_numpy(attention), mask))
        found["area"].append(float((mask != 0).float().mean()))
    return {name: sum(kept) / len(kept) for name, values in found.items() if (kept := defined(values))}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path, help="folder of the experiment")
    parser.add_argument("data", type=Path, help="the data set with masks")
    parser.add_argument("--cases", type=int, help="only so many pictures, for a trial")
    parser.add_argument("--labels", help="only the cells of this number of labels: all, 0.1, ...")
    given = parser.parse_args()
    note = json.loads((given.study / "experiment.json").read_text())
    pictures = sa.open_dataset(given.data, task="classification")
    lesions = sa.open_dataset(given.data, task="segmentation")
    scored = [i for i in note["scored"] if i in lesions.labelled_ids][: given.cases]
    cases = [pictures.case(i) for i in scored]
    masks = {i: lesions.case(i).label for i in scored}
    rows: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for digest, cell in note["cells"].items():
        run = given.study / digest
        labels = labels_text(cell["labels"])
        finished = (run / "scores.csv").is_file() and (run / "attention.npz").is_file()  # some have no map
        if finished and given.labels in (None, labels):
            rows[cell["learner"], labels].append(shares(run, cases, masks))
    found = {name for draws in rows.values() for draw in draws for name in draw}
    names = sorted(found, key=lambda name: (name != "area", name == "Grad-CAM", name != "stem", name))
    print(f"{len(cases)} pictures\n\n| learner | labels | draws | {' | '.join(names)} |")
    print("|---" * (3 + len(names)) + "|")
    for (learner, labels), draws in rows.items():
        cells = []
        for name in names:
            values = [draw[name] for draw in draws if name in draw]
            spread = f" ({min(values):.3f}-{max(values):.3f})" if values and name != "area" else ""
            cells.append(f"{sum(values) / len(values):.3f}{spread}" if values else "")
        print(f"| {learner} | {labels} | {len(draws)} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
