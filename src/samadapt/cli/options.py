"""The options that verbs share, and what they are turned into. Heavy imports wait until a verb runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from samadapt import names
from samadapt.records import SamAdaptError

if TYPE_CHECKING:
    from samadapt.datasets import Dataset
    from samadapt.learner import Learner

Data = Annotated[
    Path,
    typer.Argument(help="Data set: nnU-Net raw, MSD, images/ + masks/, class folders, CSV, MedMNIST npz."),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where the result goes.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is in the output folder.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")]
Head = Annotated[str, typer.Option(help="See `samadapt list heads`.")]
EncoderName = Annotated[
    str | None,
    typer.Option(
        "--encoder",
        help="See `samadapt list encoders`; else the one that suits the head and has its weights here.",
    ),
]
Checkpoint = Annotated[
    str | None, typer.Option(help='The encoder\'s weights: a .pth file, a Hugging Face folder, or "random".')
]
Side = Annotated[int | None, typer.Option(help="Side of the encoder's square input, in pixels.")]
Prepare = Annotated[
    str | None, typer.Option(help="Intensity and geometry preparation, if not the encoder's own.")
]
Options = Annotated[
    list[str] | None, typer.Option("--set", help="Option of the head: --set preset=faithful.")
]
Views = Annotated[
    int | None,
    typer.Option(
        help="Stored views of each training slice, or 0: a new one in every step. Else 0 for encoders that are cheap to run "
        "(imagenet_lite0, imagenet_lite2, sam_nano), and 6."
    ),
]
Augment = Annotated[str, typer.Option(help="none, default, mirror (also flips).")]
Store = Annotated[Path, typer.Option(help="Folder of feature maps.")]
SliceAxis = Annotated[
    int | None, typer.Option(help="File axis to slice along; else the one of the largest spacing.")
]
Group = Annotated[
    str | None, typer.Option(help="Patient of a case: a regular expression with one group, or a CSV file.")
]
Task = Annotated[
    str | None, typer.Option(help="segmentation or classification, where a data set has labels for both.")
]
LabelColumn = Annotated[
    str | None, typer.Option(help="Of the label table; several (a,b) are one number for each class.")
]
Window = Annotated[str | None, typer.Option(help="Intensities shown: percentile, ct, none, or LOW,HIGH.")]
Channels = Annotated[str | None, typer.Option(help="Image channels to use: 0 or 0,1,2.")]
Seed = Annotated[int, typer.Option(help="Draws the labelled patients, the head's start and the batches.")]


@dataclasses.dataclass(frozen=True)
class OpenOptions:
    """How a data set is opened. What can be refused without looking at it is refused when this is made."""

    task: str | None
    slice_axis: int | None
    group: str | None
    channels: str | None
    label_column: str | None
    window: str | None = None
    head: str | None = None  # whose task is taken where a data set has labels for both

    def __post_init__(self) -> None:
        names.demand_known(task=self.task)
        if self.slice_axis not in (None, 0, 1, 2):
            raise SamAdaptError(f"--slice-axis is {self.slice_axis}; expected 0, 1 or 2: an axis of the file")

    def open(self, path: Path) -> Dataset:
        from samadapt.datasets import open_dataset
        from samadapt.transforms import Window

        if self.window is not None:
            Window.parse(self.window)
        channels = (
            None
            if self.channels is None
            else [int(c) if c.isdigit() else c for c in self.channels.split(",")]
        )
        data = open_dataset(
            path, task=self.task, slice_axis=self.slice_axis, group=self.group, channels=channels,  # type: ignore[arg-type]
            label_column=self.label_column, prefer="classification" if self.head in names.CLASSIFICATION_HEADS else None,
        )  # fmt: skip
        return data if self.window is None else data.with_window(self.window)


def make_learner(
    head: str, encoder: str | None, checkpoint: str | None, side: int | None, prepare: str | None, options: list[str] | None,
    views: int | None, augment: str,
) -> Learner:  # fmt: skip
    """The learner of these options; names are checked before torch is loaded, the head's options before any data."""
    names.demand_known(head=head, encoder=encoder, augment=augment)
    names.demand_numbers(1, side=side)
    names.demand_numbers(0, views=views)
    from samadapt.heads import check_options
    from samadapt.learner import Learner, parse_options

    chosen = parse_options(options or [])
    check_options(head, chosen)
    return Learner(head, encoder or "", checkpoint, side, prepare, chosen, views, augment)


def choice_note(named: str | None, chosen: Learner) -> str | None:
    """Says which encoder is read where the user named none; None where there is nothing to say."""
    from samadapt.heads import HEADS
    from samadapt.learner import default_note

    return None if named or not HEADS[chosen.head].uses_encoder else default_note(chosen.encoder, chosen.head)


def live_note(chosen: Learner) -> str | None:
    """Says that `train` will not read what is stored, where that is so."""
    from samadapt.learner import STORED_VIEWS

    if chosen.views:
        return None
    return (
        f"{STORED_VIEWS} views of each slice are stored; `samadapt train` reads them with --views {STORED_VIEWS}, and otherwise "
        f"runs {chosen.encoder} on a new view in every step"
    )


def check_device(device: str) -> None:
    """Refuse a device that is not there, before any data is looked at."""
    names.demand_known(device=device)
    from samadapt.runs import pick_device

    pick_device(device)


def number(text: str | None, option: str, *words: str, whole: bool = False) -> Any:
    """ "5" -> 5, "0.25" -> 0.25, a word that the option knows as it is."""
    if text is None or text in words:
        return text
    known = "".join(f", or {word}" for word in words)
    try:
        value = int(text) if text.lstrip("-").isdigit() else float(text)
    except ValueError:
        value = None
    if value is None or value != value or (whole and not isinstance(value, int)):
        raise SamAdaptError(f"--{option} is {text!r}; expected a {'whole ' if whole else ''}number{known}")
    return value


def merge(settings: dict[str, Any], options: dict[str, Any]) -> None:
    """What was typed goes before what the file says."""
    settings |= {key: value for key, value in options.items() if value is not None}
