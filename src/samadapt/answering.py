"""What is answered for a case, and what is written of it: the part of `samadapt predict` that any process can do.

Each case depends on nothing but itself and, among pictures, on how many of them pass the network together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from samadapt import io
from samadapt.calibration import NAME as CALIBRATION
from samadapt.ensemble import class_answers, label_answers, model_hash
from samadapt.figures import attention_figure, save_figure
from samadapt.flips import demand_flips
from samadapt.inputs import Input
from samadapt.names import LABEL_FORMATS
from samadapt.opening import Opening
from samadapt.pictures import draw_sheet
from samadapt.postprocessing import Postprocessing
from samadapt.prediction import Classifier, Segmenter, load_run
from samadapt.records import WriteError
from samadapt.runs import read_config
from samadapt.settings import PredictOptions
from samadapt.types import Case, SamAdaptError


@dataclass(frozen=True)
class Answered:
    """What became of one case."""

    id: str
    failed: str | None = None  # what was wrong with it
    agreement: Mapping[str, float] | None = None  # class -> how far the heads agree, where several answered
    row: Mapping[str, str] | None = None  # of predictions.csv, of a classifier


@dataclass(frozen=True)
class Output:
    """What is written of each case."""

    what: PredictOptions
    legend: io.Legend | None = None

    @staticmethod
    def of(model: Segmenter | Classifier, runs: Sequence[Path], what: PredictOptions) -> Output:
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
            return Output(what)
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
            return Output(what)
        own = {} if codes is None else io.read_codes(Path(codes))
        io.demand_writer(model.classes, own)
        return Output(
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

    def maps(self, out: Path, case: str) -> Path | None:
        """The file of its probabilities; None where none are wanted."""
        return out / f"{case}.npy" if self.what.probabilities else None

    def sheet(self, out: Path, case: str) -> Path | None:
        """The file of its contact sheet; None where none is wanted."""
        return out / "pictures" / f"{case}.png" if self.what.pictures else None

    def is_there(self, out: Path, case: str) -> bool:
        """Whether all files of a segmented case are; they are written whole."""
        wanted = [path for path in (self.maps(out, case), self.sheet(out, case)) if path is not None]
        return bool(io.find_label(out, case)) and all(path.is_file() for path in wanted)


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
class PredictJob:
    """What is asked of every case. It can be sent to another process, which loads the models itself.

    Args:
        postprocessing: of label maps.
        out: the folder of the predictions.
    """

    runs: tuple[Path, ...]
    device: str
    checkpoint: str | None
    postprocessing: Postprocessing
    output: Output
    out: Path

    def identity(self) -> str:
        """Of all that the run folders have that changes the answers: the same on every machine that has the same runs."""
        digest = hashlib.sha256(model_hash(self.runs).encode())
        for path in (run / name for run in self.runs for name in ("config.json", CALIBRATION)):
            digest.update(path.read_bytes() if path.is_file() else b"-")
        return digest.hexdigest()

    def load(self) -> list[Segmenter] | list[Classifier]:
        """The heads that answer together."""
        members = [load_run(run, self.device, self.checkpoint) for run in self.runs]
        if isinstance(members[0], Segmenter):
            members[0] = replace(members[0], postprocessing=self.postprocessing)
        return members  # type: ignore[return-value]  # `demand_alike` was asked before

    def answer(self, members: Sequence[Segmenter | Classifier], cases: Sequence[Input]) -> Iterator[Answered]:
        """Each case, as its files are written. A case that cannot be predicted does not stop the others.

        Raises:
            WriteError: there is no room; the next case would fail as well.
        """
        if isinstance(members[0], Classifier):
            return self._classify([m for m in members if isinstance(m, Classifier)], cases)
        return self._segment([m for m in members if isinstance(m, Segmenter)], cases)

    def _segment(self, members: Sequence[Segmenter], cases: Sequence[Input]) -> Iterator[Answered]:
        model, known = members[0], {each.id: each for each in cases}
        failed: list[Answered] = []
        output, out = self.output, self.out
        for case, answers, agreement in label_answers(members, _loaded(cases, failed), output.what.flips):
            try:
                path = io.label_file(out, case, output.what.format)
                label = model.predict_to(
                    case, path, output.maps(out, case.id), output.what.format, output.legend, answers=answers
                )
            except WriteError:  # it is not the case's fault, and the same command goes on where there is room
                raise
            except SamAdaptError as error:
                yield Answered(case.id, known[case.id].what_failed(error))
                continue
            if (picture := output.sheet(out, case.id)) is not None:
                draw_sheet(case, model.opening.window, picture, "prediction", label, model.classes)
            yield Answered(case.id, agreement=None if agreement is None else agreement.dice())
        yield from failed

    def _classify(self, members: Sequence[Classifier], cases: Sequence[Input]) -> Iterator[Answered]:
        model, known = members[0], {each.id: each for each in cases}
        failed: list[Answered] = []
        sets = has_sets(members)
        for case, compute in class_answers(members, _loaded(cases, failed), self.output.what.flips):
            try:
                slices = compute()
            except SamAdaptError as error:
                yield Answered(case.id, known[case.id].what_failed(error))
                continue
            answer = _row(class_answer(model, slices, sets))
            self._draw(model, case, slices, answer)
            row = {"case": case.id, "split": known[case.id].planned.part, **answer}
            yield Answered(case.id, row=row)
        yield from failed

    def _draw(self, model: Classifier, case: Case, slices: Tensor, answer: Mapping[str, str]) -> None:
        if (picture := self.output.sheet(self.out, case.id)) is not None:
            said = f"{answer['prediction'] or 'none'} ({', '.join(f'{n} {v:.2f}' for n, v in zip(model.classes, slices.mean(0).tolist(), strict=True))})"
            draw_sheet(case, model.opening.window, picture, said)
        if self.output.what.attention:
            folder = self.out / "attention"
            folder.mkdir(exist_ok=True)
            draw_attention(model, case, slices, folder / f"{case.id}.png", case.id)


def has_sets(members: Sequence[Segmenter | Classifier]) -> bool:
    """Whether calibrated sets of classes are written."""
    calibration = members[0].calibration
    return len(members) == 1 and calibration is not None and calibration.least is not None


def _loaded(cases: Iterable[Input], failed: list[Answered]) -> Iterator[Case]:
    """Those that can be read; the others are noted in `failed`."""
    for each in cases:
        try:
            yield each.load()
        except SamAdaptError as error:
            failed.append(Answered(each.id, each.what_failed(error)))


def class_answer(model: Classifier, slices: Tensor, with_set: bool) -> dict[str, Any]:
    """What a classifier says of a case.

    Args:
        slices: (D, K) probabilities of each slice.
        with_set: whether its calibrated set of classes is wanted, which it must have (`has_sets`).

    Returns:
        `prediction`: the class, of a multilabel run the list of classes; `probabilities`: class -> of the case; `set`:
        list of classes, where it is wanted.
    """
    values = dict(zip(model.classes, slices.mean(0).tolist(), strict=True))
    found = [name for name, value in values.items() if value >= 0.5]
    answer: dict[str, Any] = {
        "prediction": found if model.opening.multilabel else max(values, key=lambda name: values[name]),
        "probabilities": values,
    }
    if with_set:
        assert model.calibration is not None
        answer["set"] = list(model.calibration.classes(values))
    return answer


def _row(answer: Mapping[str, Any]) -> dict[str, str]:
    """The columns of a case in `predictions.csv`."""
    prediction = answer["prediction"]
    row = {"prediction": prediction if isinstance(prediction, str) else "|".join(prediction)}
    row |= {f"prob_{n}": f"{v:.7g}" for n, v in answer["probabilities"].items()}
    return row | ({"set": "|".join(answer["set"])} if "set" in answer else {})


def draw_attention(
    model: Classifier, case: Case, slices: Tensor, path: Path, name: str | None = None
) -> None:
    """A figure of where a classifier looked.

    Args:
        slices: (D, K) probabilities of each slice.
        name: of the case, for the title.
    """
    saliency, values = model.saliency_maps(case, slices), slices.mean(0)
    answer = f"{model.classes[int(values.argmax())]} ({float(values.max()):.2f})"
    place = f"slice {saliency.slice_index}" if len(slices) > 1 else None
    what = ", ".join(each for each in (name, place) if each)
    save_figure(
        attention_figure(saliency.image, saliency.maps, f"{what}: {answer}" if what else answer), path
    )
