"""How a data set is opened, and what a training is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar, Literal

from samadapt import names
from samadapt.options import Checked, option
from samadapt.records import TOGETHER, SamAdaptError


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

    slices: int = option(
        1,
        "Slices that the encoder is shown at once: 1, or 3: a grey slice with its two neighbours, as the colours of one picture.",
        choices=(1, 3),
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
class FinishOptions(Checked):
    """What `samadapt train` does beside training one head."""

    heads_ensemble: int = option(
        1,
        "How many heads to train on the same cases, which then answer together; see `predict --abstain`.",
        least=1,
    )
    keep_largest: bool = option(
        False,
        "Choose on the selection cases (--select) of which classes predictions keep the largest connected component.",
        flag="--keep-largest",
    )
    smooth_slices: bool = option(
        False,
        "Choose on the selection cases (--select) whether, and how far, predictions are smoothed over neighbouring slices.",
        flag="--smooth-slices",
    )
    calibrate: bool = option(
        False,
        "Calibrate the probabilities on the selection cases (--select) and, for a classifier, give sets of classes that hold "
        "the right one in 90 % of cases.",
        flag="--calibrate",
    )
