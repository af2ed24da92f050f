"""Folders in, folders out: what `samadapt predict` does."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from samadapt.answering import Answered, Output, PredictJob, has_sets
from samadapt.ensemble import AgreementTable, demand_alike, joint_split, member_runs, model_hash
from samadapt.files import demand_writable, file_sha256, write_csv
from samadapt.inputs import Input, Taken, find_inputs, recorded_path
from samadapt.opening import Opening
from samadapt.overlap import names_of
from samadapt.postprocessing import Postprocessing, classes_to_clean, read_postprocessing
from samadapt.predicted import NAME, Predictions, read_predictions
from samadapt.prediction import Classifier, Segmenter, load_run
from samadapt.runs import find_run
from samadapt.settings import PredictOptions
from samadapt.types import TOGETHER, SamAdaptError, encoder_names

Progress = Callable[[str], None]


class Spread(Protocol):
    """`PredictJob.answer` as others do it, in the order of the cases."""

    def __call__(self, job: PredictJob, cases: Sequence[Input], *, together: int) -> Iterator[Answered]:
        """See `PredictJob.answer`.

        Args:
            together: how many pictures pass the network at once; the last digits depend on it.
        """


@dataclass
class PredictReport:
    """What became of the cases."""

    out: Path
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # case -> what was wrong with it
    abstained: list[str] = field(default_factory=list)  # cases whose heads agree less than was asked for
    labelled: bool = False  # whether the cases are of a data set, which may have labels to score them by

    @property
    def tried(self) -> int:
        return self.done + len(self.failed)


def predict_folder(
    run: str | Path,
    inputs: str | Path,
    out: str | Path,
    *,
    device: str = "auto",
    checkpoint: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    taken: Taken | None = None,
    spread: Spread | None = None,
    **options: Any,
) -> PredictReport:
    """Predict a scan, a folder of scans, or cases of a data set.

    A case that cannot be predicted does not stop the others; it is reported, and written into `predictions.json`.
    The same call again goes on where an interrupted one stopped.

    Args:
        run: a run folder, or a folder of run folders, whose heads answer together.
        inputs: an image file; a folder of images (`case_0000.nii.gz` gives `case.nii.gz`); or a data set.
        taken: how files are taken beyond what the run says: another modality, coded names, links out of the folder.
        spread: answers in place of this process, as on a cluster.
        options: fields of `PredictOptions`: which cases of a data set, and what is written of each.

    Raises:
        SamAdaptError: not one case could be predicted; then nothing is left behind.
    """
    run, out, what = find_run(run), Path(out), PredictOptions(**options)
    runs = member_runs(run)
    members = load_heads(runs, device, checkpoint, what)
    model = members[0]
    done = model.postprocessing if isinstance(model, Segmenter) else Postprocessing()
    output = Output.of(model, runs, what)
    cases, opening = find_inputs(
        Path(inputs), model.opening, joint_split(runs), what.subset, taken or Taken()
    )
    output.demand_allowed(opening)
    encoder, own = _weights_read(members)
    where, names = _where(Path(inputs), opening)
    note = Predictions(
        str(run), model_hash(runs), where, what.subset, opening,
        {case.id: case.planned for case in cases}, encoder=encoder, checkpoint=own, label_format=what.format, names=names,
        codes=None if what.codes is None else file_sha256(what.codes), keep_largest=done.keep_largest, smooth_slices=done.smooth_slices, flips=what.flips, abstain=what.abstain,
    )  # fmt: skip
    fresh = _open_output(out, note, overwrite)
    report = PredictReport(out, labelled=any(case.of_data_set for case in cases))
    job = PredictJob(runs, device, checkpoint, done, output, out)
    answer = partial(spread, job, together=model.max_batch(False)) if spread else partial(job.answer, members)
    try:
        collect = _rows if isinstance(model, Classifier) else _label_maps
        collect(members, cases, report, job, answer, progress)
        if report.done:
            replace(note, failed=report.failed, finished=report.tried == len(cases)).write(out)
    finally:
        # On a cluster, cases may be answered that were not reported yet when it stopped: they are kept, to go on from.
        if fresh and not report.done and not any(output.is_there(out, case.id) for case in cases):
            shutil.rmtree(out)
    return _demand_any(report)


def load_heads(
    runs: Sequence[Path],
    device: str = "auto",
    checkpoint: str | None = None,
    what: PredictOptions = PredictOptions(),  # noqa: B008 (it is frozen)
) -> list[Segmenter | Classifier]:
    """The models of run folders that answer together; the first one postprocesses as was asked for, else as trained.

    Args:
        runs: as `ensemble.member_runs` gives them.
        device, checkpoint: as for `load_run`.
        what: of which the postprocessing counts here.
    """
    members = [load_run(one, device, checkpoint) for one in runs]
    demand_alike(members, runs)
    members[0] = _postprocessed(members[0], runs, what)
    return members


def _where(inputs: Path, opening: Opening) -> tuple[str, tuple[str, ...]]:
    """Where the inputs are, and what they are called, as far as it may be written down."""
    where = recorded_path(inputs, opening)
    return where, tuple(names_of(inputs.resolve())) if where == str(inputs.resolve()) else ()


def _weights_read(members: Sequence[Segmenter | Classifier]) -> tuple[str | None, str | None]:
    """Which encoders' trained weights the answers rest on, and the user's own file of them, if they are that."""
    names: list[str] = []
    own: str | None = None
    for model in members:
        spec, head = model.model.spec, model.head
        if spec.pretrained and head.uses_encoder and not head.pixels_only:
            names += encoder_names(spec.name)
            published = spec.checkpoint is None or spec.entry.is_published(spec.checkpoint)
            own = own if published else spec.checkpoint
    return TOGETHER.join(dict.fromkeys(names)) or None, own


def _postprocessed(
    model: Segmenter | Classifier, runs: Sequence[Path], what: PredictOptions
) -> Segmenter | Classifier:
    """The model with what was asked for, else with what every training chose."""
    if isinstance(model, Classifier):
        asked = {"--keep-largest": what.keep_largest != (), "--smooth-slices": what.smooth_slices is not None}
        for flag in (flag for flag, given in asked.items() if given):
            raise SamAdaptError(f"{runs[0]} is a classifier, which has no label maps; leave out {flag}")
        return model
    chosen = [read_postprocessing(run, model.classes) for run in runs]
    of_all = tuple(
        name for name in chosen[0].keep_largest if all(name in each.keep_largest for each in chosen)
    )
    found = Postprocessing(
        classes_to_clean(what.keep_largest, model.classes) if what.keep_largest else of_all,
        min(each.smooth_slices for each in chosen) if what.smooth_slices is None else what.smooth_slices,
    )
    return replace(model, postprocessing=found)


def _demand_any(report: PredictReport) -> PredictReport:
    if report.done:
        return report
    first = next(iter(report.failed.values()))
    raise SamAdaptError(
        first
        if len(report.failed) == 1
        else f"none of {len(report.failed)} cases could be predicted; the first: {first}"
    )


def _label_maps(
    members: Sequence[Segmenter | Classifier],
    cases: Sequence[Input],
    report: PredictReport,
    job: PredictJob,
    answer: Callable[[Sequence[Input]], Iterator[Answered]],
    progress: Progress | None,
) -> None:
    """What an interrupted prediction left is kept; the rest is answered and counted."""
    together = len(members) > 1
    table = AgreementTable(report.out, members[0].classes, job.output.what.abstain)
    there = {
        c.id for c in cases if job.output.is_there(report.out, c.id) and (not together or c.id in table.rows)
    }
    report.done = len(there)
    for answered in answer([case for case in cases if case.id not in there]):
        if answered.failed is not None:
            report.failed[answered.id] = answered.failed
            continue
        if answered.agreement is not None:
            table.add(answered.id, answered.agreement)
        report.done += 1
        if progress:
            progress(answered.id)
    report.abstained = table.abstained


def _rows(
    members: Sequence[Segmenter | Classifier],
    cases: Sequence[Input],
    report: PredictReport,
    job: PredictJob,
    answer: Callable[[Sequence[Input]], Iterator[Answered]],
    progress: Progress | None,
) -> None:
    """The table of a classifier, which is written when all cases were answered."""
    rows: list[Mapping[str, str]] = []
    for answered in answer(cases):
        if answered.failed is not None:
            report.failed[answered.id] = answered.failed
        elif answered.row is not None:
            rows.append(answered.row)
            if progress:
                progress(answered.id)
    if rows:
        columns = [
            "case",
            "split",
            "prediction",
            *["set"] * has_sets(members),
            *(f"prob_{n}" for n in members[0].classes),
        ]
        write_csv(report.out / "predictions.csv", columns, [[row[name] for name in columns] for row in rows])
    report.done = len(rows)


def _open_output(out: Path, note: Predictions, overwrite: bool) -> bool:
    """The folder with its note; False where an interrupted prediction of the same cases left some of them in it."""
    if out.is_dir() and any(out.iterdir()):
        if not overwrite and _goes_on(out, note):
            return False
        if not overwrite:
            raise SamAdaptError(f"{out} is not empty; choose another --out or give --overwrite")
        if not (out / NAME).is_file():
            raise SamAdaptError(
                f"{out} holds no predictions of ours; --overwrite deletes prediction folders only"
            )
        shutil.rmtree(out)
    demand_writable(out, "--out")
    out.mkdir(parents=True, exist_ok=True)
    note.write(out)  # written again at the end; from now on the folder is known as ours
    return True


def _goes_on(out: Path, note: Predictions) -> bool:
    try:
        before = read_predictions(out)
    except SamAdaptError:
        return False
    return before is not None and not before.finished and before.same_task(note)
