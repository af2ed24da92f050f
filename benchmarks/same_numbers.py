"""Ten small runs on phantom data, by the command line: do two versions of samadapt give the same numbers?

    python benchmarks/same_numbers.py run FOLDER            # with the samadapt that Python finds
    python benchmarks/same_numbers.py compare BEFORE AFTER  # two such folders

Run it on the commit before a rebuilding and on the one after it, on one machine and with one thread. What is compared: every
tensor of the trained weights, and every score.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import subprocess
import sys
from pathlib import Path

from photos import make_photo_phantom
from safetensors.torch import load_file

from samadapt.phantom import make_phantom

SHORT = "--steps 8 --batch-size 4 --labels 2 --device cpu --quiet"
NANO = "--encoder sam_nano --side 64 --store {out}/features"
RUNS = {
    "fused": f"train {{seg}} --head fused {NANO} --views 2 {SHORT}",
    "autosam": f"train {{seg}} --head autosam {NANO} --views 2 {SHORT} --precision 32",
    "cnn_live": f"train {{seg}} --head cnn {NANO} --live {SHORT}",
    "linear_select": f"train {{seg}} --head linear {NANO} --views 2 {SHORT} --select 1",
    "tuned": f"train {{seg}} --head fused {NANO} --tune all {SHORT}",
    "unet": f"train {{seg}} --head unet --encoder pixels --side 64 --set width=4 {SHORT}",
    "slca": f"train {{cls}} --head slca {NANO} --views 2 --backbone resnet18 --set image_size=64 {SHORT}",
    "probe": f"train {{cls}} --head attentive_probe {NANO} --views 2 {SHORT} --balance",
    "study": "experiment {seg} --grid {out}/study.toml --store {out}/features",
    "methods": "experiment {seg} --grid {out}/methods.toml --store {out}/features",
}
SHARED = """
seeds = 1
threads = 1
[encoder]
encoder = "sam_nano"
side = 64
views = 2
[train]
steps = 8
batch_size = 4
[unet]
width = 4
[simclr]
steps = 6
"""


def run(out: Path) -> None:
    """Train and score all of them; finished ones are left as they are."""
    out.mkdir(parents=True, exist_ok=True)
    places = {"seg": out / "seg", "cls": out / "cls", "out": out}
    if not places["seg"].exists():
        make_phantom(places["seg"], patients=6, seed=0)
    if not places["cls"].exists():
        make_photo_phantom(places["cls"], images=24, seed=0, size=64)
    for name, learners, labels in (
        ("study", '["cnn", "unet"]', "[1, 2]"),
        ("methods", '["simclr", "zero_shot", "zero_shot_points", "random", "scratch"]', "[1]"),
    ):
        (out / f"{name}.toml").write_text(f"learners = {learners}\nlabels = {labels}\n{SHARED}")
    for name, line in RUNS.items():
        folder = out / name
        call([*line.format(**places).split(), "--out", str(folder)])
        if line.startswith("train"):
            data = places["cls"] if "{cls}" in line else places["seg"]
            call(["predict", str(folder), str(data), "--out", str(folder / "predictions"), "--quiet"])
            call(["evaluate", str(folder / "predictions"), str(data)])


def call(arguments: list[str]) -> None:
    """One command in a process of its own, with one thread."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    print("samadapt", *arguments, flush=True)
    subprocess.run(
        [sys.executable, "-m", "samadapt.cli", *arguments],
        check=True,
        env=environment,
        stdout=subprocess.DEVNULL,
    )


def compare(before: Path, after: Path) -> int:
    """Print the largest difference of each file; returns how many files differ or are missing."""
    differing = 0
    for kind, measure in (("*.safetensors", weights_difference), ("scores.csv", scores_difference)):
        for old, new in pairs(before, after, kind):
            difference = measure(old, new) if old and new else math.inf
            differing += difference != 0
            print(f"{difference:10.3g}  {(old or new or before).relative_to(before if old else after)}")
    return differing


def pairs(before: Path, after: Path, pattern: str) -> list[tuple[Path | None, Path | None]]:
    """Files of the two folders that belong together; the cells of a study by learner, labels and seed."""
    found = [
        {key(p, root): p for p in sorted(root.rglob(pattern)) if "features" not in p.parts}
        for root in (before, after)
    ]
    return [(found[0].get(k), found[1].get(k)) for k in sorted({*found[0], *found[1]})]


def key(path: Path, root: Path) -> str:
    """A name that does not depend on digests, which change with the version."""
    note = path.parent.parent / "experiment.json"
    if not note.is_file():
        return str(path.relative_to(root))
    cells = json.loads(note.read_text())["cells"]
    cell = cells.get(path.parent.name) or {"learner": path.parent.name.split("-")[0], "labels": 0, "seed": 0}
    return "/".join(map(str, (note.parent.name, cell["learner"], cell["labels"], cell["seed"], path.name)))


def weights_difference(old: Path, new: Path) -> float:
    a, b = (
        {name.removeprefix("image_encoder."): x for name, x in load_file(path).items()} for path in (old, new)
    )
    if set(a) != set(b) or any(a[k].shape != b[k].shape for k in a):
        return math.inf
    return max(float((a[k].double() - b[k].double()).abs().max()) for k in a if a[k].numel())


def scores_difference(old: Path, new: Path) -> float:
    tables = []
    for path in (old, new):
        with path.open() as file:
            tables.append(
                {
                    tuple(v for k, v in row.items() if k != "value"): row["value"]
                    for row in csv.DictReader(file)
                }
            )
    a, b = tables
    if set(a) != set(b):
        return math.inf
    return max((abs(float(a[k] or "nan") - float(b[k] or "nan")) for k in a if a[k] != b[k]), default=0.0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run").add_argument("out", type=Path)
    both = commands.add_parser("compare")
    both.add_argument("before", type=Path)
    both.add_argument("after", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments.out)
    else:
        sys.exit(min(compare(arguments.before, arguments.after), 1))
