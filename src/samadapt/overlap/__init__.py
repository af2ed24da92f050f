"""Which public data the training of each encoder has seen, and whether a data set at hand is one of them.

A score on pictures that an encoder was trained on is too good to be told without a mark. Nobody publishes such a table,
so it stands here, each row with its source and with how certain it is. No torch: reports read it too.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Protocol

from samadapt.records import SamAdaptError

#: "seen": in the list of its training files; "not seen": not in it, or made later.
Certainty = Literal["seen", "probably seen", "possibly seen", "not seen"]

# ---------------------------------------------------------------- public data


@dataclass(frozen=True)
class PublicData:
    """A public data set, and how it is told from its name and from the names of its cases.

    Args:
        title: as people call it.
        name: a pattern that is looked for in the names of the data set: its own, its folder's, its description.
        case: a pattern that whole names of its cases match; "" where they have no names of their own.
    """

    title: str
    name: str
    case: str = ""

    def is_called(self, text: str) -> bool:
        return re.search(rf"(?<![a-z])(?:{self.name})(?![a-z])", text.lower()) is not None

    def has(self, case: str) -> bool:
        return bool(self.case) and re.fullmatch(self.case, case) is not None


PUBLIC_DATA: dict[str, PublicData] = {
    "acdc": PublicData("ACDC", r"acdc|automated cardiac diagnosis", r"patient\d{3}_(frame\d{2}|4d)(_\w+)?"),
    "amos": PublicData("AMOS", r"amos(22)?", r"amos_\d{4}"),
    "brats": PublicData("BraTS", r"brats(\d{2,4})?|msd brain|braintumou?r", r"BraTS[-_\w]*\d{3,5}"),
    "busi": PublicData("BUSI", r"busi|breastmnist|dataset_busi\w*", r"(benign|malignant|normal) \(\d+\)"),
    "hippocampus": PublicData("MSD Hippocampus", r"hippocampus", r"hippocampus_\d{3}"),
    "isic": PublicData("ISIC 2016-2018", r"isic(\d{4})?|ham10000", r"ISIC_\d{7}"),
    "kvasir": PublicData("Kvasir-SEG", r"kvasir\w*"),
    "retinamnist": PublicData("RetinaMNIST (DeepDRiD)", r"retinamnist|deepdrid"),
    "totalsegmentator": PublicData("TotalSegmentator", r"totalseg(mentator)?\w*", r"s\d{4}"),
    "usgra": PublicData("USGRA (2025)", r"usgra"),
}
_SHARE = 0.5  # of the cases must bear the names of a public data set


def recognise(names: Iterable[str], cases: Sequence[str]) -> list[str]:
    """Keys of `PUBLIC_DATA` that a data set is, by its names or by those of most of its cases."""
    names = [name for name in names if name]
    return [
        key
        for key, data in PUBLIC_DATA.items()
        if any(data.is_called(name) for name in names)
        or (cases and sum(data.has(case) for case in cases) >= _SHARE * len(cases))
    ]


# ---------------------------------------------------------------- what the encoders saw


@dataclass(frozen=True)
class Saw:
    """What a training is known, or thought, to have seen of one public data set.

    Args:
        certainty: how sure that is.
        why: one sentence.
        source: who says so.
        list_of_cases: a file beside this one with the numbers of the cases that were seen, where that is known.
    """

    certainty: Certainty
    why: str
    source: str
    list_of_cases: str = ""

    def cases(self) -> frozenset[str] | None:
        """Numbers of the cases that were seen; None: taken for all."""
        return _numbers(self.list_of_cases) if self.list_of_cases else None


@cache
def _numbers(file: str) -> frozenset[str]:
    return frozenset(files("samadapt.overlap").joinpath(file).read_text(encoding="ascii").split())


@dataclass(frozen=True)
class Training:
    """What an encoder was trained on: in words, and data set by data set."""

    text: str
    saw: Mapping[str, Saw] = field(default_factory=dict)
    medical: bool = False  # data sets that are not named here may be in it too


_LIST = (
    "file list of the CVPR 2024 challenge's training set (automl/CVPR24-MedSAM-on-Laptop, branch finalsubmission, "
    "train.csv and val.csv), which bowang-lab/MedSAM issue 255 names"
)
_LISTED = "its training files list this data set"
_TEACHER = "its training set is not published file by file, and its authors' issues 175 and 176 speak of it"

_LITE_MEDSAM = Training(
    "medical pictures of the CVPR 2024 challenge (about 107,000 files), taught by MedSAM; not said with certainty",
    {
        "acdc": Saw(
            "probably seen",
            "the list has no ACDC, but with exact boxes it draws RV and LV closer to these labels than two readers agree "
            "on, and its teacher may have seen them",
            "measured by samadapt's authors (benchmarks/README.md); bowang-lab/MedSAM issues 175 and 176",
        ),
        "amos": Saw("seen", _LISTED, _LIST),
        "brats": Saw("seen", _LISTED, _LIST),
        "busi": Saw("seen", "its training files list all 647 pictures with a lesion, with their masks", _LIST),
        "isic": Saw("seen", "its training files list 3,694 of these pictures", _LIST, "isic_of_lite_medsam.txt"),
        "kvasir": Saw("seen", _LISTED, _LIST),
        "totalsegmentator": Saw("seen", _LISTED, _LIST),
        "hippocampus": Saw("not seen", "the list does not name it", _LIST),
        "retinamnist": Saw("not seen", "the list does not name it", _LIST),
        "usgra": Saw("not seen", "the pictures were acquired later, in 2025", "tmkand/usgra-seg"),
    },
    medical=True,
)  # fmt: skip
_MEDSAM = Training(
    "1.5 million medical pictures with masks from public data sets (Ma et al. 2024)",
    {
        "acdc": Saw("possibly seen", _TEACHER, "bowang-lab/MedSAM issues 175 and 176"),
        "busi": Saw("possibly seen", "it is one of the public sets of that collection", "Ma et al. 2024"),
        "isic": Saw("possibly seen", "it is one of the public sets of that collection", "Ma et al. 2024"),
        "hippocampus": Saw("not seen", "MedSAM's supplement does not name it", "Ma et al. 2024"),
        "usgra": Saw("not seen", "the pictures were acquired later, in 2025", "tmkand/usgra-seg"),
    },
    medical=True,
)
_SA_1B = Training("SA-1B: 11 million natural pictures with masks, nothing medical (Kirillov et al. 2023)")
_SA_V = Training(
    "SA-1B, SA-V and videos that are not published: natural pictures and videos with masks; no medical data set is named "
    "(Ravi et al. 2024)"
)
_LVD_1689M = Training(
    "LVD-1689M: 1.7 billion pictures of the web without labels or masks; no medical data set is named "
    "(Siméoni et al. 2025)"
)
_IMAGENET = Training("ImageNet: natural pictures with class names, no masks, nothing medical")

TRAININGS: dict[str, Training] = {
    "dinov3_vitb16": _LVD_1689M,
    "dinov3_vits16": _LVD_1689M,
    "imagenet_lite0": _IMAGENET,
    "imagenet_lite2": _IMAGENET,
    "lite_medsam": _LITE_MEDSAM,
    "medsam_vit_b": _MEDSAM,
    "mobile_sam": _SA_1B,
    "pixels": Training("nothing: it has no weights"),
    "sam2_base_plus": _SA_V,
    "sam2_small": _SA_V,
    "sam2_tiny": _SA_V,
    "sam_nano": Training("synthetic pictures only (pretraining/README.md)"),
    "sam_vit_b": _SA_1B,
    "sam_vit_h": _SA_1B,
    "sam_vit_l": _SA_1B,
}


def training_of(encoder: str) -> Training:
    """The row of an encoder."""
    if encoder not in TRAININGS:
        raise SamAdaptError(
            f"nothing is known of what encoder {encoder!r} was trained on; add a row to TRAININGS"
        )
    return TRAININGS[encoder]


# ---------------------------------------------------------------- both together


@dataclass(frozen=True)
class Overlap:
    """One data set at hand and the training of one encoder."""

    encoder: str
    data: str  # the public data set's title
    certainty: Certainty
    why: str
    source: str
    seen: tuple[str, ...] | None = None  # of the cases that were asked about; None: all may be
    asked: int = 0  # how many cases that were

    @property
    def warns(self) -> bool:
        return self.certainty != "not seen" and self.seen != ()

    @property
    def text(self) -> str:
        """One sentence for a reader of the scores."""
        count = "" if self.seen is None else f" ({len(self.seen)} of these {self.asked} cases)"
        return (
            f"the training of encoder {self.encoder} has {self.certainty} {self.data}{count}: {self.why} "
            f"[{self.source}]"
        )

    def to_json(self) -> dict[str, Any]:
        """For experiment.json and a run's files."""
        return {
            "encoder": self.encoder, "data": self.data, "certainty": self.certainty, "why": self.why,
            "source": self.source, "seen": None if self.seen is None else list(self.seen), "asked": self.asked,
        }  # fmt: skip

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Overlap:
        """The inverse of `to_json`."""
        seen = content["seen"]
        return Overlap(**{**content, "seen": None if seen is None else tuple(seen)})


def overlaps(encoder: str, names: Iterable[str], cases: Sequence[str]) -> list[Overlap]:
    """What the training of this encoder saw of this data set; empty where nothing is known of either.

    Args:
        names: of the data set, its folder, its description.
        cases: names of the cases that matter, for example those that are scored.
    """
    known_of = TRAININGS[encoder].saw if encoder in TRAININGS else {}  # one's own encoder has no row
    found = []
    for key in recognise(names, cases):
        saw = known_of.get(key)
        if saw is not None:
            numbers = saw.cases()
            known = numbers is not None and any(PUBLIC_DATA[key].has(case) for case in cases)
            seen = tuple(c for c in cases if _number(c) in numbers) if known and numbers is not None else None
            found.append(
                Overlap(encoder, PUBLIC_DATA[key].title, saw.certainty, saw.why, saw.source, seen, len(cases))
            )
    return found


class Named(Protocol):
    """What is needed of a data set to recognise it."""

    @property
    def name(self) -> str: ...
    @property
    def root(self) -> Path: ...
    @property
    def ids(self) -> Sequence[str]: ...


def overlaps_of(encoder: str, data: Named, cases: Sequence[str] | None = None) -> list[Overlap]:
    """As `overlaps`, for an opened data set; its `dataset.json` may say what it is.

    Args:
        cases: of the data set, those that matter; None: all.
    """
    about: Any = {}
    with contextlib.suppress(OSError, ValueError):  # it is no folder, or says nothing
        about = json.loads((data.root / "dataset.json").read_text(encoding="utf-8"))
    told = [about.get(key) for key in ("name", "description", "reference")] if isinstance(about, dict) else []
    names = [data.name, data.root.name, *(text for text in told if isinstance(text, str))]
    return overlaps(encoder, names, data.ids if cases is None else cases)


def _number(case: str) -> str:
    return "".join(re.findall(r"\d", case))
