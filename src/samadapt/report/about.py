"""What a reader needs beside the numbers: the words, the data, the contents of the page, and where the files are."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np

from samadapt.report.reading import CellResults, StudyResults, labels_text
from samadapt.report.tables import ReportTable

#: What is said of every study, and of studies with this word in a method's name, role or head.
GLOSSARY: tuple[tuple[str, str, str], ...] = (
    ("method", "", "What is compared: a head on an encoder, a network trained from scratch, or a control, with its settings."),
    ("encoder", "", "The network that turns a slice into feature maps. It is frozen (its weights are not changed) unless the method tunes it."),
    ("head", "", "The small network that is trained on the few labels and reads the encoder's feature maps."),
    ("tap", "", "A place in the encoder whose feature map a head can read, such as the end of a stage or the neck."),
    ("view", "", "A slice as it was augmented once (turned, scaled, brightened). Frozen methods read stored views, or a new one in every step."),
    ("draw, seed", "", "One random choice of the labelled {unit}s together with one training. Every method is given the same {unit}s in the same draw."),
    ("run", "", "One method with one number of labelled {unit}s and one seed."),
    ("baseline", "baseline", "A method without a foundation model that has to be beaten, such as a U-Net from scratch."),
    ("control", "control", "A baseline that nobody would use for its own sake, such as an encoder with random weights: it shows what the pretrained maps are worth."),
    ("ground-truth prompt", "oracle", "A method that is given boxes or points made from the ground truth. It is shown for orientation, and is never compared."),
    ("fused", "fused", "A head that reads feature maps of several resolutions and the pixels, and merges them from coarse to fine."),
    ("linear", "linear", "A head of one linear layer for each position of the feature map."),
    ("cnn", "cnn", "A head of a few convolutions that enlarge the encoder's last feature map."),
    ("autosam", "autosam", "SAM's mask decoder, trained without prompts."),
    ("U-Net", "unet", "A convolutional network with skip connections. Unless it is said otherwise, it starts from random weights."),
    ("SimCLR", "simclr", "A pre-training of the U-Net's contracting path on unlabelled slices: views of one slice are to be alike."),
    ("nnU-Net", "nnunet", "A U-Net that configures itself, run with its own training."),
    ("SLCA", "slca", "A classifier with spatial gates that are made from SAM's features."),
    ("Dice", "dsc", "Twice the overlap of prediction and ground truth over the sum of their sizes: 1 is equal, 0 is no overlap."),
    ("HD95", "hd95", "Hausdorff distance, 95th percentile: the 95th percentile of the distances between the two surfaces: 0 is equal, lower is better. A missed structure has none."),
    ("NSD", "nsd", "Normalised surface Dice: the share of both surfaces that lies within a tolerance of the other, higher is better."),
    ("AUC", "auc", "The probability that a case of the class is ranked above one that is not: 0.5 is chance, 1 is perfect."),
    ("95 % confidence interval", "", "The range of means that are compatible with the results, had other {unit}s been scored and other {unit}s been labelled."),
    ("Holm's correction", "", "Makes p values larger where several methods are compared, because the best of many looks good by chance."),
)  # fmt: skip


def glossary(study: StudyResults) -> list[tuple[str, str]]:
    """The words that this study uses."""
    used = {study.leading_metric, *study.metrics}
    for name, of in study.learners.items():
        spec = study.note["learners"][name].get("spec", {})
        used |= {name, of.role, str(spec.get("head", "")), str(spec.get("kind", ""))}
    words = " ".join(used)
    return [(term, text.format(unit=study.unit)) for term, key, text in GLOSSARY if key in words]


@dataclass(frozen=True)
class Chapter:
    """A heading of the page."""

    anchor: str
    title: str


_HEADING = re.compile(r'<h2 id="([\w-]+)">(.*?)</h2>')


def chapters(page: str) -> list[Chapter]:
    """The headings of a page, for its table of contents."""
    return [Chapter(anchor, title) for anchor, title in _HEADING.findall(page)]


# ---------------------------------------------------------------- the data


def data_facts(study: StudyResults) -> list[tuple[str, str]]:
    """The data set in a few lines."""
    data, patients = study.note["data"], len(set(study.groups))
    kept = f"{len(study.cases)} cases" + (f" of {patients} patients" if study.unit == "patient" else "")
    classes = [str(name) for name in data["classes"]]
    draws = {level: len({s for n in study.learners for s in study.seeds(n, level)}) for level in study.levels}
    labelled = [f"{level.text} ({n} draw{'s' * (n != 1)})" for level, n in draws.items()]
    return [
        ("data set", f"{data['name']}, {data.get('cases', '?')} cases, {data['task']}"),
        ("classes", ", ".join(classes)),
        ("patients", str(data.get("group_rule", ""))),
        ("held out for testing", f"{kept}, the same for every method and draw"),
        (f"labelled {study.unit}s", ", ".join(labelled) or "none"),
        ("intensities", {"percentile": "window of percentiles of each image", "none": "as stored"}.get(data.get("window"), str(data.get("window", "?")))),
    ]  # fmt: skip


def data_table(study: StudyResults) -> ReportTable:
    """In how many of the test cases each class is."""
    cell = study.done[0]
    if study.classification:
        present = study.values(cell, "truth") > 0
        counts = [(target, str(int(n))) for target, n in zip(study.targets, present.sum(0), strict=True)]
        return ReportTable(("class", "test cases"), tuple(counts), caption="Test cases of each class")
    defined = np.array([(~np.isnan(study.values(c, study.leading_metric))).sum(0) for c in study.done])
    # A class that is absent is scored only where a method predicted it, so that the fewest scores are the cases that have it.
    rows = [(target, str(int(n))) for target, n in zip(study.targets, defined.min(0), strict=True)]
    caption = f"Test cases with each class, of {len(study.cases)}"
    return ReportTable(("class", "test cases"), tuple(rows), caption=caption)


# ---------------------------------------------------------------- files


@dataclass(frozen=True)
class RunFiles:
    """Where the files of a run are, as links from the page."""

    title: str
    folder: str
    predictions: str  # "" where the run kept none


def run_files(study: StudyResults, out: Path) -> list[RunFiles]:
    """Of every finished run."""
    return [
        RunFiles(
            f"{study.learners[c.learner].title}, {_labels(study, c)}, seed {c.seed}",
            _link(study.folder / c.digest, out),
            next((_link(p, out) for p in _prediction_folders(study.folder / c.digest)), ""),
        )
        for c in study.done
    ]


def _labels(study: StudyResults, cell: CellResults) -> str:
    return f"{labels_text(cell.labels)} labelled" if study.learners[cell.learner].learns else "no labels"


def _prediction_folders(place: Path) -> Sequence[Path]:
    return sorted(p for p in place.rglob("predictions") if p.is_dir() and any(p.iterdir()))


def prediction_link(study: StudyResults, cell: CellResults, case: str, out: Path) -> str:
    """The label map of a case, where the run kept one; else ""."""
    for folder in _prediction_folders(study.folder / cell.digest):
        for file in sorted(folder.iterdir()):
            if file.name.startswith(f"{case}."):  # a name may have dots itself
                return _link(file, out)
    return ""


def _link(target: Path, out: Path) -> str:
    """Relative, so that the folder of the study can be moved."""
    return quote(Path(os.path.relpath(target, out)).as_posix())
