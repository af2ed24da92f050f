"""Folders in, folders out: what `samadapt predict` does."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from samadapt import io
from samadapt.ensemble import (
    AgreementTable,
    class_answers,
    demand_alike,
    joint_split,
    label_answers,
    member_runs,
    model_hash,
)
from samadapt.figures import attention_figure, save_figure
from samadapt.files import demand_writable, file_sha256, write_csv
from samadapt.flips import demand_flips
from samadapt.inputs import Input, Taken, find_inputs, recorded_path
from samadapt.names import LABEL_FORMATS
from samadapt.opening import Opening
from samadapt.overlap import names_of
from samadapt.pictures import draw_sheet
from samadapt.postprocessing import Postprocessing, classes_to_clean, read_postprocessing
from samadapt.predicted import NAME, Predictions, read_predictions
from samadapt.prediction import Classifier, Segmenter, load_run
from samadapt.records import WriteError
from samadapt.runs import find_run, read_config
from samadapt.settings import PredictOptions
from samadapt.types import TOGETHER, Case, SamAdaptError, encoder_names

Progress = Callable[[str], None]


@dataclass
class PredictReport:
    """What became of the cases."""

    out: Path
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # case -> what was wrong with it
    abstained: list[str] = field(default_factory=list)  # cases whose heads agree less than was asked for
    labelled: bool = False  # whether the cases are of a data set, which may have labels to score them by


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
    **options: Any,
) -> PredictReport:
    """Predict a scan, a folder of scans, or cases of a data set.

    A case that cannot be predicted does not stop the others; it is reported, and written into `predictions.json`.
    The same call again goes on where an interrupted one stopped.

    Args:
        run: a run folder, or a folder of run folders, whose heads answer together.
        inputs: an image file; a folder of images (`case_0000.nii.gz` gives `case.nii.gz`); or a data set.
        taken: how files are taken beyond what the run says: another modality, coded names, links out of the folder.
        options: fields of `PredictOptions`: which cases of a data set, and what is written of each.

    Raises:
        SamAdaptError: not one case could be predicted; then nothing is left behind.
    """
    run, out, what = find_run(run), Path(out), PredictOptions(**options)
    runs = member_runs(run)
    members = [load_run(one, device, checkpoint) for one in runs]
    demand_alike(members, runs)
    members[0] = model = _postprocessed(members[0], runs, what)
    done = model.postprocessing if isinstance(model, Segmenter) else Postprocessing()
    output = _Output.of(model, runs, what)
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
    try:
        if isinstance(model, Classifier):
            _classify([m for m in members if isinstance(m, Classifier)], cases, report, output, progress)
        else:
            _segment([m for m in members if isinstance(m, Segmenter)], cases, report, output, progress)
        if report.done:
            whole = report.done + len(report.failed) == len(cases)
            replace(note, failed=report.failed, finished=whole).write(out)
    finally:
        if fresh and not report.done:
            shutil.rmtree(out)
    if not report.done:
        raise _nothing_predicted(report)
    return report


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
    chosen = [read_postprocessing(run) for run in runs]
    of_all = tuple(
        name for name in chosen[0].keep_largest if all(name in each.keep_largest for each in chosen)
    )
    found = Postprocessing(
        classes_to_clean(what.keep_largest, model.classes) if what.keep_largest else of_all,
        min(each.smooth_slices for each in chosen) if what.smooth_slices is None else what.smooth_slices,
    )
    return replace(model, postprocessing=found)


def _nothing_predicted(report: PredictReport) -> SamAdaptError:
    first = next(iter(report.failed.values()))
    return SamAdaptError(
        first
        if len(report.failed) == 1
        else f"none of {len(report.failed)} cases could be predicted; the first: {first}"
    )


def _check_that_it_looks(model: Segmenter | Classifier, run: Path) -> None:
    """Before anything is written or deleted."""
    if not isinstance(model, Classifier):
        raise SamAdaptError(
            f"attention is drawn for classifiers; {run} is a {model.head.task} run: leave out --attention, or draw its "
            "label maps"
        )
    if not model.has_saliency:
        raise SamAdaptError(
            f"head {model.head.spec['name']!r} of {run} has no map of where it looked; leave out --attention, or train "
            "a head that has one (slca, plain, se, cbam, attentive_probe)"
        )


@dataclass(frozen=True)
class _Output:
    """What is written of each case."""

    what: PredictOptions
    legend: io.Legend | None = None

    @staticmethod
    def of(model: Segmenter | Classifier, runs: Sequence[Path], what: PredictOptions) -> _Output:
        """Checked before anything is read or written."""
        run = runs[0]
        if what.attention:
            _check_that_it_looks(model, run)
        if what.flips:
            for one in runs:
                demand_flips(read_config(one)["maps"]["augmentation"], str(one))
        if what.abstain is not None and not (isinstance(model, Segmenter) and len(runs) > 1):
            raise SamAdaptError(
                f"--abstain {what.abstain} asks how far the label maps of several heads agree, and {run} is "
                f"{'a classifier' if isinstance(model, Classifier) else 'one head'}; train several (samadapt train "
                "--heads-ensemble 3) and give their folder, or leave it out"
            )
        format, codes = what.format, what.codes
        if format is None and codes is None:
            return _Output(what)
        if not isinstance(model, Segmenter):
            raise SamAdaptError(
                f"{run} is a classifier, which writes a table; leave out --format and --codes"
            )
        if format is None:
            raise SamAdaptError(
                "codes are written into DICOM SEG; leave out --codes, or give --format dicom-seg"
            )
        if format not in LABEL_FORMATS:
            raise SamAdaptError(f"the format is {format!r}; expected one of {', '.join(LABEL_FORMATS)}")
        if not io.names_structures(format):
            if codes is not None:
                raise SamAdaptError(
                    "codes are written into DICOM SEG; leave out --codes, or give --format dicom-seg"
                )
            return _Output(what)
        own = {} if codes is None else io.read_codes(Path(codes))
        io.demand_writer(model.classes, own)
        return _Output(
            what,
            io.Legend(tuple(model.classes), own, version("samadapt"), model_hash(runs)),
        )

    def demand_allowed(self, opening: Opening) -> None:
        """Refuse to code names beside files that have them."""
        if opening.anonymous and self.legend is not None:
            raise SamAdaptError(
                f"{self.what.format} has the name and the birth date of the patient, as DICOM demands; with --anonymous, leave out "
                "--format"
            )


def _segment(
    members: Sequence[Segmenter],
    cases: Sequence[Input],
    report: PredictReport,
    output: _Output,
    progress: Progress | None,
) -> None:
    model, known = members[0], {each.id: each for each in cases}
    together = len(members) > 1
    table = AgreementTable(report.out, model.classes, output.what.abstain)

    def maps(case: str) -> Path | None:
        return report.out / f"{case}.npy" if output.what.probabilities else None

    def sheet(case: str) -> Path | None:
        return report.out / "pictures" / f"{case}.png" if output.what.pictures else None

    def is_missing(each: Input) -> bool:  # an interrupted prediction left the others: files are written whole
        wanted = [path for path in (maps(each.id), sheet(each.id)) if path is not None]
        there = io.find_label(report.out, each.id) and all(path.is_file() for path in wanted)
        there = there and (not together or each.id in table.rows)
        report.done += bool(there)
        return not there

    waiting = _loaded([each for each in cases if is_missing(each)], report)
    for case, answers, agreement in label_answers(members, waiting, output.what.flips):
        try:
            path = io.label_file(report.out, case, output.what.format)
            label = model.predict_to(
                case, path, maps(case.id), output.what.format, output.legend, answers=answers
            )
        except WriteError:  # it is not the case's fault, and the same command goes on where there is room
            raise
        except SamAdaptError as error:
            report.failed[case.id] = known[case.id].what_failed(error)
            continue
        if agreement is not None:
            table.add(case.id, agreement.dice())
        if (picture := sheet(case.id)) is not None:
            draw_sheet(case, model.opening.window, picture, "prediction", label, model.classes)
        report.done += 1
        if progress:
            progress(case.id)
    report.abstained = table.abstained


def _loaded(cases: Iterable[Input], report: PredictReport) -> Iterator[Case]:
    """Those that can be read."""
    for each in cases:
        try:
            yield each.load()
        except SamAdaptError as error:
            report.failed[each.id] = each.what_failed(error)


def _classify(
    members: Sequence[Classifier],
    cases: Sequence[Input],
    report: PredictReport,
    output: _Output,
    progress: Progress | None,
) -> None:
    model, known = members[0], {each.id: each for each in cases}
    sets = len(members) == 1 and model.calibration is not None and model.calibration.least is not None
    rows = []
    for case, compute in class_answers(members, _loaded(cases, report), output.what.flips):
        try:
            slices = compute()
        except SamAdaptError as error:
            report.failed[case.id] = known[case.id].what_failed(error)
            continue
        answer = _answer(model, slices, sets)
        rows.append({"case": case.id, "split": known[case.id].planned.part, **answer})
        if output.what.pictures:
            said = f"{answer['prediction'] or 'none'} ({', '.join(f'{n} {v:.2f}' for n, v in zip(model.classes, slices.mean(0).tolist(), strict=True))})"
            draw_sheet(case, model.opening.window, report.out / "pictures" / f"{case.id}.png", said)
        if output.what.attention:
            (report.out / "attention").mkdir(exist_ok=True)
            _draw_attention(model, case, slices, report.out / "attention" / f"{case.id}.png")
        if progress:
            progress(case.id)
    if rows:
        columns = ["case", "split", "prediction", *["set"] * sets, *(f"prob_{n}" for n in model.classes)]
        write_csv(report.out / "predictions.csv", columns, [[row[name] for name in columns] for row in rows])
    report.done = len(rows)


def _answer(model: Classifier, slices: Tensor, with_set: bool) -> dict[str, str]:
    """The columns of a case in `predictions.csv`.

    Args:
        with_set: whether one of them is the calibrated set of classes.
    """
    values = dict(zip(model.classes, slices.mean(0).tolist(), strict=True))
    if model.opening.multilabel:
        prediction = "|".join(name for name, value in values.items() if value >= 0.5)
    else:
        prediction = max(values, key=lambda name: values[name])
    answer = {"prediction": prediction} | {f"prob_{n}": f"{v:.7g}" for n, v in values.items()}
    if with_set:
        assert model.calibration is not None
        answer["set"] = "|".join(model.calibration.classes(values))
    return answer


def _draw_attention(model: Classifier, case: Case, slices: Tensor, path: Path) -> None:
    saliency, values = model.saliency_maps(case, slices), slices.mean(0)
    answer = f"{model.classes[int(values.argmax())]} ({float(values.max()):.2f})"
    place = f", slice {saliency.slice_index}" if len(slices) > 1 else ""
    save_figure(attention_figure(saliency.image, saliency.maps, f"{case.id}{place}: {answer}"), path)


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
