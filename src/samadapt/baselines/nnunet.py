"""nnU-Net v2 through its own commands, which may live in an environment of their own; see docs/baselines.md.

<work>/nnunet.log                                     # all that the commands said
<work>/raw/Dataset001_cell/{imagesTr,labelsTr,imagesTs,dataset.json}   # the cell's labelled cases, and no other labels
<work>/preprocessed/Dataset001_cell/{splits_final.json,nnUNetPlans.json}
<work>/results/                                       # its weights
<work>/predictions/<case>.nii.gz
"""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from samadapt import io
from samadapt.datasets import Dataset, Split
from samadapt.files import open_log, replacing, write_json
from samadapt.settings import CONFIGURATIONS, NnUNetConfig
from samadapt.types import IGNORED, Case, SamAdaptError

COMMANDS = ("nnUNetv2_plan_and_preprocess", "nnUNetv2_train", "nnUNetv2_predict")
STEPS_PER_EPOCH = 250
#: What nnU-Net's checkpoints hold beside tensors and plain Python values.
_NUMPY: list[Any] = [
    np.float64(0).__reduce__()[0],
    np.dtype,
    *{type(np.dtype(f"f{size}")) for size in (2, 4, 8)},
]
_ID, _NAME, _PLANS = "1", "Dataset001_cell", "nnUNetPlans"
#: What nnU-Net itself gives pictures along the axis that they do not have.
_NO_DEPTH_MM = 999.0


def find_commands(folder: str | None) -> dict[str, Path]:
    """nnU-Net's commands, in a folder or on the PATH."""
    place = os.environ.get("PATH", "") if folder is None else str(Path(folder).expanduser())
    found = {name: shutil.which(name, path=place) for name in COMMANDS}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        where = "on the PATH" if folder is None else f"in {folder}"
        raise SamAdaptError(
            f"nnU-Net's command {missing[0]} is not {where}; install it into an environment of its own "
            "(python -m venv nnunet-env; nnunet-env/bin/pip install nnunetv2) and name that environment's folder of "
            "commands (--nnunet-bin nnunet-env/bin)"
        )
    return {name: Path(path).absolute() for name, path in found.items() if path is not None}


def installed_version(command: Path) -> str:
    """Of the package beside a command, without starting its Python."""
    found = sorted(command.parent.parent.glob("[Ll]ib*/**/site-packages/nnunetv2-*.dist-info"))
    return found[0].name.removesuffix(".dist-info").split("-")[1] if found else "unknown"


# ---------------------------------------------------------------- our cases as its files


def write_raw(folder: Path, data: Dataset, split: Split) -> None:
    """A raw data set that holds the labels of the cell's labelled cases, and the images of the scored ones."""
    ignored = False
    for case_id in (*split.train, *split.select):
        case = data.case(case_id)
        assert case.label is not None  # a split's labelled cases have labels
        label = case.label.numpy()
        ignored |= bool((label == IGNORED).any())
        label = np.where(label == IGNORED, len(data.classes), label).astype(np.uint8)
        _write_image(folder / "imagesTr", case)
        _write(folder / "labelsTr" / f"{case_id}.nii.gz", label, as_volume(case))
    for case_id in split.val:
        _write_image(folder / "imagesTs", data.case(case_id))
    labels = {name: number for number, name in enumerate(data.classes)}
    if ignored:  # nnU-Net wants it to be the last number
        labels["ignore"] = len(data.classes)
    names = [data.channel_names[c] for c in data.channels] if data.channels else list(data.channel_names)
    about = {
        "channel_names": {str(number): name for number, name in enumerate(names)},
        "labels": labels,
        "numTraining": len(split.train) + len(split.select),
        "file_ending": ".nii.gz",
    }
    write_json(folder / "dataset.json", about)


def _write_image(folder: Path, case: Case) -> None:
    for number, channel in enumerate(case.image.numpy()):
        _write(folder / f"{case.id}_{number:04d}.nii.gz", channel, as_volume(case))


def _write(path: Path, array: np.ndarray, case: Case) -> None:
    """(D, H, W) in the file's own index order, image and label with one kind of header."""
    assert case.affine is not None
    io.write_volume(path, io.to_file_axes(array, case), case.affine)


def as_volume(case: Case) -> Case:
    """A picture as the volume of one slice that nnU-Net gets in its place; a volume as it is."""
    if case.affine is not None:
        return case
    return dataclasses.replace(case, affine=np.diag([1.0, 1.0, _NO_DEPTH_MM, 1.0]), source=None, format=None)


# ---------------------------------------------------------------- running it


@dataclass
class NnUNet:
    """One cell's nnU-Net: `fit`, then `predict` case by case (all are predicted with the first).

    Args:
        work: its folder; begun anew by `fit`.
        device: "cpu", "cuda" or "mps".
        threads: of each of its processes; on a CPU its training takes all cores, whatever one tells it.
    """

    config: NnUNetConfig
    work: Path
    device: str = "cpu"
    threads: int = 1
    configuration: str = field(default="", init=False)  # as planned

    def fit(self, data: Dataset, split: Split) -> dict[str, Any]:
        """Train on the split's labelled cases; returns notes for the table of costs."""
        self._commands = find_commands(self.config.bin)
        shutil.rmtree(self.work, ignore_errors=True)
        write_raw(self.work / "raw" / _NAME, data, split)
        slowly = ["-npfp", "1", "-np", "1", "1"]
        self._run("nnUNetv2_plan_and_preprocess", "-d", _ID, "-c", *CONFIGURATIONS, *slowly)
        preprocessed = self.work / "preprocessed" / _NAME
        plan = self._read_plans(preprocessed / f"{_PLANS}.json")
        # nnU-Net will not do without validation cases; without ours it looks at the training cases again.
        # It keeps the last weights in either case.
        folds = [{"train": list(split.train), "val": list(split.select or split.train)}]
        write_json(preprocessed / "splits_final.json", folds)
        trainer = self.config.trainer
        how = ["-tr", trainer, "-p", _PLANS, "-device", self.device]
        self._run("nnUNetv2_train", _ID, self.configuration, "0", *how)
        for unused in self.work.glob("results/**/checkpoint_best.pth"):
            unused.unlink()
        return {
            "steps": self.config.epochs * STEPS_PER_EPOCH,
            "epochs": self.config.epochs,
            "trainer": trainer,
            "configuration": self.configuration,
            "batch_size": plan.get("batch_size"),
            "patch_size": plan.get("patch_size"),
            "selection": "no checkpoint selection: the last weights are used",
            "augmentation": "nnU-Net's own",
            "device": self.device,
            "peak_child_rss_mib": round(_peak_child_bytes() / 2**20, 1),
            "seeded": False,  # nnU-Net draws its weights and batches anew every time
            "nnunet_version": installed_version(self._commands["nnUNetv2_train"]),
        }

    def _read_plans(self, path: Path) -> Mapping[str, Any]:
        try:
            plans = json.loads(path.read_text())["configurations"]
        except (OSError, KeyError, json.JSONDecodeError) as error:
            raise SamAdaptError(f"nnU-Net left no plans at {path} ({error}); see {self._log}") from error
        self.configuration = self.config.configuration if self.config.configuration in plans else "2d"
        return plans[self.configuration]

    @property
    def parameters(self) -> int:
        """Trained ones, from the finished weights; 0 where their file holds more than plain numbers."""
        (checkpoint,) = self.work.glob("results/**/checkpoint_final.pth")
        try:
            with torch.serialization.safe_globals(_NUMPY):
                state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:  # a count is not worth running what the file says
            return 0
        return sum(value.numel() for value in state["network_weights"].values())

    def predict(self, case: Case) -> np.ndarray:
        """(D, H, W) uint8 of a scored case."""
        answers = self.work / "predictions"
        if not answers.is_dir():
            self._predict_all(answers)
        path = answers / f"{case.id}.nii.gz"
        if not path.is_file():
            raise SamAdaptError(f"nnU-Net left no answer for case {case.id!r}; see {self._log}")
        return io.read_label(path, as_volume(case)).numpy()

    def _predict_all(self, answers: Path) -> None:
        images = self.work / "raw" / _NAME / "imagesTs"
        model = ["-d", _ID, "-c", self.configuration, "-f", "0", "-tr", self.config.trainer, "-p", _PLANS]
        with replacing(answers) as temporary:
            places = ["-i", str(images), "-o", str(temporary)]
            self._run("nnUNetv2_predict", *places, *model, "-device", self.device, "-npp", "1", "-nps", "1")
            for unused in ("raw", "preprocessed"):  # copies of the data, many times its size
                for folder in ("imagesTr", "labelsTr", "imagesTs", *self._preprocessed_folders()):
                    shutil.rmtree(self.work / unused / _NAME / folder, ignore_errors=True)

    def _preprocessed_folders(self) -> Iterable[str]:
        return [path.name for path in (self.work / "preprocessed" / _NAME).glob("*") if path.is_dir()]

    @property
    def _log(self) -> Path:
        return self.work / "nnunet.log"

    def _run(self, name: str, *arguments: str) -> None:
        """One command, everything it says in the log."""
        # Without loaders of its own it augments in the process that trains; its planner takes the number for threads.
        loaders = self.threads if "plan" in name else self.threads - 1
        environment = os.environ | {
            **{f"nnUNet_{part}": str(self.work / part) for part in ("raw", "preprocessed", "results")},
            "nnUNet_n_proc_DA": str(loaders),
            "nnUNet_def_n_proc": "1",
            "OMP_NUM_THREADS": str(self.threads),
        }
        command = [str(self._commands[name]), *arguments]
        with open_log(self._log) as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )
            try:
                code = process.wait()
            except BaseException:  # Ctrl-C: it must not go on by itself
                process.kill()
                process.wait()
                raise
        if code:
            raise SamAdaptError(
                f"{name} ended with exit code {code}: {_last_words(self._log)}; see {self._log}"
            )


def _peak_child_bytes() -> int:
    """Of the largest process that this one has waited for."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit


def _last_words(log: Path) -> str:
    lines: Sequence[str] = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line[:300] for line in reversed(lines) if line), "it said nothing")
