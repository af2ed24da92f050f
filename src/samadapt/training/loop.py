"""One loop for anything with `loss(features, target)`, on Lightning. Writes a run folder.

    runs/<name>/config.json split.json environment.json metrics.csv last.ckpt head.safetensors

`head.safetensors` comes last: it exists = the training is finished. Rerunning the same command resumes.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from samadapt.files import write_json
from samadapt.metrics import ALL, classification_metrics
from samadapt.runs import FORMAT, has_bf16, open_run, pick_device, save_state
from samadapt.training.config import TrainConfig
from samadapt.training.stream import Batch, Examples, Stream
from samadapt.transforms import pool_taps, seeded
from samadapt.types import PIXELS, Encoder, Head, SamAdaptError


def train(
    head: Head,
    pairs: Examples,
    select: Examples | None = None,
    config: TrainConfig | None = None,
    out: str | Path = "runs/run",
    split: Any = None,
    overwrite: bool = False,
) -> Path:
    """Train a head (and, with `tune="all"`, its encoder) and leave a run folder.

    Args:
        pairs: what to learn from.
        select: labelled cases within the label budget that choose the best step; None keeps the averaged
            last weights, which needs no label at all.
        out: the run folder. Holding an unfinished run of the same configuration, it is resumed; a finished
            one is left as it is; anything else needs `overwrite`.
        split: written beside the run, for whoever asks which patients were used.
    """
    config, out = config or TrainConfig(), Path(out)
    if config.lr is None:
        config = dataclasses.replace(config, lr=head.lr)
    if config.tune == "all" and pairs.live is None:
        raise SamAdaptError(
            "tune='all' trains the encoder, so its maps cannot come from a store, and the head must read more than "
            "pixels; leave out the store (--store) or use --tune none"
        )
    if config.balance and head.task == "segmentation":
        raise SamAdaptError(
            "balance draws the classes of cases equally often, and a segmentation's cases have none; leave it out"
        )
    if len(pairs.data) < head.min_cases:
        raise SamAdaptError(
            f"{len(pairs.data)} case is to train head {head.spec['name']!r} with these options, which needs "
            f"{head.min_cases} at least (every image gets maps of another one); ask for more labels"
        )
    settings = _describe(head, pairs, config, select, split)
    start = open_run(out, settings, overwrite)
    if start is None:
        return out
    if split is not None:
        write_json(out / "split.json", split.to_json())
    learner, averager = _Learner(head, pairs.live, config), _Averager(config, select)
    stream = Stream(pairs, config.steps, config.batch_size, config.seed, config.balance, start)
    loader: DataLoader = DataLoader(stream, None, num_workers=config.workers)
    trainer = _trainer(config, out, averager)
    try:
        learner.train()  # Lightning leaves it as it is, and loaded encoders come ready to predict
        with _quiet():
            trainer.fit(learner, loader, ckpt_path=out / "last.ckpt" if start else None, weights_only=True)
        learner.put(averager.final_weights())
        learner.eval()
        if config.tune == "all":
            save_state(pairs.encoder, out / "encoder.safetensors")
        save_state(head, out / "head.safetensors")
    except OSError as error:
        raise _disk_error(out, error) from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):  # what torch's batch normalisation says
            raise
        raise SamAdaptError(
            f"a batch of {config.batch_size} gives the network a single value for each channel, which cannot be "
            "normalised; use a larger --batch-size, or larger images (--side, --set image_size)"
        ) from error
    except RuntimeError as error:
        if "PytorchStreamWriter" in str(error):  # what torch.save says of a full disk
            raise _disk_error(out, error) from error
        raise
    return out


def _disk_error(out: Path, error: Exception) -> SamAdaptError:
    return SamAdaptError(
        f"could not write to {out}: {error}; make room, then rerun the same command: it resumes from the last checkpoint"
    )


def _describe(
    head: Head, pairs: Examples, config: TrainConfig, select: Examples | None, split: Any
) -> dict[str, Any]:
    """Everything that `config.json` says: enough to build the model again and to know what it saw."""
    data, encoder = pairs.data, pairs.encoder
    return {
        "format": FORMAT,
        "opening": data.opening.to_json(),
        "head": dict(head.spec),
        "encoder": dict(encoder.spec),
        "encoder_fingerprint": encoder.fingerprint,
        "recipe": dataclasses.asdict(pairs.recipe),
        "stored_maps": pairs.live is None,
        "data": {
            "name": data.name,
            "hash": data.hash,
            "train": list(data.ids),
            "select": list(select.data.ids) if select else [],
        },
        "selection": "best score on the selection cases" if select else "none: the averaged last weights",
        "split_hash": split.hash if split is not None else None,
        "train": dataclasses.asdict(config),
    }


# ---------------------------------------------------------------- the learner


class _Learner(L.LightningModule):
    """A head, and the encoder that its batches must pass first, if any."""

    def __init__(self, head: Head, encoder: Encoder | None, config: TrainConfig) -> None:
        super().__init__()
        self.head, self.encoder, self.config = head, encoder, config
        self.strict_loading = False  # a frozen encoder is not in the checkpoint
        if encoder is not None:
            encoder.requires_grad_(config.tune == "all")

    def train(self, mode: bool = True) -> _Learner:
        """A pretrained encoder keeps its batch statistics, tuned or not: those of a few patients tell of these alone.

        One patient of ACDC, `sam_nano` tuned, others of the label pool scored: Dice 0.55 with them kept, 0.51 without.
        """
        super().train(mode)
        if self.encoder is not None and (self.config.tune == "none" or self.encoder.pretrained):
            self.encoder.eval()
        return self

    def trained(self) -> dict[str, Tensor]:
        """Name -> parameter that the optimiser moves, or buffer of the modules they live in."""
        modules: dict[str, nn.Module] = {"head": self.head}
        if self.encoder is not None and self.config.tune == "all":
            modules["encoder"] = self.encoder
        tensors: dict[str, Tensor] = {}
        for prefix, module in modules.items():
            tensors |= {f"{prefix}.{n}": p for n, p in module.named_parameters() if p.requires_grad}
            tensors |= {f"{prefix}.{n}": b for n, b in module.named_buffers()}
        return tensors

    @torch.no_grad()
    def put(self, values: Mapping[str, Tensor]) -> None:
        """Overwrite what is trained."""
        for name, tensor in self.trained().items():
            tensor.copy_(values[name])

    def features(self, x: dict[str, Tensor]) -> dict[str, Tensor]:
        """What the head reads, live through the encoder where the batch holds pixels only."""
        if self.encoder is None:
            return x
        with torch.set_grad_enabled(self.config.tune == "all" and torch.is_grad_enabled()):
            return pool_taps({**x, **self.encoder(x[PIXELS])}, self.head.reads)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # Dropout and the like depend on the step alone, so that resuming changes nothing.
        key = seeded("step", self.config.seed, self.global_step)
        torch.manual_seed(int(torch.randint(2**62, (), generator=key)))
        x, target = batch
        loss = self.head.loss(self.features(x), target)
        if not torch.isfinite(loss):
            raise SamAdaptError(
                f"the loss is {loss.item()} at step {self.global_step}; lower --lr (now {self.config.lr}) "
                "or use --precision 32"
            )
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        tuned = [p for p in self.head.pretrained() if p.requires_grad]
        if self.config.tune == "all" and self.encoder is not None:
            tuned += self.encoder.parameters()
        known = {id(p) for p in tuned}
        fresh = [p for p in self.head.parameters() if p.requires_grad and id(p) not in known]
        groups = [{"params": fresh, "lr": self.config.lr}]
        if tuned:
            groups.append({"params": tuned, "lr": self.config.encoder_lr})
        # Fused: one call for all tensors; one for each is a good part of a small network's step on a CPU.
        optimizer = torch.optim.AdamW(groups, weight_decay=self.config.weight_decay, fused=True)
        shape = functools.partial(_schedule, steps=self.config.steps, warmup=self.config.warmup)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """To norm 1. Lightning's own refuses fused optimisers, for the sake of a scaler that bf16 does not have."""
        nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = self.trained()
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in kept}


class _Averager(L.Callback):
    """The running average of what is trained; where there are selection cases, the best of its states."""

    def __init__(self, config: TrainConfig, select: Examples | None) -> None:
        self.config, self.select = config, select
        self.average: dict[str, Tensor] = {}
        self.best: dict[str, Tensor] = {}
        self.best_score, self.score = -math.inf, math.nan

    @torch.no_grad()
    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, module: _Learner, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        decay = min(self.config.ema, step / (step + 9))  # an average of few steps must not remember the start
        for name, tensor in module.trained().items():
            if decay == 0 or name not in self.average or not tensor.is_floating_point():
                self.average[name] = tensor.clone()
            else:
                self.average[name] = self.average[name].to(tensor.device).lerp_(tensor, 1 - decay)
        if self.select is not None and (step % self.config.check_every == 0 or step == self.config.steps):
            self.score = self._score(module, self.select)
            if self.score > self.best_score:
                self.best_score, self.best = self.score, {k: v.clone() for k, v in self.average.items()}

    def _score(self, module: _Learner, select: Examples) -> float:
        """The averaged weights on the selection cases."""
        now = {name: tensor.clone() for name, tensor in module.trained().items()}
        module.put(self.average)
        module.eval()
        logits, targets = [], []
        for begin in range(0, len(select), self.config.batch_size):
            x, target = select.batch(range(begin, min(len(select), begin + self.config.batch_size)))
            x = {tap: value.to(module.device) for tap, value in x.items()}
            logits.append(module.head(module.features(x)).float().cpu())
            targets.append(target)
        module.train()
        module.put(now)
        return _SELECTION[module.head.task](torch.cat(logits), torch.cat(targets))

    def final_weights(self) -> dict[str, Tensor]:
        """The best on the selection cases, else the average."""
        return self.best or self.average

    def state_dict(self) -> dict[str, Any]:
        return {key: getattr(self, key) for key in ("average", "best", "best_score", "score")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for key, value in state_dict.items():
            setattr(self, key, value)


def _schedule(step: int, steps: int, warmup: float) -> float:
    warm = max(1, round(warmup * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _mean_dice(logits: Tensor, target: Tensor) -> float:
    """Mean foreground Dice over all voxels of the label grid: coarse, and enough to choose a step."""
    size = (target.shape[-2], target.shape[-1])
    answer = nn.functional.interpolate(logits, size=size, mode="bilinear").argmax(1)
    seen, target = target.sum(1) > 0, target.argmax(1)
    dice = []
    for label in range(1, logits.shape[1]):
        a, b = (answer == label) & seen, (target == label) & seen
        if a.any() or b.any():
            dice.append(float(2 * (a & b).sum() / (a.sum() + b.sum())))
    return float(np.mean(dice)) if dice else 0.0


def _mean_auc(logits: Tensor, target: Tensor) -> float:
    """Mean one-against-rest AUC; 0.5, which chooses nothing, where one class alone is there."""
    scores = logits.softmax(1) if target.dim() == 1 else logits.sigmoid()
    auc = classification_metrics(scores.numpy(), target.numpy())[ALL, "auc"]
    return 0.5 if math.isnan(auc) else auc


_SELECTION: dict[str, Callable[[Tensor, Tensor], float]] = {
    "segmentation": _mean_dice,
    "classification": _mean_auc,
}


# ---------------------------------------------------------------- Lightning


class _Keeper(L.Callback):
    """Checkpoints and metrics.csv, both safe against a kill at any moment."""

    def __init__(self, out: Path, every: int, averager: _Averager) -> None:
        self.out, self.every, self.averager = out, every, averager
        self.rows: list[dict[str, Any]] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        check = step % self.every == 0 or step == trainer.max_steps
        if check or step % 10 == 0:
            score = self.averager.score if check and self.averager.select is not None else ""
            lr = trainer.optimizers[0].param_groups[0]["lr"]
            self.rows.append({"step": step, "loss": float(outputs["loss"]), "selection": score, "lr": lr})
        if check:
            self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        """The checkpoint holds the rows too, so the table never disagrees with the weights."""
        temporary, table = self.out / "last.ckpt.tmp", self.out / "metrics.csv.tmp"
        trainer.save_checkpoint(temporary)
        if not trainer.is_global_zero:
            return
        with open(table, "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=["step", "loss", "selection", "lr"])
            writer.writeheader()
            writer.writerows(self.rows)
        table.replace(self.out / "metrics.csv")
        temporary.replace(self.out / "last.ckpt")

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])


def _trainer(config: TrainConfig, out: Path, averager: _Averager) -> L.Trainer:
    device = pick_device(config.device).type
    wants_bf16 = config.precision == "bf16" or (config.precision == "auto" and has_bf16(device))
    with _quiet():
        return L.Trainer(
            accelerator="gpu" if device == "cuda" else device,
            max_steps=config.steps,
            max_epochs=-1,
            precision="bf16-mixed" if wants_bf16 else "32-true",
            logger=L.pytorch.loggers.TensorBoardLogger(out, name="tensorboard", version=""),
            callbacks=[averager, _Keeper(out, config.check_every, averager)],
            enable_checkpointing=False,
            enable_progress_bar=sys.stderr.isatty() and "SAMADAPT_QUIET" not in os.environ,
            enable_model_summary=False,
            log_every_n_steps=10,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's notices about a single process help nobody here; its errors still come through."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings(
            "ignore", message=".*(isinstance|LeafSpec|tensorboardX|does not have many workers).*"
        )
        try:
            yield
        finally:
            logger.setLevel(level)
