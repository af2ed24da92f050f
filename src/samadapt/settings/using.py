"""What is done with a trained model."""

from __future__ import annotations

from dataclasses import dataclass

from samadapt import names
from samadapt.options import Checked, option
from samadapt.records import SamAdaptError


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
    smooth_slices: float | None = option(
        None,
        "Average the probabilities over neighbouring slices, by a Gaussian of this standard deviation in slices: 1, or 0 for none. "
        "For thin slices. Else what `train --smooth-slices` chose.",
        least=0,
        most=10,
    )
    flips: bool = option(
        False,
        "Average the answers over flipped slices; for runs that were trained with --augment mirror.",
        flag="--flips",
    )
    abstain: float | None = option(
        None,
        "Mark the cases (in agreement.csv) on which the heads of `train --heads-ensemble` agree less than this: mean Dice of "
        "their label maps.",
        least=0,
        most=1,
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
class SuggestOptions(Checked):
    """How many patients are suggested for labelling, and how they are chosen."""

    k: int = option(5, "How many patients to suggest.", least=1, flag="-k")
    strategy: str | None = option(
        None,
        "How to choose: random, uncertainty, coverage, typical, or both (uncertainty and coverage). Else both, and typical "
        "where there is no RUN.",
        names=names.STRATEGIES,
    )
    seed: int = option(0, "Draws what is drawn, and settles ties.", least=0, most=2**32 - 1)
    labelled: str | None = option(
        None,
        "Data set that RUN was trained on, where POOL is another folder: new patients are to differ from those labelled there.",
    )
