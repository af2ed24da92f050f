"""Write a run's averaged weights into the package: `python -m pretraining.export RUN`."""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from pretraining.train import COLUMNS, Recipe, Trainer
from samadapt.encoders.nano import BACKBONE_KEY, VERSION, WEIGHTS

LARGEST = 10_000_000  # bytes of the package's weights, with everything


def packed(trainer: Trainer) -> dict[str, Tensor]:
    """The encoder's and the decoder's averaged weights in float16, keys as the encoder and SAM name them."""
    parts = {"backbone": f"{BACKBONE_KEY}.", "decoder": ""}
    found = {}
    for name, value in trainer.averaged().items():
        part, _, rest = name.partition(".")
        if part in parts:
            kind = torch.float16 if value.is_floating_point() else value.dtype
            found[parts[part] + rest] = value.detach().to("cpu", kind).contiguous()
    return found


def describe(run: Path, trainer: Trainer) -> dict[str, object]:
    """How the weights were made."""
    with (run / "losses.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) <= trainer.step]
    last = rows[-100:]
    means = {name: [float(row[name]) for row in last if row[name]] for name in COLUMNS}
    return {
        "version": VERSION,
        "recipe": json.loads((run / "recipe.json").read_text()),
        "steps": trainer.step,
        "hours": round(trainer.minutes / 60, 2),
        "finished": trainer.progress() >= 1,
        "losses": {name: round(sum(v) / len(v), 4) for name, v in means.items() if v},
        "commit": _commit(),
        "data": "none: synthetic pictures only",
    }


def _commit() -> str:
    asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"


def export(run: Path, to: Path = WEIGHTS) -> dict[str, object]:
    """Write the weights and, beside them, a `.json` that says how they were made."""
    recipe = Recipe(**json.loads((run / "recipe.json").read_text()))
    trainer = Trainer(recipe)
    trainer.load(torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True))
    description = describe(run, trainer)
    to.parent.mkdir(parents=True, exist_ok=True)
    part = to.with_suffix(".part")
    save_file(packed(trainer), part, metadata={"samadapt": json.dumps(description)})
    size = part.stat().st_size
    if size > LARGEST:
        raise ValueError(f"the weights take {size} bytes; the package allows {LARGEST}")
    part.chmod(0o644)  # the writer leaves it readable by its owner alone
    os.replace(part, to)
    to.with_suffix(".json").write_text(json.dumps(description, indent=1) + "\n")
    return {**description, "bytes": size}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pretraining.export", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a pre-training run")
    parser.add_argument("--to", type=Path, default=WEIGHTS, help="the .safetensors file")
    args = parser.parse_args()
    print(json.dumps(export(args.run, args.to), indent=1))


if __name__ == "__main__":
    main()
