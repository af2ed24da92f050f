"""Choosing patients, simulated on a data set that has all labels: does it pay?

simulations/<name>/simulation.json    data, version, learner, training, protocol; another one is refused
simulations/<name>/choices.json       which patients each strategy chose, in each draw and round
simulations/<name>/<digest>/          one training: a run folder with its scores, as a cell of a study
simulations/<name>/findings.csv       strategy, labels, score, difference to random, interval, labels saved
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from samadapt.datasets import Dataset, Split
from samadapt.experiment import TrainedMethod
from samadapt.experiment.cells import Study, run_cell
from samadapt.experiment.grid import Cell, cell_of
from samadapt.features import FeatureStore, MapSpec
from samadapt.files import demand_writable, write_csv, write_json
from samadapt.learner import Learner
from samadapt.metrics import read_cell_scores
from samadapt.runs import environment, pick_device
from samadapt.settings import SuggestStudySettings, TrainConfig
from samadapt.suggest.findings import RANDOM, Finding, compare, patient_scores
from samadapt.suggest.looking import FeatureVectors, Progress, coarsest, load_members, look_at
from samadapt.suggest.strategies import STRATEGIES, Candidates, pick
from samadapt.types import SamAdaptError

_FORMAT = 1


@dataclass(frozen=True)
class Simulation:
    """What became of it."""

    out: Path
    findings: list[Finding]
    trained: int = 0  # trainings of this call
    found: int = 0  # those that were there


def simulate(
    data: Dataset,
    learner: Learner,
    config: TrainConfig,
    settings: SuggestStudySettings,
    out: str | Path,
    store: FeatureStore,
    *,
    encoding: Progress | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Simulation:
    """Let each strategy choose patients of the label pool, train on them, and score on the patients that are kept apart.

    In each draw all strategies begin with the same patients at random, and the control goes on at random, one round further,
    so that what is saved can be read from its curve. A strategy sees the labels of nobody whom it did not choose before; the
    scored patients play no part in any choice. Running it again does what is missing.

    Args:
        config: of all trainings; the seed is the draw's.
        store: of feature maps.
        say: told what is done.

    Raises:
        SamAdaptError: the folder holds another simulation; the pool is too small; a training failed.
    """
    out = Path(out)
    demand_writable(out, "--out")
    work = _Work(data, TrainedMethod(learner), config, settings, out, store)
    work.demand_patients()
    threads = _open(out, work)
    study = Study(data, out, store, threads)
    work.encode(encoding)
    counted = {True: 0, False: 0}
    for seed, strategy, count, cell in work.trainings(study):
        there = (out / cell.digest / "scores.csv").is_file()
        message = run_cell(study, cell)
        if message != "done":
            raise SamAdaptError(
                f"the training of draw {seed}, {strategy}, {count} labelled patients failed: {message}; when this is mended, the same "
                "command goes on"
            )
        counted[there] += 1
        work.keep(seed, strategy, count, cell)
        say(f"draw {seed}, {strategy}, {count} labelled: {'found' if there else 'trained'}")
    findings = compare(work.results)
    _write(out, findings)
    return Simulation(out, findings, trained=counted[False], found=counted[True])


# ---------------------------------------------------------------- the draws


@dataclass
class _Work:
    """All trainings of a simulation, in order, each once its patients are known."""

    data: Dataset
    method: TrainedMethod
    config: TrainConfig
    settings: SuggestStudySettings
    out: Path
    store: FeatureStore
    results: dict[tuple[str, int], dict[int, dict[str, float]]] = field(default_factory=dict)
    #: Of each training, how unsure it is of the patients of the pool; several strategies ask.
    unsure: dict[str, dict[str, float]] = field(default_factory=dict)

    def first_split(self, seed: int) -> Split:
        """With the patients that are labelled before the first round."""
        try:
            return self.data.split(self.settings.start, seed, fold=self.settings.fold)
        except SamAdaptError as error:
            raise SamAdaptError(
                f"{error} (the first {self.settings.start} patients of draw {seed}: --start)"
            ) from error

    def patients(self) -> dict[str, tuple[str, ...]]:
        """Patient -> cases, of all with a label who are not kept apart."""
        labelled, found = set(self.data.labelled_ids), dict[str, tuple[str, ...]]()
        for case in self.first_split(self.settings.draws[0]).pool:
            if case in labelled:
                patient = self.data.groups[case]
                found[patient] = (*found.get(patient, ()), case)
        return found

    def demand_patients(self) -> None:
        """Refuse what the pool does not have, before anything is trained."""
        s, available = self.settings, len(self.patients())
        needed = s.start + s.k * (s.rounds + 1)
        if needed > available:
            raise SamAdaptError(
                f"{s.start} patients, {s.rounds} rounds of {s.k} and one more for random's curve are {needed} labelled patients, and "
                f"{self.data.name!r} has {available} to learn from; ask for fewer (-k, --rounds)"
            )

    @property
    def vectors(self) -> FeatureVectors:
        """Of the learner's encoder; of the default one where the head reads none."""
        learner = self.method.learner
        head = learner.build(max(2, len(self.data.classes)), started=False).head
        if head.pixels_only:
            spec = Learner().suited_to(self.data).spec()  # its side is its own affair
            return FeatureVectors(MapSpec(spec, coarsest(spec), self.data.window), self.store)
        spec = learner.spec()
        return FeatureVectors(MapSpec(spec, coarsest(spec, head.reads), self.data.window), self.store)

    def encode(self, progress: Progress | None) -> None:
        """Maps of the pool, to compare patients by, and of the scored patients, once for all trainings."""
        device = pick_device(self.config.device)
        self.vectors.encode(self._bare(), device, progress)
        scored = self.data.without_labels(self.first_split(self.settings.draws[0]).val)
        for encode in self.method.encode(self.data, 0):
            if encode.scored and not self.method.seeded_encoder:
                told = progress(len(scored)) if progress else None
                self.store.encode(scored, encode.maps, device, progress=told)

    def _bare(self) -> Dataset:
        """The pool without its labels, which choosing must not see."""
        return self.data.without_labels(tuple(i for ids in self.patients().values() for i in ids))

    def trainings(self, study: Study) -> Iterator[tuple[int, str, int, Cell]]:
        """(seed, strategy, labelled patients, cell), one draw whole before the next."""
        s = self.settings
        names = [RANDOM, *(name for name in s.strategies if name != RANDOM)]
        vectors, pool, bare = self.vectors, self.patients(), self._bare()
        features = look_at(bare, pool, vectors, (), self.store).features
        for seed in s.draws:
            split = self.first_split(seed)
            begun = list(split.patients)
            first = self._cell(split, begun, seed)
            yield seed, RANDOM, len(begun), first
            for name in names:
                known, cell = list(begun), first
                for _ in range(s.rounds + (name == RANDOM)):
                    known += self._choice(name, seed, known, cell, features, bare)
                    cell = self._cell(split, known, seed)
                    yield seed, name, len(known), cell

    def _cell(self, split: Split, known: list[str], seed: int) -> Cell:
        chosen, labelled = set(known), set(self.data.labelled_ids)
        train = tuple(i for i in split.pool if self.data.groups[i] in chosen and i in labelled)
        rule = (
            f"{len(known)} patients chosen by simulation; scored as {split.rule.rpartition('scored on ')[2]}"
        )
        own = dataclasses.replace(
            split, train=train, select=(), patients=tuple(known), labels=len(known), rule=rule
        )
        config = dataclasses.replace(self.config, seed=seed)
        return cell_of(self.data, (self.method.learner.head, self.method), len(known), own, config)

    def _choice(
        self,
        name: str,
        seed: int,
        known: list[str],
        cell: Cell,
        features: Mapping[str, np.ndarray],
        bare: Dataset,
    ) -> list[str]:
        """The next k patients, as they were chosen before, or now."""
        path = self.out / "choices.json"
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        key = f"{cell.digest} {name} {self.settings.k}"
        if key not in before:
            left = {patient: x for patient, x in features.items() if patient not in known}
            unsure = self._unsure(cell, bare) if STRATEGIES[name].needs_model else None
            candidates = Candidates.of(left, [features[p] for p in known], unsure, seed)
            picks = pick(name, candidates, self.settings.k)
            before[key] = {"seed": seed, "strategy": name, "known": known, "chosen": [p.patient for p in picks], "why": [p.reason for p in picks]}  # fmt: skip
            write_json(path, before)
        return list(before[key]["chosen"])

    def _unsure(self, cell: Cell, bare: Dataset) -> dict[str, float]:
        """Of every patient of the pool, by the model of a finished training."""
        if cell.digest not in self.unsure:
            (member,) = load_members([self.out / cell.digest], self.config.device)
            if member.maps is not None:
                self.store.encode(bare, member.maps, pick_device(self.config.device))
            look = look_at(bare, self.patients(), None, [member], self.store)
            self.unsure[cell.digest] = dict(look.uncertainty)
        return self.unsure[cell.digest]

    def keep(self, seed: int, strategy: str, count: int, cell: Cell) -> None:
        """The scores of a finished training; at the start, of all strategies the same."""
        scores, _ = read_cell_scores(self.out / cell.digest)
        found = patient_scores(scores, self.data.groups, self.data.task)
        self.results.setdefault((strategy, count), {})[seed] = found


# ---------------------------------------------------------------- on disk


def _open(out: Path, work: _Work) -> int:
    """Begin a simulation, or find it there; the threads of a training. Draws, rounds and strategies may be added."""
    s, path = work.settings, out / "simulation.json"
    numbers = {k: v for k, v in dataclasses.asdict(work.config).items() if k not in (*work.config.UNCHANGING, "seed", "devices")}  # fmt: skip
    now = {
        "format": _FORMAT,
        "version": version("samadapt"),
        "data": {"name": work.data.name, "hash": work.data.hash},
        "learner": work.method.spec,
        "train": numbers,
        "protocol": {"k": s.k, "start": s.start, "fold": s.fold},
    }
    now = json.loads(json.dumps(now))
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
            threads = int(before["threads"])
        except (ValueError, KeyError, TypeError) as error:
            raise SamAdaptError(
                f"{path} cannot be read ({error}); it was edited or cut short: choose another --out"
            ) from error
        for name, value in now.items():
            if before.get(name) != value:
                raise SamAdaptError(
                    f"{out} holds a simulation with another {name} ({str(before.get(name))[:80]} there, {str(value)[:80]} now); give "
                    "what it was begun with, or choose another --out"
                )
        return threads
    if out.is_dir() and any(out.iterdir()):
        raise SamAdaptError(f"{out} is not empty and not a simulation; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    threads = torch.get_num_threads()
    write_json(path, {**now, "threads": threads, "environment": environment()})
    return threads


def _write(out: Path, findings: list[Finding]) -> None:
    columns = ["strategy", "labels", "score", "difference", "low", "high", "p_holm", "saved", "saved_low", "saved_high", "verdict"]  # fmt: skip
    rows = []
    for row in findings:
        d, saved = row.difference, row.saved
        interval = (d.mean, d.low, d.high, row.p) if d is not None else ("",) * 4
        labels = (saved.labels, saved.low, saved.high) if saved is not None else ("",) * 3
        rows.append([row.strategy, row.labels, row.score, *interval, *labels, row.verdict])
    write_csv(out / "findings.csv", columns, rows)
