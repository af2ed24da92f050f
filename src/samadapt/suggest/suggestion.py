"""`suggest_patients`: what `samadapt suggest` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from samadapt.datasets import Dataset, Split, open_like
from samadapt.encoders import EncoderSpec
from samadapt.ensemble import demand_alike, joint_split, member_runs
from samadapt.features import FeatureStore, MapSpec
from samadapt.files import demand_writable, write_csv
from samadapt.inputs import Taken
from samadapt.learner import Learner
from samadapt.runs import find_run, pick_device, read_config
from samadapt.settings import SuggestOptions
from samadapt.suggest.looking import FeatureVectors, Member, Progress, coarsest, load_members, look_at
from samadapt.suggest.pool import Pool, pool_alone, pool_of_run
from samadapt.suggest.strategies import STRATEGIES, Candidates, pick
from samadapt.types import SamAdaptError


@dataclass(frozen=True)
class ColdStart:
    """Whose maps are compared; all that is said where there is no run yet.

    Args:
        encoder: "": the run's, or else the best one with weights on this machine.
        group: how patients are told apart; of a run, the run says it.
    """

    encoder: str = ""
    checkpoint: str | None = None
    side: int | None = None
    group: str | None = None


@dataclass(frozen=True)
class Suggested:
    """A patient to label next.

    Args:
        cases: all of the patient's; label each.
        uncertainty: of a model, 0 to 1; None without one.
        distance: to the nearest patient that is labelled or stands above, in deviations; None where there is none.
        labelled: whether a label file is there already, which nobody learned from.
    """

    rank: int
    patient: str
    cases: tuple[str, ...]
    reason: str
    uncertainty: float | None
    distance: float | None
    labelled: bool


@dataclass(frozen=True)
class Suggestion:
    """Who to label next, and what was assumed."""

    strategy: str
    patients: tuple[Suggested, ...]
    pool: int  # patients that could have been suggested
    encoder: str  # whose maps were compared
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class _Asked:
    """A pool, and by what its patients are judged."""

    pool: Pool
    spec: EncoderSpec
    taps: dict[str, int]
    members: Sequence[Member]
    others: tuple[MapSpec, ...] = ()  # under which its maps may be stored too
    elsewhere: Dataset | None = None  # labelled cases that are not in the pool
    notes: tuple[str, ...] = ()


def suggest_patients(
    run: str | Path | None,
    pool: str | Path,
    options: SuggestOptions,
    store: FeatureStore,
    *,
    start: ColdStart | None = None,
    taken: Taken | None = None,
    device: str = "auto",
    encoding: Progress | None = None,
    progress: Callable[[str], None] | None = None,
) -> Suggestion:
    """The patients of a pool to label next. No label of the pool is read.

    Args:
        run: a run folder, or a folder of run folders; None: there is no model yet.
        pool: a folder of scans or a data set. Patients that the run learned from are left out.
        store: of the feature maps; what is missing is encoded first.
        start: whose maps are compared, where it is not the run's encoder.
        taken: how files are taken beyond what the run says.

    Raises:
        SamAdaptError: the pool has fewer patients than are asked for, or the strategy needs a run.
    """
    name = options.strategy or ("typical" if run is None else "both")
    _demand_strategy(name, run, options)
    start, taken = start or ColdStart(), taken or Taken()
    asked = (
        _without_run(Path(pool), start, taken)
        if run is None
        else _with_run(find_run(run), Path(pool), options, start, taken, device)
    )
    asked_for = STRATEGIES[name]
    chosen = asked.pool.open_to_label
    if options.k > len(chosen):
        raise SamAdaptError(
            f"{options.k} patients were asked for, and {pool} has {len(chosen)} that could be labelled next; ask for at most "
            f"{len(chosen)} (-k)" + "".join(f"; {line}" for line in asked.pool.left_out)
        )
    vectors = FeatureVectors(MapSpec(asked.spec, asked.taps, asked.pool.data.window), store, asked.others)
    members = asked.members if asked_for.needs_model else ()
    _encode(asked, vectors, members, store, device, encoding)
    known = {p: ids for p, ids in asked.pool.cases.items() if p in asked.pool.known}
    apart = dict(look_at(asked.pool.data, known, vectors, (), store).features)
    if asked.elsewhere is not None:
        apart |= look_at(asked.elsewhere, _by_patient(asked.elsewhere), vectors, (), store).features
    look = look_at(asked.pool.data, chosen, vectors, members, store, progress)
    candidates = Candidates.of(look.features, list(apart.values()), look.uncertainty or None, options.seed)
    picks = pick(name, candidates, options.k)
    rows = tuple(
        Suggested(
            rank, each.patient, chosen[each.patient], each.reason, each.uncertainty, each.distance,
            each.patient in asked.pool.labelled,
        )
        for rank, each in enumerate(picks, start=1)
    )  # fmt: skip
    return Suggestion(
        name, rows, len(chosen), asked.spec.name, _notes(asked, rows, run is not None, len(apart))
    )


def _demand_strategy(name: str, run: str | Path | None, options: SuggestOptions) -> None:
    """Before anything is read."""
    if name not in STRATEGIES:
        raise SamAdaptError(f"unknown strategy {name!r}; known: {', '.join(STRATEGIES)}")
    if run is None and STRATEGIES[name].needs_model:
        without = ", ".join(other for other, each in STRATEGIES.items() if not each.needs_model)
        raise SamAdaptError(
            f"the strategy {name!r} asks how unsure a model is, and no RUN was given; give RUN and POOL, or choose one of {without}"
        )
    if run is None and options.labelled is not None:
        raise SamAdaptError(
            f"--labelled {options.labelled} says what a RUN was trained on, and no RUN was given; leave it out, or give RUN and POOL"
        )


# ---------------------------------------------------------------- with a run, or without


def _with_run(
    run: Path, pool: Path, options: SuggestOptions, start: ColdStart, taken: Taken, device: str
) -> _Asked:
    if start.group is not None:
        raise SamAdaptError(
            f"--group {start.group!r} is for a pool without a RUN; {run} says how its patients are told apart: leave it out"
        )
    runs = member_runs(run)
    members = load_members(runs, device, None if start.encoder else start.checkpoint)
    demand_alike([member.model for member in members], runs)
    model, split = members[0].model, joint_split(runs)
    found = pool_of_run(pool, model.opening, split, taken)
    elsewhere = None if options.labelled is None else _elsewhere(options.labelled, members, split, found)
    head, notes = model.head, list[str]()
    own = not head.pixels_only and not start.encoder
    if own and start.side is not None:
        raise SamAdaptError(
            f"--side {start.side} is for the maps of another encoder (--encoder), and those of the run's have the side "
            f"{model.model.spec.side}; leave it out, or name an encoder"
        )
    spec = model.model.spec if own else _spec(start, found.data)
    if head.pixels_only and not start.encoder:
        notes.append(
            f"the run reads no encoder, so patients are compared by the maps of {spec.name} (--encoder)"
        )
    taps = coarsest(spec, head.reads if own else None)
    config = read_config(runs[0])
    others: tuple[MapSpec, ...] = ()
    if own and config["stored_maps"] and config["maps"]["views"] > 1:
        others = (MapSpec(spec, taps, **config["maps"]),)
    return _Asked(found, spec, taps, members, others, elsewhere, tuple(notes))


def _without_run(pool: Path, start: ColdStart, taken: Taken) -> _Asked:
    found = pool_alone(pool, start.group, taken)
    spec = _spec(start, found.data)
    return _Asked(found, spec, coarsest(spec), ())


def _spec(start: ColdStart, data: Dataset) -> EncoderSpec:
    """The encoder that was named, else the best one that is here; its side follows the slices."""
    learner = Learner(encoder=start.encoder, checkpoint=start.checkpoint, side=start.side)
    return learner.suited_to(data).spec()


def _elsewhere(given: str, members: Sequence[Member], split: Split, pool: Pool) -> Dataset | None:
    """The labelled cases of the data set that was trained on, without their labels, if the pool has them not itself."""
    path = Path(given)
    if not path.exists():
        raise SamAdaptError(f"--labelled {path} does not exist; give the data set that RUN was trained on")
    data = open_like(path, members[0].model.opening, split.patient_of, labelled=False)
    there = set(split.train) & set(data.ids)
    ids = tuple(i for i in data.ids if i in there and data.groups[i] not in pool.known)
    if not there:
        raise SamAdaptError(
            f"--labelled {path} has none of the {len(split.train)} cases that RUN was trained on (the first is {split.train[0]!r}); "
            "give the data set that it was trained on"
        )
    return data.without_labels(ids) if ids else None


def _encode(
    asked: _Asked,
    vectors: FeatureVectors,
    members: Sequence[Member],
    store: FeatureStore,
    device: str,
    progress: Progress | None,
) -> None:
    """Store what will be read and is missing."""
    data, on = asked.pool.data, pick_device(device)
    open_ = asked.pool.open_to_label
    patients = [p for p in asked.pool.cases if p in open_ or p in asked.pool.known]
    compared = data[[i for p in patients for i in asked.pool.cases[p]]]
    judged = data[[i for ids in open_.values() for i in ids]]
    for maps in {member.maps.key: member.maps for member in members if member.maps is not None}.values():
        store.encode(judged, maps, on, progress=progress(len(judged)) if progress else None)
    for cases in (compared, asked.elsewhere):
        if cases is not None:
            vectors.encode(cases, on, progress)


def _by_patient(data: Dataset) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for case in data.ids:
        found.setdefault(data.groups[case], []).append(case)
    return found


# ---------------------------------------------------------------- what is said


def _notes(asked: _Asked, rows: Sequence[Suggested], has_run: bool, known: int) -> tuple[str, ...]:
    """What a reader needs to know of the choice."""
    pool, notes = asked.pool, [*asked.notes]
    notes.append(f"patients: {pool.rule}")
    notes += pool.left_out
    if has_run and not known:
        notes.append(
            "the patients that the model was trained on are not in the pool, so the suggestions may resemble them; give their data "
            "set (--labelled DATA)"
        )
    if already := [row.patient for row in rows if row.labelled]:
        notes.append(
            f"{len(already)} of these patients {'has' if len(already) == 1 else 'have'} a label file already ({already[0]}), which was not read: train with it"
        )
    return tuple(notes)


def write_suggestion(suggestion: Suggestion, path: Path) -> None:
    """A table of the patients, as CSV."""
    demand_writable(path.parent, "--out")
    columns = ["rank", "patient", "cases", "uncertainty", "distance", "labelled", "reason"]

    def number(value: float | None) -> str:
        return "" if value is None or not np.isfinite(value) else f"{value:.4f}"

    rows = [
        [
            row.rank, row.patient, " ".join(row.cases), number(row.uncertainty), number(row.distance),
            "yes" if row.labelled else "no", row.reason,
        ]
        for row in suggestion.patients
    ]  # fmt: skip
    write_csv(path, columns, rows)
