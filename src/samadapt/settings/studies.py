"""What a study is, how it is run, and its baselines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from samadapt import names
from samadapt.options import Checked, option
from samadapt.records import SamAdaptError

#: Epochs -> nnU-Net's trainer class of that length: the length of a training is the choice of a class there.
TRAINERS = {
    1: "nnUNetTrainer_1epoch",
    **{n: f"nnUNetTrainer_{n}epochs" for n in (5, 10, 20, 50, 100, 250)},
    1000: "nnUNetTrainer",
}
CONFIGURATIONS = ("2d", "3d_fullres")  # of nnU-Net


@dataclass(frozen=True)
class StudySettings(Checked):
    """What a study compares: methods at several numbers of labels, with several seeds."""

    learners: tuple[str, ...] = option((), "Methods by name: heads, baselines, and learners of one's own.")
    labels: tuple[int | float | Literal["all"], ...] = option(
        (1, 2, 5), "Numbers of labelled patients: 1,2,5,all, or shares."
    )
    seeds: int | tuple[int, ...] = option(3, "How many seeds, or a list of seeds.", least=1)
    quick: bool = option(
        False,
        "A first look in about five minutes: one draw of few labels and few steps. Marked as quick in the tables and the "
        "report.",
        flag="--quick",
    )
    stacked: bool = option(False, "Whether the Dice is of all scans of a patient as one.")
    threads: int | None = option(
        None, "Threads of a cell, which change the last digits of its numbers; else cores / jobs.", least=1
    )


@dataclass(frozen=True)
class RayOptions(Checked):
    """Where work is spread over the machines of a Ray cluster."""

    ray: str | None = option(
        None,
        "Run on a Ray cluster: auto (the one that this machine is part of), local (one is started here and ends with the "
        "command), or the address of its head, HOST:PORT.",
    )


@dataclass(frozen=True)
class CellOptions(Checked):
    """How the cells of a study are run, and which part of it one command does where a cluster's job array shares it."""

    jobs: int = option(1, "Cells to run side by side.", least=1)
    list_cells: bool = option(
        False,
        "Begin the study, list its cells (digest, state, what it is), and stop.",
        flag="--list-cells",
    )
    prepare: bool = option(
        False, "Encode, and make all that cells share, and stop before the first cell.", flag="--prepare-only"
    )
    cell: tuple[str, ...] = option((), "Run these cells alone, by their digests of --list-cells.")

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = [flag for flag, value in (("--list-cells", self.list_cells), ("--prepare-only", self.prepare), ("--cell", self.cell)) if value]  # fmt: skip
        if len(asked) > 1:
            raise SamAdaptError(f"{' and '.join(asked)} are different parts of a study; give one of them")

    def demand_fits(self, ray: RayOptions) -> None:
        """Refuse what does not go together with a Ray cluster."""
        if ray.ray is not None and self.jobs > 1:
            raise SamAdaptError(
                f"--jobs {self.jobs} is for cells side by side on this machine, and with --ray the cluster has the room that it has; leave "
                "it out (--threads says how many cores a cell takes)"
            )


@dataclass(frozen=True)
class SimclrConfig(Checked):
    """How long SimCLR pre-trains, and on what. A batch holds different slices, so none is a negative of itself."""

    steps: int = option(300, "Optimiser steps of the pre-training.", least=1)
    batch_size: int = option(
        16, "Slices in a step, each in two views; at least 2, for a slice is told from others.", least=2
    )
    lr: float = option(3e-4, "Learning rate.", above=0)
    temperature: float = option(0.5, "Temperature of the contrastive loss.", above=0)
    projection: int = option(128, "Width of the space in which views are compared.", least=1)
    augment: str = option("default", "Augmentation that makes the views.", names=names.AUGMENTATIONS)
    check_every: int = option(25, "Steps between checkpoints.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augment == "none":
            raise SamAdaptError("augment is 'none'; two equal views teach nothing: give 'default'")


@dataclass(frozen=True)
class NnUNetConfig(Checked):
    """Where nnU-Net is, and how long it may train."""

    bin: str | None = option(
        None, "Folder of nnU-Net's commands, if they are not on the PATH.", flag="--nnunet-bin"
    )
    budget: int = option(20, "Most epochs of nnU-Net, of 250 steps each.", least=1)
    configuration: str = option(
        "3d_fullres",
        "Configuration of nnU-Net; where it plans no 3d_fullres, as for pictures, it is 2d.",
        choices=CONFIGURATIONS,
    )

    @property
    def epochs(self) -> int:
        """Of the longest training that nnU-Net has within the budget."""
        return max(epochs for epochs in TRAINERS if epochs <= self.budget)

    @property
    def trainer(self) -> str:
        """Its class."""
        return TRAINERS[self.epochs]


@dataclass(frozen=True)
class SuggestStudySettings(Checked):
    """How choosing patients is simulated on a data set that has all labels."""

    k: int = option(2, "How many patients are labelled in a round.", least=1, flag="-k")
    start: int = option(1, "How many patients are labelled at random before the first round.", least=1)
    rounds: int = option(1, "How many rounds of choosing and training follow.", least=1)
    strategies: tuple[str, ...] = option(
        tuple(name for name in names.STRATEGIES if name != "random"),
        "Strategies to compare with random.",
        choices=names.STRATEGIES,
    )
    seeds: int | tuple[int, ...] = option(
        3, "How many draws of the first patients, or a list of seeds.", least=1
    )
    fold: int = option(0, "Fold that is held out for testing.", least=0)

    @property
    def draws(self) -> tuple[int, ...]:
        """The seeds."""
        return tuple(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds
