"""A training of AutoSAM's head: the official loop, which runs the encoder in every step, beside stored feature maps.

    git clone https://github.com/xhu248/AutoSAM && git -C AutoSAM checkout 50a6ff44492bedcdb9df749a3bf7b0454c02fe0d
    python benchmarks/autosam_training.py --official AutoSAM --data ACDC    # five patients; 120 epochs of batches of 4
    python benchmarks/autosam_training.py --official AutoSAM --precision bf16 --views 2

Both have SAM's ViT-B at 1024 with random weights (time does not depend on them), the same slices, batches of 4 and Adam.
The official side is its authors' model and loss as they are; the loop around them does what `scripts/main_autosam_seg.py`
does in a step: forward, cross-entropy and Dice, backward, step. Their pictures come from memory, without their
augmentation, so that nothing but the network is counted. Ours encodes each view of each slice once into a store, reading
and writing included, and trains from the store, with the same preset of the head.

Nobody waits for the whole training on a processor: a share of it is measured, in turn in one process, and the rest is
extrapolated; the printed lines say so. The official step costs the same in each epoch, so that this is fair to it.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import math
import statistics
import sys
import tempfile
import types
from pathlib import Path

import torch
from side_by_side import head_loop, in_turn, matmul_rate, spread
from torch import Tensor, nn

import samadapt as sa
from samadapt.features import FeatureStore, MapSpec, Pairs
from samadapt.learner import Learner
from samadapt.phantom import make_phantom
from samadapt.types import Case

BATCH, EPOCHS, PIXELS = 4, 120, 224  # of the official scripts
ENCODED, STEPS = 2, 4  # slices and steps of ours in a round


class Official:
    """The authors' network and loss, and one step of their loop on a batch."""

    def __init__(self, folder: Path, classes: int) -> None:
        for name in (
            "segment_anything",
            "models",
        ):  # as empty packages: their own __init__ asks for more than this
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = [str(folder / name)]
        sys.path.insert(0, str(folder))
        build = importlib.import_module("models.build_autosam_seg_model")
        dice = importlib.import_module("loss_functions.dice_loss")
        self.model = build.sam_seg_model_registry["vit_b"](num_classes=classes)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad = "image_encoder" not in name and "iou" not in name
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=5e-4)
        self.dice, self.cross_entropy = dice.SoftDiceLoss(batch_dice=True, do_bg=False), nn.CrossEntropyLoss()

    def step(self, images: Tensor, labels: Tensor) -> None:
        """(B, 3, H, W) and (B, 1, H, W)."""
        self.model.train()
        masks = self.model(images)[0].view(len(images), -1, *images.shape[-2:])
        loss = self.cross_entropy(masks, labels[:, 0]) + self.dice(masks.softmax(1), labels[:, 0])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class Ours:
    """Stored maps of a few slices, and the head that is trained on them."""

    def __init__(self, given: argparse.Namespace, case: Case, classes: int, window: str, store: Path) -> None:
        self.store, self.count = store, 0
        learner = Learner(
            encoder="sam_vit_b", checkpoint="random", head="autosam", options={"preset": given.preset},
            encoder_precision=given.precision,
        )  # fmt: skip
        self.model = learner.build(classes)
        self.maps = MapSpec(self.model.spec, self.model.head.reads, window)
        middle = case.image.shape[1] // 2
        part = slice(middle - ENCODED // 2, middle - ENCODED // 2 + ENCODED)
        assert case.label is not None
        self.case = dataclasses.replace(case, image=case.image[:, part], label=case.label[part])
        self.loop = head_loop(self.model, 5e-4, given.precision == "bf16")
        self.pairs: Pairs | None = None

    def encode(self) -> None:
        """Two slices into a fresh store."""
        self.count += 1
        FeatureStore(self.store / str(self.count)).encode([self.case], self.maps)

    def steps(self) -> None:
        """Some steps from the store."""
        if self.pairs is None:
            self.pairs = Pairs(_One(self.case), self.maps, FeatureStore(self.store / "1"))
        for _ in range(STEPS):
            x, target = self.pairs.batch([n % ENCODED for n in range(BATCH)])
            self.loop.update(x, target)


class _One:
    """A data set of one case."""

    def __init__(self, case: Case) -> None:
        self.kept, self.ids, self.window = case, [case.id], "percentile"
        self.classes = [str(n) for n in range(4)]

    def __len__(self) -> int:
        return 1

    def case(self, case_id: str) -> Case:
        return self.kept


def opened(data: Path | None, labels: int, folder: Path) -> tuple[Case, int, int, str]:
    """A labelled case; how many slices the labelled patients have; how many classes; the window."""
    if data is None:
        found = sa.open_dataset(make_phantom(folder / "phantom", patients=labels + 2))
        print("without --data: samadapt's phantom")
    else:
        found = sa.open_dataset(data)
    split = found.split(labels=labels)
    slices = sum(found.case(case).image.shape[1] for case in split.train)
    return found.case(split.train[0]), slices, len(found.classes), found.window


def report(given: argparse.Namespace, slices: int, times: dict[str, list[float]], rate: float) -> None:
    """Seconds of the parts, the whole training extrapolated, the ratio."""
    steps = math.ceil(slices / BATCH) * given.epochs
    encode = [t / ENCODED for t in times["encode"]]
    step = [t / STEPS for t in times["steps"]]
    print(f"The machine multiplies float32 matrices at {rate:.0f} GFLOP/s.")
    print(f"The official loop takes {spread(times['official'])} s a step of {BATCH} slices.")
    print(f"Ours takes {spread(encode)} s to encode a slice and {spread(step, 3)} s a step from the store.")
    theirs = [t * steps for t in times["official"]]
    print(
        f"A training on {slices} slices, {given.epochs} epochs, is {steps} steps. Extrapolated: official "
        f"{statistics.median(theirs) / 3600:.1f} hours."
    )
    for views in given.views:
        own = [e * slices * views + s * steps for e, s in zip(encode, step, strict=True)]
        found = [a / b for a, b in zip(theirs, own, strict=True)]
        print(
            f"Ours with {views} stored view(s) of each slice: {statistics.median(own) / 60:.0f} minutes, encoding "
            f"included; the official loop takes {spread(found, 0)} times as long."
        )
    print("All are medians; in brackets the lowest and the highest round.")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--official", type=Path, required=True, help="a checkout of xhu248/AutoSAM")
    parser.add_argument("--data", type=Path, help="a data set as samadapt opens it; default: its phantom")
    parser.add_argument("--labels", type=int, default=5, help="labelled patients")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--views", type=int, nargs="+", default=[1, 2, 8])
    parser.add_argument("--preset", choices=["faithful", "fixed"], default="faithful")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32", help="of ours")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        case, slices, classes, window = opened(given.data, given.labels, Path(folder))
        official, ours = Official(given.official, classes), Ours(given, case, classes, window, Path(folder))
        images = torch.rand(BATCH, 3, PIXELS, PIXELS)
        labels = torch.randint(classes, (BATCH, 1, PIXELS, PIXELS))
        ours.encode()  # not timed; the first steps need it
        ours.steps()
        runs = {
            "official": lambda: official.step(images, labels), "encode": ours.encode, "steps": ours.steps,
        }  # fmt: skip
        times = in_turn(runs, given.rounds)
        report(given, slices, times, matmul_rate())


if __name__ == "__main__":
    main()
