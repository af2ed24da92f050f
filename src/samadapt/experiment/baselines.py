"""The baselines as methods: SimCLR, SAM prompted with the truth, nnU-Net."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from samadapt import simclr
from samadapt.baselines.nnunet import NnUNet, NnUNetConfig
from samadapt.baselines.zero_shot import ZeroShot, load_decoder
from samadapt.datasets import Dataset
from samadapt.experiment.methods import Encode, Fitted, Job, Method, TrainedMethod, fitted_run, one_by_one
from samadapt.features import MapSpec
from samadapt.learner import FitOptions, Learner, fit
from samadapt.runs import pick_device
from samadapt.types import Case, SamAdaptError

NECK = {"neck": 1}


@final
@dataclass(frozen=True)
class SimclrMethod(Method):
    """A U-Net whose contracting path SimCLR trained on all images that are not for scoring, then fine-tuned.

    The pre-training needs no label, so all numbers of labels of one seed share it.
    """

    trained: TrainedMethod
    recipe: simclr.SimclrConfig = field(default_factory=simclr.SimclrConfig)
    role = "baseline"

    @property
    def spec(self) -> dict[str, Any]:
        numbers = {k: v for k, v in dataclasses.asdict(self.recipe).items() if k != "check_every"}
        return {**self.trained.spec, "kind": "simclr", "pretraining": numbers}

    def prepare(self, job: Job) -> str | None:
        folder = self._folder(job)
        if simclr.is_finished(folder):
            return None
        cost = self._pretrain(job, folder)
        return f"pre-trained {cost['steps']} steps on {cost['slices']} slices in {cost['wall_s']:.0f} s"

    def fit(self, job: Job) -> Fitted:
        folder = self._folder(job)
        cost = self._pretrain(job, folder)
        config = self.trained.config(job.config)
        start = functools.partial(simclr.load_contracting, folder=folder)
        fit(self.trained.learner, job.data, job.split, config, job.out, job.store, FitOptions(start=start))
        fitted = fitted_run(job, config, self.trained.learner)
        notes = {**fitted.notes, "pretraining": {**cost, "shared": "by all numbers of labels of this seed"}}
        return dataclasses.replace(fitted, notes=notes)

    def _folder(self, job: Job) -> Path:
        """One for each data set, pool, recipe and seed."""
        key = [self.spec, job.data.hash, job.data.window, sorted(job.split.pool), job.config.seed]
        return job.shared / f"simclr-{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}"

    def _pretrain(self, job: Job, folder: Path) -> dict[str, Any]:
        learner, seed = self.trained.learner, job.config.seed
        if simclr.is_finished(folder):
            return simclr.read_cost(folder)
        model = learner.build(len(job.data.classes), seed)
        pool = job.data.without_labels(job.split.pool)
        # No more slices of a case than the steps could show.
        most = max(1, -(-self.recipe.steps * self.recipe.batch_size // len(pool)))
        slices = simclr.gather_slices(pool, model.spec.view(job.data.window), most)
        device = pick_device(job.config.device)
        return simclr.pretrain(model, slices, self.recipe, folder, seed, device)


@final
@dataclass(frozen=True)
class ZeroShotMethod(Method):
    """SAM's own decoder, prompted with the truth of the case that it answers for. Learns nothing.

    Args:
        learner: only its encoder and how it sees images matter.
        prompt: a key of `zero_shot.PROMPTS`.
    """

    learner: Learner
    prompt: str = "box"
    learns = False
    role = "oracle"

    @property
    def spec(self) -> dict[str, Any]:
        kept = ("encoder", "checkpoint", "side", "prepare", "encoder_precision")
        encoder = {k: v for k, v in self.learner.identity().items() if k in kept}
        return {"kind": "zero_shot", "prompt": self.prompt, **encoder}

    @property
    def starts_from(self) -> Learner:
        return self.learner

    def encode(self, data: Dataset, seed: int) -> tuple[Encode, ...]:
        spec = self.learner.spec(seed)
        load_decoder(spec)  # an encoder that cannot be prompted is told now
        return (Encode(MapSpec(spec, NECK, data.window), scored=True),)

    def fit(self, job: Job) -> Fitted:
        if job.data.task != "segmentation":
            raise SamAdaptError("zero-shot SAM outlines objects; it does not classify")
        device = pick_device(job.config.device)
        spec = self.learner.spec(job.config.seed)
        answers = ZeroShot(load_decoder(spec).to(device), len(job.data.classes), spec.side, self.prompt)
        wanted = MapSpec(spec, NECK, job.data.window)

        def predict(case: Case) -> np.ndarray:
            job.store.encode([case], wanted, device)  # nothing to do, as a rule
            maps, frame = job.store.read(case, wanted)
            return answers.predict(case, maps["neck"][0], frame)

        notes = {
            "steps": 0,
            "selection": "no checkpoint selection: nothing is trained",
            "augmentation": "none",
            "prompt": f"the {self.prompt} of the ground truth",
            "device": str(device),
        }
        return Fitted(one_by_one(predict), 0, notes)


@final
@dataclass(frozen=True)
class NnUNetMethod(Method):
    """nnU-Net v2 on the cell's labelled cases."""

    config: NnUNetConfig = field(default_factory=NnUNetConfig)
    role = "baseline"

    @property
    def spec(self) -> dict[str, Any]:
        return {"kind": "nnunet", "trainer": self.config.trainer, "configuration": self.config.configuration}

    def fit(self, job: Job) -> Fitted:
        device = pick_device(job.config.device).type
        model = NnUNet(self.config, job.out / "nnunet", device, torch.get_num_threads())  # set by the study
        notes: Mapping[str, Any] = model.fit(job.data, job.split)
        return Fitted(one_by_one(model.predict), model.parameters, notes)
