"""What a user can set, one dataclass for each thing. No torch: the command line derives its options from these.

Which numbers they lead to stands where they are used; the names that a name is chosen from stand in `names`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

from samadapt import names
from samadapt.options import Checked, Declarations, declared, option, without
from samadapt.records import TOGETHER, SamAdaptError

#: Epochs -> nnU-Net's trainer class of that length: the length of a training is the choice of a class there.
TRAINERS = {
    1: "nnUNetTrainer_1epoch",
    **{n: f"nnUNetTrainer_{n}epochs" for n in (5, 10, 20, 50, 100, 250)},
    1000: "nnUNetTrainer",
}
CONFIGURATIONS = ("2d", "3d_fullres")  # of nnU-Net


@dataclass(frozen=True)
class OpenOptions(Checked):
    """How a data set is opened."""

    slice_axis: int | None = option(
        None, "Axis of the file to slice along; else the one of the largest spacing.", least=0, most=2
    )
    group: str | None = option(
        None, "How to tell the patient of a case: a regular expression with one group, or a CSV file."
    )
    task: str | None = option(
        None,
        "Task, where a data set has labels for both: segmentation or classification.",
        choices=names.TASKS,
    )
    label_column: str | None = option(
        None, "Column of the table of labels; several (a,b) are one number for each class."
    )
    window: str | None = option(
        None,
        "Intensities that are mapped to the full range: percentile, ct, ct-lung, ct-bone, ct-brain, none, or LOW,HIGH.",
    )
    channels: tuple[int | str, ...] | None = option(None, "Image channels to use: 0 or 0,1,2.")
    structures: tuple[str, ...] = option(
        (), "Structures of DICOM SEG or RTSTRUCT to learn; where they overlap, the first one is kept."
    )
    modality: str | None = option(
        None, "Modality to take the scans as (CT, MR, ...); else as their headers or channel names say."
    )
    anonymous: str | None = option(
        None,
        "Write codes in place of the names of cases and patients. The file keeps the secret and the names, and is made if it "
        "is not there: use one for a project.",
    )
    allow_outside: bool = option(
        False,
        "Also read files outside of the data folder that links, tables or lists in it lead to.",
        flag="--allow-outside",
    )


@dataclass(frozen=True)
class LearnerSettings(Checked):
    """An encoder, a head, and how the images are seen."""

    head: str = option("fused", "Head to train; see `samadapt list heads`.", names=names.HEADS)
    encoder: str = option(
        "",
        "Encoder to read; see `samadapt list encoders`. Else the one that suits the head and has its weights here. Several "
        "joined by + are read together by the head fused: lite_medsam+imagenet_lite0.",
        names=names.ENCODERS,
        joined_by=TOGETHER,
    )
    checkpoint: str | None = option(
        None, 'The encoder\'s weights: a .pth file, a Hugging Face folder, or "random".'
    )
    side: int | None = option(
        None,
        "Side of the encoder's square input, in pixels. Else the encoder's own, and less where the slices of a segmentation are small.",
        least=1,
    )
    prepare: str | None = option(None, "Intensity and geometry preparation, if not the encoder's own.")
    encoder_precision: str = option(
        "32",
        "Precision in which a frozen encoder computes its maps: 32, or bf16 (rounded to three digits; for large encoders "
        "on a GPU).",
        choices=names.ENCODER_DTYPES,
    )
    options: Mapping[str, Any] = option(
        dict, "Options of the head; on the command line each as --set preset=faithful.", flag="--set"
    )
    views: int | None = option(
        None,
        "Stored views of each training slice, or 0: a new one in every step. Else 0 for encoders that are cheap to run "
        "(imagenet_lite0, imagenet_lite2, sam_nano), and 6.",
        least=0,
    )
    augment: str = option(
        "default", "Augmentation: none, default, or mirror (which also flips).", names=names.AUGMENTATIONS
    )

    @property
    def dtype(self) -> str:
        """The encoder's precision as torch calls it."""
        return names.ENCODER_DTYPES[self.encoder_precision]


@dataclass(frozen=True)
class SplitOptions(Checked):
    """Whose labels train, and whose choose the best step."""

    labels: int | float | None = option(
        None, "Labelled patients to use (5), or a share of them (0.25); else all."
    )
    select: int = option(
        0, "How many of the labelled patients are set aside to choose the best step.", least=0
    )
    val_labels: int | Literal["official"] | None = option(
        None, "Further labelled patients to choose the best step with (more labels!), or: official."
    )
    fold: int | Literal["all"] = option(
        0,
        "Fold that is held out for testing: of splits_final.json, else one of five by patient. `train --fold all` trains, "
        "predicts and scores every fold.",
        least=0,
    )


@dataclass(frozen=True)
class TrainConfig(Checked):
    """How long and how fast. Steps, not epochs: one labelled volume gets as many updates as ten."""

    steps: int = option(1000, "Optimiser steps of a training.", least=1)
    batch_size: int = option(8, "Slices in a step.", least=1)
    lr: float | None = option(None, "Learning rate of the head; else the head's own.", above=0)
    weight_decay: float = option(1e-2, "Weight decay of the optimiser.", least=0)
    warmup: float = option(
        0.05,
        "Share of the steps in which the learning rate rises; then it falls as a cosine.",
        least=0,
        most=1,
    )
    ema: float = option(
        0.99,
        "Decay of the averaged weights, which are the ones kept; 0 keeps the last ones.",
        least=0,
        below=1,
    )
    tune: str = option(
        "none",
        "What becomes of the encoder: none (frozen), lora (low-rank adapters are trained) or all (all of it is trained).",
        choices=names.TUNINGS,
    )
    encoder_lr: float = option(
        1e-4,
        "Learning rate of what is pretrained: a tuned encoder (ten times this for adapters), a classifier's own network.",
        above=0,
    )
    balance: bool = option(
        False, "Classification: draw the classes, or the answers to each label, equally often."
    )
    seed: int = option(
        0, "Draws the labelled patients, the head's start and the batches.", least=0, most=2**32 - 1
    )
    precision: str = option(
        "auto",
        "Precision: 32, bf16, or auto (bf16 where the device is fast at it).",
        choices=names.PRECISIONS,
    )
    device: str = option("auto", "Device to compute on: auto, cpu, cuda or mps.", names=names.DEVICES)
    workers: int = option(0, "Processes that load batches.", least=0)
    check_every: int = option(
        100, "Steps between checkpoints and, where there is selection, its scores.", least=1
    )
    devices: int = option(
        1, "Processes that share every batch, each with a device of its own (GPUs; or CPU cores).", least=1
    )
    log: tuple[str, ...] = option(
        (), "Where the losses go beside metrics.csv: tensorboard, mlflow.", choices=names.LOGS
    )

    #: Fields that change nothing of what is learned, so that a run may be resumed with others.
    UNCHANGING: ClassVar[tuple[str, ...]] = ("device", "workers", "log")

    def __post_init__(self) -> None:
        super().__post_init__()
        for package in self.log:
            if find_spec(package) is None:
                raise SamAdaptError(
                    f"--log {package} needs the package {package}, which is not installed; pip install {package}, or leave "
                    "it out (metrics.csv has the same numbers)"
                )


@dataclass(frozen=True)
class UnlabelledOptions(Checked):
    """Scans without labels that a training learns from too.

    After the training on the labels follows a second one of as many steps, in which every batch has as many unlabelled
    slices as labelled ones, with the averaged weights as their teacher (a mean teacher).
    """

    unlabelled: str | None = option(
        None,
        "Unlabelled scans to learn from too: a folder, or pool (of the data set, all that is neither labelled nor held out).",
    )
    confidence: float = option(
        0.8,
        "With --unlabelled: how likely a class must be to the averaged weights for a pixel (or an image) to be taught.",
        least=0,
        below=1,
    )


@dataclass(frozen=True)
class PredictOptions(Checked):
    """Which cases of a data set are predicted, and what is written of each.

    Without `subset` these are the cases that the run's split keeps for scoring, else all. A subset is a part of the data
    set's official split or, where it has none, of the run's.
    """

    subset: str | None = option(None, "Part of a data set: train, val, test or all.", names=names.SUBSETS)
    probabilities: bool = option(False, "Also write class probabilities (.npy).", flag="--probabilities")
    attention: bool = option(False, "Also draw where a classifier looked (.png).", flag="--attention")
    pictures: bool = option(
        False, "Also draw a contact sheet of each case (pictures/CASE.png).", flag="--pictures"
    )
    format: str | None = option(
        None,
        "Write label maps in this format; else that of the scans, NIfTI for DICOM.",
        names=names.LABEL_FORMATS,
    )
    codes: str | None = option(None, "CSV of class, value, meaning: codes of the classes in a DICOM SEG.")
    keep_largest: tuple[str, ...] = option(
        (),
        "Keep only the largest connected component of these classes: all, none, or names such as LV,RV. Else what "
        "`train --keep-largest` chose.",
    )
    flips: bool = option(
        False,
        "Average the answers over flipped slices; for runs that were trained with --augment mirror.",
        flag="--flips",
    )


@dataclass(frozen=True)
class ExportOptions(Checked):
    """What a run is exported as, and on what the export is compared with it."""

    format: str = option("onnx", "What to export: onnx, torch, hub or monai.", names=names.EXPORTS)
    check: str | None = option(
        None,
        "Scan, folder of scans or data set on which the export is compared with the run; else a generated phantom.",
    )
    parts: bool = option(
        False,
        "With --format onnx: encoder and head as two files, so that several heads can share the encoder.",
        flag="--parts",
    )
    with_encoder: bool = option(
        False,
        "With --format hub: also put the encoder's weights into the folder; look at their licence first.",
        flag="--with-encoder",
    )
    licence: str | None = option(
        None,
        "With --format hub: licence of the trained weights, for the model card: apache-2.0, cc-by-nc-4.0, ...",
    )
    push: str | None = option(
        None,
        "With --format hub: upload the folder to OWNER/NAME of the Hugging Face hub, with the token that you are logged in with.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        alone = {"parts": "onnx", "with_encoder": "hub", "licence": "hub", "push": "hub"}
        for name, format in alone.items():
            if getattr(self, name) and self.format != format:
                raise SamAdaptError(
                    f"--{name.replace('_', '-')} is for the format {format}, and the format is {self.format!r}; leave it out, or give "
                    f"--format {format}"
                )


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


#: The tables of a study's file and the settings in each; what stands above the tables has no name.
TABLES: dict[str, Declarations] = {
    "": {
        **declared(StudySettings),
        "select": declared(SplitOptions)["select"],
        "fold": dataclasses.replace(declared(SplitOptions)["fold"], kind=int),  # one of a study's settings
    },
    "encoder": declared(LearnerSettings),
    "train": without(declared(TrainConfig), "seed", "devices"),
    "simclr": declared(SimclrConfig),
    "nnunet": declared(NnUNetConfig),
}
