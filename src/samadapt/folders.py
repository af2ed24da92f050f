"""Folders in, folders out: what `samadapt predict` does."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from samadapt import io
from samadapt.figures import attention_figure, save_figure
from samadapt.files import demand_writable, file_sha256, write_csv
from samadapt.inputs import Input, Taken, find_inputs, split_of
from samadapt.names import LABEL_FORMATS
from samadapt.opening import Opening
from samadapt.overlap import names_of
from samadapt.predicted import NAME, Predictions, read_predictions
from samadapt.prediction import Classifier, Segmenter, load_run
from samadapt.records import WriteError
from samadapt.types import Case, SamAdaptError

Progress = Callable[[str], None]


@dataclass
class PredictReport:
    """What became of the cases."""

    out: Path
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # case -> what was wrong with it


def predict_folder(
    run: str | Path,
    inputs: str | Path,
    out: str | Path,
    *,
    subset: str | None = None,
    probabilities: bool = False,
    attention: bool = False,
    device: str = "auto",
    checkpoint: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    format: str | None = None,
    codes: str | Path | None = None,
    taken: Taken | None = None,
) -> PredictReport:
    """Predict a scan, a folder of scans, or cases of a data set.

    A case that cannot be predicted does not stop the others; it is reported, and written into `predictions.json`.
    The same call again goes on where an interrupted one stopped.

    Args:
        inputs: an image file; a folder of images (`case_0000.nii.gz` gives `case.nii.gz`); or a data set.
        subset: of a data set: a part of its official split or, where it has none, of the run's ("train", "select",
            "val"), or "all". None: the cases that the run's split keeps for scoring, else all.
        probabilities: also write the class probabilities of label maps, `CASE.npy`.
        attention: of a classifier: also draw where it looked, `attention/<case>.png`.
        format: of the label maps, a name in `names.LABEL_FORMATS`; None: that of the scans, NIfTI where it cannot be written.
        codes: a CSV of class, value, meaning (and scheme, category): what the classes are in a DICOM SEG.
        taken: how files are taken beyond what the run says: another modality, coded names, links out of the folder.

    Raises:
        SamAdaptError: not one case could be predicted; then nothing is left behind.
    """
    run, out = Path(run), Path(out)
    model = load_run(run, device, checkpoint)
    output = _Output.of(model, run, format, codes, attention)
    cases, opening = find_inputs(Path(inputs), model.opening, split_of(run), subset, taken or Taken())
    output.demand_allowed(opening)
    encoder, own = _weights_read(model)
    note = Predictions(
        str(run), file_sha256(run / "head.safetensors"), str(Path(inputs).resolve()), subset, opening,
        {case.id: case.planned for case in cases}, encoder=encoder, checkpoint=own, label_format=format,
        names=tuple(names_of(Path(inputs).resolve())), codes=None if codes is None else file_sha256(codes),
    )  # fmt: skip
    fresh = _open_output(out, note, overwrite)
    report = PredictReport(out)
    try:
        if isinstance(model, Classifier):
            _classify(model, cases, report, attention, progress)
        else:
            _segment(model, cases, report, replace(output, probabilities=probabilities), progress)
        if report.done:
            replace(note, failed=report.failed, finished=True).write(out)
    finally:
        if fresh and not report.done:
            shutil.rmtree(out)
    if not report.done:
        raise _nothing_predicted(report)
    return report


def _weights_read(model: Segmenter | Classifier) -> tuple[str | None, str | None]:
    """Which encoder's trained weights the answers rest on, and the user's own file of them, if they are that."""
    spec, head = model.model.spec, model.head
    if not (spec.pretrained and head.uses_encoder) or head.pixels_only:
        return None, None
    own = spec.checkpoint is not None and not spec.entry.is_published(spec.checkpoint)
    return spec.name, spec.checkpoint if own else None


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

    format: str | None = None
    legend: io.Legend | None = None
    probabilities: bool = False

    @staticmethod
    def of(
        model: Segmenter | Classifier,
        run: Path,
        format: str | None,
        codes: str | Path | None,
        attention: bool,
    ) -> _Output:
        """Checked before anything is read or written."""
        if attention:
            _check_that_it_looks(model, run)
        if format is None and codes is None:
            return _Output()
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
            return _Output(format)
        own = {} if codes is None else io.read_codes(Path(codes))
        io.demand_writer(model.classes, own)
        return _Output(
            format,
            io.Legend(tuple(model.classes), own, version("samadapt"), file_sha256(run / "head.safetensors")),
        )

    def demand_allowed(self, opening: Opening) -> None:
        """Refuse to code names beside files that have them."""
        if opening.anonymous and self.legend is not None:
            raise SamAdaptError(
                f"{self.format} has the name and the birth date of the patient, as DICOM demands; with --anonymous, leave out "
                "--format"
            )


def _segment(
    model: Segmenter,
    cases: Sequence[Input],
    report: PredictReport,
    output: _Output,
    progress: Progress | None,
) -> None:
    known = {each.id: each for each in cases}

    def maps(case: str) -> Path | None:
        return report.out / f"{case}.npy" if output.probabilities else None

    def is_missing(each: Input) -> bool:  # an interrupted prediction left the others: files are written whole
        wanted = maps(each.id)
        there = io.find_label(report.out, each.id) and (wanted is None or wanted.is_file())
        report.done += bool(there)
        return not there

    waiting = _loaded([each for each in cases if is_missing(each)], report)
    for case, answers in model.all_answers(waiting):
        try:
            path = io.label_file(report.out, case, output.format)
            model.predict_to(case, path, maps(case.id), output.format, output.legend, answers=answers)
        except WriteError:  # it is not the case's fault, and the same command goes on where there is room
            raise
        except SamAdaptError as error:
            report.failed[case.id] = known[case.id].what_failed(error)
            continue
        report.done += 1
        if progress:
            progress(case.id)


def _loaded(cases: Iterable[Input], report: PredictReport) -> Iterator[Case]:
    """Those that can be read."""
    for each in cases:
        try:
            yield each.load()
        except SamAdaptError as error:
            report.failed[each.id] = each.what_failed(error)


def _classify(
    model: Classifier,
    cases: Sequence[Input],
    report: PredictReport,
    attention: bool,
    progress: Progress | None,
) -> None:
    known = {each.id: each for each in cases}
    rows = []
    for case, logits in model.all_logits((case, None) for case in _loaded(cases, report)):
        try:
            slices = model.probabilities(logits)
        except SamAdaptError as error:
            report.failed[case.id] = known[case.id].what_failed(error)
            continue
        rows.append({"case": case.id, "split": known[case.id].planned.part, **_answer(model, slices)})
        if attention:
            (report.out / "attention").mkdir(exist_ok=True)
            _draw_attention(model, case, slices, report.out / "attention" / f"{case.id}.png")
        if progress:
            progress(case.id)
    if rows:
        columns = ["case", "split", "prediction", *(f"prob_{n}" for n in model.classes)]
        write_csv(report.out / "predictions.csv", columns, [[row[name] for name in columns] for row in rows])
    report.done = len(rows)


def _answer(model: Classifier, slices: Tensor) -> dict[str, str]:
    """The columns of a case in `predictions.csv`."""
    values = slices.mean(0).tolist()
    if model.opening.multilabel:
        prediction = "|".join(name for name, value in zip(model.classes, values, strict=True) if value >= 0.5)
    else:
        prediction = model.classes[int(slices.mean(0).argmax())]
    return {"prediction": prediction} | {
        f"prob_{n}": f"{v:.7g}" for n, v in zip(model.classes, values, strict=True)
    }


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
