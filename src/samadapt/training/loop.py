"""`train`: one loop for anything with `loss(features, target)`. Writes a run folder.

    runs/<name>/config.json split.json environment.json metrics.csv last.ckpt head.safetensors

`head.safetensors` comes last: it exists = the training is finished. Rerunning the same command resumes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from samadapt.adapted import AdaptedModel
from samadapt.features import Pairs
from samadapt.files import replacing, write_csv, write_json
from samadapt.progress import Progress
from samadapt.runs import FORMAT, has_bf16, open_run, pick_device, save_state, save_tensors
from samadapt.settings import TrainConfig
from samadapt.training.averager import Averager, put
from samadapt.training.loggers import LOGGERS, Logger
from samadapt.training.steps import NotFiniteError, StepLoop, warm_cosine
from samadapt.training.stream import Stream, Streams
from samadapt.training.teacher import Teacher, Unlabelled
from samadapt.transforms import seeded
from samadapt.tuning import TUNINGS, Tuning, trained_tensors
from samadapt.types import Head, SamAdaptError

_LOG_EVERY = 10  # steps
_MEASURED = 10  # steps by which the time of a training is told
_CURE = "make room, then rerun the same command: it resumes from the last checkpoint"


def train(
    model: AdaptedModel,
    pairs: Pairs,
    select: Pairs | None = None,
    config: TrainConfig | None = None,
    out: str | Path = "runs/run",
    split: Any = None,
    overwrite: bool = False,
    *,
    unlabelled: Unlabelled | None = None,
) -> Path:
    """Train a head (and what the tuning says of its encoder) and leave a run folder.

    Args:
        model: the head and the encoder whose maps it reads.
        pairs: what to learn from.
        select: labelled cases within the label budget that choose the best step; None keeps the averaged
            last weights, which needs no label at all.
        out: the run folder. Holding an unfinished run of the same configuration, it is resumed; a finished
            one is left as it is; anything else needs `overwrite`.
        split: written beside the run, for whoever asks which patients were used.
        unlabelled: after the training on `pairs` follows a second one of as many steps, from its weights, that learns from
            these too; see `training.teacher`.
    """
    config, out = config or TrainConfig(), Path(out)
    if config.lr is None:
        config = dataclasses.replace(config, lr=model.head.lr)
    tuning = TUNINGS[config.tune]
    _demand_possible(model, pairs, config, tuning)
    if unlabelled is not None:
        _demand_teachable(model.head, config, tuning)
    model.to(pick_device(config.device))
    if pairs.encoder_in_loop:
        tuning.begin(model.load())
    with _explained(out, config):
        run = _Run(model, tuning, config, out, select)
        settings = _describe(model, pairs, config, select, split)
        settings["unlabelled"] = dict(unlabelled.described) if unlabelled else None
        if not run.open(settings, split, overwrite):
            return out
        run.steps(pairs, unlabelled)
        for seen in (pairs, *([unlabelled.pairs] if unlabelled else ())):
            seen.data.demand_unchanged()
        run.finish()
    return out


def _demand_possible(model: AdaptedModel, pairs: Pairs, config: TrainConfig, tuning: Tuning) -> None:
    head = model.head
    if not tuning.frozen and not pairs.encoder_in_loop:
        raise SamAdaptError(
            f"tune={config.tune!r} trains the encoder, so its maps cannot come from a store, and the head must read more "
            "than pixels; leave out the store (--store) or use --tune none"
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
    if config.batch_size % config.devices:
        raise SamAdaptError(
            f"a batch of {config.batch_size} cannot be shared evenly by {config.devices} devices; give a --batch-size that "
            "is a multiple of --devices"
        )


def _demand_teachable(head: Head, config: TrainConfig, tuning: Tuning) -> None:
    if not tuning.frozen:
        raise SamAdaptError(
            f"tune={config.tune!r} trains the encoder, and unlabelled scans teach a head on a frozen one; leave out "
            "--unlabelled, or use --tune none"
        )
    if type(head).loss is not Head.loss:
        raise SamAdaptError(
            f"head {head.spec['name']!r} has a loss that is not of its answer alone, so it cannot be taught answers; leave "
            "out --unlabelled, or give it a `loss_fn`"
        )


@contextmanager
def _explained(out: Path, config: TrainConfig) -> Iterator[None]:
    """Failures of the disk and of batch normalisation, in words that say what to do."""
    try:
        yield
    except OSError as error:
        raise SamAdaptError(f"could not write to {out}: {error}; {_CURE}") from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):  # what torch's batch normalisation says
            raise
        raise SamAdaptError(
            f"a batch of {config.batch_size} gives the network a single value for each channel, which cannot be "
            "normalised; use a larger --batch-size, or larger images (--side, --set image_size)"
        ) from error


def _describe(
    model: AdaptedModel, pairs: Pairs, config: TrainConfig, select: Pairs | None, split: Any
) -> dict[str, Any]:
    """Everything that `config.json` says: enough to build the model again and to know what it saw."""
    data = pairs.data
    return {
        "format": FORMAT,
        "opening": data.opening.to_json(),
        "head": dict(model.head.spec),
        "encoder": model.spec.to_json(),
        "encoder_fingerprint": model.spec.fingerprint,
        "maps": {
            "window": pairs.maps.window,
            "views": pairs.maps.views,
            "augmentation": pairs.maps.augmentation,
        },
        "stored_maps": not pairs.encoder_in_loop,
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


def tensors_in(name: str, value: Any) -> dict[str, Tensor]:
    """The tensors of a part of a batch, which may be a mapping or a list, with names of their own."""
    if isinstance(value, Tensor):
        return {name: value.detach().clone()}
    parts = (
        value.items()
        if isinstance(value, Mapping)
        else enumerate(value)
        if isinstance(value, list | tuple)
        else ()
    )
    return {key: x for inner, part in parts for key, x in tensors_in(f"{name}.{inner}", part).items()}


# ---------------------------------------------------------------- the run


@final
class _Objective(nn.Module):
    """The loss of a batch; where unlabelled slices come after its labelled ones, also that of the teacher's targets."""

    def __init__(self, model: AdaptedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, x: Mapping[str, Tensor], target: Tensor, taught: Tensor | None = None, weight: float = 1.0
    ) -> Tensor:
        head, features = self.model.head, self.model.features(x)
        if taught is None:
            return head.loss(features, target)
        answer, labelled = head(features), len(target)  # one batch, so that its statistics are of both
        return head.loss_fn(answer[:labelled], target) + weight * head.loss_fn(answer[labelled:], taught)


@final
class _Run:
    """A training and its folder."""

    def __init__(
        self, model: AdaptedModel, tuning: Tuning, config: TrainConfig, out: Path, select: Pairs | None
    ) -> None:
        self.model, self.tuning, self.config, self.out = model, tuning, config, out
        device = model.device.type
        wants_bf16 = config.precision == "bf16" or (config.precision == "auto" and has_bf16(device))
        self.loop = StepLoop(
            _Objective(model),
            self._optimizer,
            device,
            wants_bf16,
            config.devices,
            unused=model.trains_encoder,
        )
        self.averager = Averager(model, self.trained(), config, select)
        self.rows: list[dict[str, Any]] = []

    def trained(self) -> dict[str, Tensor]:
        """Name -> tensor that the training changes."""
        tensors = {f"head.{name}": x for name, x in trained_tensors(self.model.head).items()}
        if self.model.extractor is not None:
            tensors |= {f"encoder.{n}": x for n, x in self.tuning.tensors(self.model.extractor).items()}
        return tensors

    def _optimizer(self, objective: nn.Module) -> torch.optim.Optimizer:
        head, config = self.model.head, self.config
        tuned = [p for p in head.pretrained() if p.requires_grad]
        known = {id(p) for p in tuned}
        groups = [
            ([p for p in head.parameters() if p.requires_grad and id(p) not in known], config.lr),
            (tuned, config.encoder_lr),
        ]
        if self.model.extractor is not None:
            encoder = [p for p in self.model.extractor.parameters() if p.requires_grad]
            groups.append((encoder, config.encoder_lr * self.tuning.rate))
        # Fused: one call for all tensors; one for each is a good part of a small network's step on a CPU.
        return torch.optim.AdamW(
            [{"params": p, "lr": lr} for p, lr in groups if p], weight_decay=config.weight_decay, fused=True
        )

    def open(self, settings: dict[str, Any], split: Any, overwrite: bool) -> bool:
        """Begin or resume in the folder; False where the training is finished already."""
        start: int | None = None
        problem = ""
        if self.loop.is_first:
            try:
                start = open_run(self.out, settings, overwrite)
                if start is None:  # finished, and nobody took a part of it away
                    self.tuning.demand_saved(self.out)
            except SamAdaptError as error:  # the other processes wait for an answer
                problem = str(error)
            if start is not None and split is not None:
                write_json(self.out / "split.json", split.to_json())
        start, problem = self.loop.fabric.broadcast((start, problem))
        if problem:
            raise SamAdaptError(problem)
        if start:
            self._resume()
        return start is not None

    def steps(self, pairs: Pairs, unlabelled: Unlabelled | None) -> None:
        """All steps that are left: of the training on the labels, then of the one on unlabelled slices too."""
        config, loop = self.config, self.loop

        def stream(examples: Pairs, end: int, balance: bool = False) -> Stream:
            return Stream(examples, end, config.batch_size, config.seed, balance, loop.step)

        with ExitStack() as stack:
            loggers = [LOGGERS[name](self.out, config.__dict__) for name in config.log if loop.is_first]
            for logger in loggers:
                stack.callback(logger.close)
            if loop.step < config.steps:
                self._all_steps(Streams(stream(pairs, config.steps, config.balance)), loggers)
            if unlabelled is None:
                return
            if loop.step == config.steps:
                self.averager.restart()
                loop.restart()
            end = 2 * config.steps
            both = Streams(stream(pairs, end, config.balance), stream(unlabelled.pairs, end))
            teacher = Teacher(self.model, self.averager, unlabelled.options, config.seed, loop.autocast)
            self._all_steps(both, loggers, teacher)

    def _all_steps(self, batches: Streams, loggers: Sequence[Logger], teacher: Teacher | None = None) -> None:
        """One training; its learning rate, average and selection know of none before it."""
        config, loop = self.config, self.loop
        self.model.train()
        progress, begun = Progress(quiet=not loop.is_first), loop.step
        before = begun // config.steps * config.steps
        what = "training with unlabelled slices" if teacher else "training"
        for batch in DataLoader(batches, None, num_workers=config.workers):
            # Dropout and the like depend on the step alone, so that resuming changes nothing.
            # Several processes draw each its own: the same noise for every share of a batch would be less of it.
            rank = loop.fabric.global_rank
            key = seeded("step", config.seed, loop.step, *([rank] if rank else []))
            torch.manual_seed(int(torch.randint(2**62, (), generator=key)))
            rate = warm_cosine(loop.step - before, config.steps, config.warmup)
            loss = self._update(teacher(*batch, loop.step, rank) if teacher else batch[0], rate)
            done = loop.step - before
            self.averager.update(done)
            self._record(loss, loggers, done)
            progress(
                lambda loss=loss, done=done: f"{what}: step {done} of {config.steps}, loss {loss:.3f}",  # type: ignore[misc]
                (loop.step - begun) / (before + config.steps - begun),
            )
            if loop.step - begun == _MEASURED:
                progress.measured(
                    lambda time: (
                        f"training: about {time} for the {config.steps - begun} steps, measured on the first {_MEASURED}"
                    ),
                    _MEASURED / (config.steps - begun),
                )
        progress.close()

    def _update(self, inputs: Sequence[Any], rate: float) -> Tensor:
        """One step; where it cannot be taken, its batch and the weights before it are kept to look into."""
        try:
            return self.loop.update(*inputs, rates=rate)
        except NotFiniteError as error:
            rank = self.loop.fabric.global_rank
            place = self.out / f"not_finite{f'_{rank}' if rank else ''}.safetensors"
            names = ("batch", "batch.target", *(f"batch.more{n}" for n in range(len(inputs))))
            kept = {f"weights.{name}": tensor for name, tensor in self.trained().items()}
            for name, value in zip(names, inputs, strict=False):
                kept |= tensors_in(name, value)
            save_tensors(kept, place)
            raise SamAdaptError(
                f"{error}. The batch of this step and the weights before it are in {place}"
            ) from error

    def _record(self, loss: Tensor, loggers: Sequence[Logger], done: int) -> None:
        """Args: done: steps of this training."""
        step, config = self.loop.step, self.config
        check = done % config.check_every == 0 or done == config.steps
        if not check and done % _LOG_EVERY:
            return
        # The rate of the next step, as always; a row of the table is about the time after its step.
        lr = config.lr * warm_cosine(done, config.steps, config.warmup)  # type: ignore[operator]
        score = self.averager.score if check and self.averager.select is not None else ""
        row: dict[str, int | float | str] = {
            "step": step,
            "loss": self.loop.mean(loss),
            "selection": score,
            "lr": lr,
        }
        self.rows.append(row)
        for logger in loggers:
            logger.log(step, {name: x for name, x in row.items() if isinstance(x, float)})
        if check and self.loop.is_first:
            self._save()

    def _save(self) -> None:
        """The checkpoint holds the rows too, so the table never disagrees with the weights."""
        state = {
            **self.loop.state(),
            "tensors": {name: x.detach() for name, x in self.trained().items()},
            "averager": self.averager.state(),
            "rows": self.rows,
        }
        with replacing(self.out / "last.ckpt", cure=_CURE) as checkpoint:
            torch.save(state, checkpoint)
            write_csv(self.out / "metrics.csv", list(self.rows[0]), [list(row.values()) for row in self.rows])

    def _resume(self) -> None:
        state = torch.load(self.out / "last.ckpt", map_location=self.model.device, weights_only=True)
        self.loop.load_state(state)
        put(self.trained(), state["tensors"])
        self.averager.load_state(state["averager"])
        self.rows = list(state["rows"])

    def finish(self) -> None:
        """The weights that are kept, into the model and into the folder."""
        put(self.trained(), self.averager.final_weights())
        self.model.eval()
        if self.loop.is_first:
            if self.model.extractor is not None:
                self.tuning.save_to(self.model.extractor, self.out)
            save_state(self.model.head, self.out / "head.safetensors")
        self.loop.fabric.barrier()  # nobody reads the run before it is written
