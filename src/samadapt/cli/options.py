"""The options that verbs share, and what they are turned into. Heavy imports wait until a verb runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from samadapt import names
from samadapt.cli.parameters import Of
from samadapt.cli.results import command
from samadapt.options import Option
from samadapt.records import TOGETHER
from samadapt.settings import LearnerSettings, OpenOptions, RayOptions, TrainConfig

if TYPE_CHECKING:
    from samadapt.cluster import Cluster
    from samadapt.datasets import Dataset
    from samadapt.learner import Learner

#: How a data set is opened, as far as it changes what `check` finds.
CHECKED = (
    *("slice_axis", "group", "task", "label_column", "channels", "structures", "modality"),
    "allow_outside",
)
Data = Annotated[
    Path,
    typer.Argument(
        help="Data set: nnU-Net raw, MSD, DICOM, images/ + masks/, class folders, CSV, MedMNIST npz."
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Where the result goes.")]
Store = Annotated[Path, Option("Folder of feature maps.")]
Device = Annotated[str, Of(TrainConfig)]
Overwrite = Annotated[bool, Option("Replace what is in the output folder.", flag="--overwrite")]
SeenBy = Annotated[
    str | None,
    Option(
        "Also say what the training of this encoder has seen of the data.",
        names=names.ENCODERS,
        joined_by=TOGETHER,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")]


def open_data(path: Path, options: OpenOptions, head: str = "") -> Dataset:
    """The data set, as asked for.

    Args:
        head: whose task is taken where a data set has labels for both; "": none.
    """
    from samadapt.datasets import open_dataset
    from samadapt.transforms import Window

    if options.window is not None:
        Window.parse(options.window)
    data = open_dataset(
        path, task=options.task, slice_axis=options.slice_axis, group=options.group, channels=options.channels,  # type: ignore[arg-type]
        label_column=options.label_column, prefer="classification" if names.HEADS.get(head) == "classification" else None,
        structures=options.structures, modality=options.modality, anonymous=options.anonymous,
        allow_outside=options.allow_outside,
    )  # fmt: skip
    return data if options.window is None else data.with_window(options.window)


def make_learner(settings: LearnerSettings) -> Learner:
    """The learner of what was typed; the head's options are checked before any data is looked at."""
    from samadapt.heads import read_options
    from samadapt.learner import Learner

    options = read_options(settings.head, settings.options)
    return Learner(**vars(settings) | {"options": options})


def choice_note(named: str, chosen: Learner) -> str | None:
    """Says which encoder is read where the user named none; None where there is nothing to say."""
    from samadapt.heads import HEADS
    from samadapt.learner import default_note

    return None if named or not HEADS[chosen.head].uses_encoder else default_note(chosen.encoder, chosen.head)


def suited(chosen: Learner, data: Dataset, quiet: bool) -> Learner:
    """The learner with the side that suits the slices, which is said, as is whether there are neighbours to be shown."""
    from samadapt.cli.terminal import say
    from samadapt.learner import side_note

    fitting = chosen.suited_to(data)
    say(side_note(chosen, fitting), quiet)
    if chosen.slices > 1 and all(data.depth(case) == 1 for case in data.ids[:20]):
        say(
            "note: these cases have a single slice each, so --slices 3 shows it three times; --slices 1 is the same",
            quiet,
        )
    return fitting


def live_note(chosen: Learner) -> str | None:
    """Says that `train` will not read what is stored, where that is so."""
    from samadapt.learner import STORED_VIEWS

    if chosen.views:
        return None
    return (
        f"{STORED_VIEWS} views of each slice are stored; `samadapt train` reads them with --views {STORED_VIEWS}, and otherwise "
        f"runs {chosen.encoder} on a new view in every step"
    )


def after_prediction(out: Path, inputs: Path, labelled: bool, pictures: bool) -> str:
    """What to do with predictions: score them where there may be labels, else look at them."""
    if labelled:
        return command("evaluate", out, inputs, "--pictures")
    looked = f"look at {out / 'pictures'}, or load" if pictures else "load"
    return f"{looked} a prediction over its scan in 3D Slicer or ITK-SNAP; {command('evaluate', out, 'LABELS')} where you have labels"


def after_evaluation(run: Path | None) -> str:
    """What to do with scores whose pictures were drawn.

    Args:
        run: where they were recorded too, if anywhere.
    """
    compared = command("experiment", "DATA", "--quick", "--out", "experiments/quick")
    seen = command("info", run) if run else "look at the pictures, the worst case first"
    return f"{seen}; {compared} shows what a U-Net gives with as many labels"


def abstained_note(cases: list[str]) -> str:
    """Which cases are marked, for the end of the line that counts all of them."""
    if not cases:
        return ""
    few = ", ".join(cases[:5]) + (f" and {len(cases) - 5} more" if len(cases) > 5 else "")
    return f"; the heads agree too little on {len(cases)} of them (agreement.csv): look at {few} before you use them"


@contextmanager
def on_cluster(options: RayOptions, device: str, quiet: bool) -> Iterator[Cluster | None]:
    """The Ray cluster that was asked for, while the block runs; without one, None and a device that is here."""
    if options.ray is None:
        check_device(device)
        yield None
        return
    from samadapt.cli.terminal import say
    from samadapt.cluster import connect

    with connect(options.ray, device) as cluster:
        say(cluster.description, quiet)
        yield cluster
        say(cluster.note(), quiet)


def check_device(device: str) -> None:
    """Refuse a device that is not there, before any data is looked at."""
    from samadapt.runs import pick_device

    pick_device(device)
