"""From a case to an answer in the file's own geometry, and from answers to scores."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from samadapt import io
from samadapt.adapted import AdaptedModel
from samadapt.ahead import ahead
from samadapt.calibration import Calibration, read_calibration
from samadapt.encoders import ENCODERS, EncoderSpec, versions_in
from samadapt.heads import build_head
from samadapt.heads.classification import SaliencyHead
from samadapt.opening import Opening
from samadapt.postprocessing import UNCHANGED, Postprocessing, keep_largest, smoothed
from samadapt.runs import find_run, load_state, pick_device, read_config
from samadapt.transforms import identity_of, to_original
from samadapt.tuning import TUNINGS
from samadapt.types import IDENTITY, PIXELS, Case, Frame, Head, SamAdaptError, encoder_names
from samadapt.views import CaseView, View

Maps = Mapping[str, np.ndarray]  # tap -> (V, D, C, h, w), as a FeatureStore reads them


@dataclass(frozen=True)
class _Seen:
    """A slice as it goes in, or why its case cannot."""

    number: int  # of the case in its row
    case: Case
    stored: bool  # whether its maps are
    index: int = 0
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    frame: Frame | None = None
    problem: SamAdaptError | None = None

    def may_follow(self, other: _Seen) -> bool:
        """Whether both may pass the network in one batch: slices of one case, or pictures."""
        return self.number == other.number or self.case.image.shape[1] == other.case.image.shape[1] == 1


def _sound(answers: Iterable[tuple[_Seen, Tensor | None]]) -> Iterator[tuple[Tensor, Frame]]:
    """The logits of a case, as long as nothing is wrong with them."""
    for seen, logits in answers:
        if seen.problem is not None:
            raise seen.problem
        assert logits is not None and seen.frame is not None
        if not torch.isfinite(logits).all():
            raise SamAdaptError(
                f"the head's answer for case {seen.case.id!r} is not finite in slice {seen.index}; "
                "check the image, the checkpoint and the training's loss (metrics.csv)"
            )
        yield logits, seen.frame


@dataclass(frozen=True)
class Predictor:
    """A trained model, and how a file becomes its input."""

    model: AdaptedModel
    opening: Opening
    batch_size: int = 4  # slices that pass the encoder together
    calibration: Calibration | None = None  # fitted on selection cases after the training

    @property
    def head(self) -> Head:
        return self.model.head

    @property
    def view(self) -> View:
        """How it sees slices."""
        return self.model.spec.view(self.opening.window)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.opening.classes

    def case(self, image: Case | str | Path | Sequence[str | Path]) -> Case:
        """A case from a file, from its channel files, or the case itself."""
        if isinstance(image, Case):
            return image
        files = [Path(image)] if isinstance(image, str | Path) else [Path(path) for path in image]
        if len(files) > 1:
            return self.opening.read_case(files, io.case_name(files[0], channels=True))
        ((name, paths),) = io.group_channels(files).items()  # `scan_0000` is `scan`, `IMG_0001` is itself
        return self.opening.read_case(paths, name)

    def logits(self, case: Case, maps: Maps | None = None) -> Iterator[tuple[Tensor, Frame]]:
        """Per slice, in order: the head's logits, (K, h, w) or (K,), and where the slice lies in the square.

        Args:
            maps: stored maps of this case (view 0 is used); without them the encoder runs.
        """
        return next(self.all_logits([(case, maps)]))[1]

    def all_logits(
        self, cases: Iterable[tuple[Case, Maps | None]], read_ahead: bool = True
    ) -> Iterator[tuple[Case, Iterator[tuple[Tensor, Frame]]]]:
        """`logits` of one case after the other, each with its case; take what is needed of one before the next.

        Pictures, which are volumes of one slice, pass the network together. A volume shares no batch with another case, for the last
        digits depend on its size. The next slices, and the next cases, are read while the network computes. What is wrong
        with a case is raised by its own logits; the others go on.

        Args:
            read_ahead: whether cases are read in a second thread; whoever measures what reading takes does not want it.
        """
        seen = self._seen(cases)
        slices_in_order = ahead(seen, 2 * self.max_batch(True)) if read_ahead else seen
        for _, of_case in itertools.groupby(self._answers(slices_in_order), lambda answer: answer[0].number):
            answers = iter(of_case)
            first = next(answers)
            yield first[0].case, _sound(itertools.chain([first], answers))

    @torch.inference_mode()
    def _answers(self, slices: Generator[_Seen]) -> Iterator[tuple[_Seen, Tensor | None]]:
        batch: list[_Seen] = []
        with closing(slices):
            for seen in slices:
                if batch and not seen.may_follow(batch[-1]):
                    yield from self._answer(batch)
                    batch = []
                batch.append(seen)
                if len(batch) >= self.max_batch(seen.stored):
                    yield from self._answer(batch)
                    batch = []
            if batch:
                yield from self._answer(batch)

    def _seen(self, cases: Iterable[tuple[Case, Maps | None]]) -> Generator[_Seen]:
        for number, (case, maps) in enumerate(cases):
            stored = maps is not None
            try:
                seen = self.view.of(case)
                for index in range(case.image.shape[1]):
                    yield _Seen(number, case, stored, index, *self.inputs(seen, index, maps))
            except SamAdaptError as error:
                yield _Seen(number, case, stored, problem=error)

    def _answer(self, batch: Sequence[_Seen]) -> Iterator[tuple[_Seen, Tensor | None]]:
        given = [seen.inputs for seen in batch if seen.problem is None]
        logits = self.head(self.features(given)).float().cpu() if given else torch.empty(0)
        answers = iter(logits if self.calibration is None else logits / self.calibration.temperature)
        for seen in batch:
            yield seen, next(answers) if seen.problem is None else None

    def max_batch(self, stored: bool) -> int:
        """How many slices pass the network together.

        Args:
            stored: whether the encoder's maps are given.
        """
        return self.batch_size

    def inputs(self, seen: CaseView, index: int, maps: Maps | None = None) -> tuple[dict[str, Tensor], Frame]:
        """Of one slice: its pixels in the square and its stored maps, (C, h, w) each; and where it lies in the square."""
        pixels, frame, _ = seen(index)
        stored = {
            tap: torch.from_numpy(np.asarray(m[0, index], np.float32)) for tap, m in (maps or {}).items()
        }
        own = {IDENTITY: identity_of(seen.case)} if IDENTITY in self.head.reads else {}
        return {PIXELS: pixels} | own | stored, frame

    def features(self, slices: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """What the head reads of some slices, {tap: (B, C, h, w)}; the encoder runs where no maps were stored."""
        given = {tap: torch.stack([inputs[tap] for inputs in slices]) for tap in slices[0]}
        return self.model.features({tap: x.to(self.model.device) for tap, x in given.items()})


@dataclass(frozen=True)
class Segmenter(Predictor):
    """A label map for a case."""

    postprocessing: Postprocessing = UNCHANGED

    def answers(self, case: Case, maps: Maps | None = None) -> Iterator[Tensor]:
        """Per slice, in order: logits (K, H, W) on the file's own pixels; one slice of them exists at a time."""
        return (to_original(*answer) for answer in self.logits(case, maps))

    def all_answers(self, cases: Iterable[Case]) -> Iterator[tuple[Case, Iterator[Tensor]]]:
        """`answers` of one case after the other, faster than one by one; see `all_logits`."""
        for case, logits in self.all_logits((case, None) for case in cases):
            yield case, (to_original(*answer) for answer in logits)

    def predict(
        self, image: Case | str | Path | Sequence[str | Path], maps: Maps | None = None
    ) -> np.ndarray:
        """(D, H, W) uint8, in the file's own grid."""
        case = self.case(image)
        return self.label_map(case, self.answers(case, maps))

    def label_map(self, case: Case, answers: Iterable[Tensor]) -> np.ndarray:
        """(D, H, W) uint8 of what `answers` gives of a case, slice by slice."""
        label = np.empty(tuple(case.image.shape[1:]), np.uint8)
        for index, logits in enumerate(self.smooth(answers)):
            label[index] = logits.argmax(0).numpy()
        return self._cleaned(label)

    def smooth(self, answers: Iterable[Tensor]) -> Iterable[Tensor]:
        """Answers, or what is averaged of them over slices where that was chosen."""
        return smoothed(answers, self.postprocessing.smooth_slices)

    def _cleaned(self, label: np.ndarray) -> np.ndarray:
        return keep_largest(label, [self.classes.index(name) for name in self.postprocessing.keep_largest])

    def predict_to(
        self,
        case: Case,
        path: Path,
        probabilities: Path | None = None,
        asked: str | None = None,
        legend: io.Legend | None = None,
        *,
        answers: Iterable[Tensor] | None = None,
    ) -> np.ndarray:
        """Write the label map (and the probabilities, .npy) with the source's geometry and header; the label map.

        Args:
            asked, legend: as for `io.write_label`.
            answers: of this case, from `all_answers`; None: they are computed.
        """
        found = self.answers(case) if answers is None else answers
        if probabilities is None:
            label = self.label_map(case, found)
            io.write_label(path, label, case, asked, legend)
            return label
        label = np.empty(tuple(case.image.shape[1:]), np.uint8)

        def slices() -> Iterator[Tensor]:
            for index, logits in enumerate(self.smooth(found)):
                label[index] = logits.argmax(0).numpy()
                yield logits.softmax(0)

        io.write_probabilities(probabilities, slices(), len(self.classes), case)
        label = self._cleaned(label)
        io.write_label(path, label, case, asked, legend)
        return label


@dataclass(frozen=True)
class Saliency:
    """Where a classifier looked, in one slice of a case."""

    slice_index: int
    image: np.ndarray  # (C, H, W) in the window, 0..255
    maps: Mapping[str, np.ndarray]  # title -> (H, W) float32 on the slice's own pixels


@dataclass(frozen=True)
class Classifier(Predictor):
    """Class probabilities for a case; a volume's are the mean of its slices'."""

    def predict(
        self, image: Case | str | Path | Sequence[str | Path], maps: Maps | None = None
    ) -> np.ndarray:
        """(K,) float32 probabilities; independent ones where a case can have several classes."""
        return self.predict_slices(self.case(image), maps).mean(0).numpy()

    def predict_slices(self, case: Case, maps: Maps | None = None) -> Tensor:
        """(D, K) probabilities of every slice."""
        return self.probabilities(self.logits(case, maps))

    def predict_all(
        self, cases: Iterable[tuple[Case, Maps | None]], read_ahead: bool = True
    ) -> Iterator[tuple[Case, Tensor]]:
        """Cases (with their stored maps, or None) -> each with its (D, K) probabilities, in their order.

        Small pictures take a fraction of the time that they take one by one.
        """
        return ((case, self.probabilities(logits)) for case, logits in self.all_logits(cases, read_ahead))

    def probabilities(self, logits: Iterable[tuple[Tensor, Frame]]) -> Tensor:
        """(D, K) of the logits of a case's slices."""
        rows = torch.stack([row for row, _ in logits])
        return rows.sigmoid() if self.opening.multilabel else rows.softmax(1)

    def max_batch(self, stored: bool) -> int:
        """More where no encoder runs, which is what takes the memory."""
        return 4 * self.batch_size if stored or self.head.pixels_only else self.batch_size

    @property
    def has_saliency(self) -> bool:
        """Whether the head can say where it looked."""
        return isinstance(self.head, SaliencyHead)

    @torch.inference_mode()
    def saliency_maps(self, case: Case, slices: Tensor, maps: Maps | None = None) -> Saliency:
        """Where the head looked, in the slice in which the case's likeliest class is likeliest.

        Args:
            slices: the answer of `predict_slices`.
            maps: as for `predict`.
        """
        if not isinstance(self.head, SaliencyHead):
            raise SamAdaptError(
                f"head {self.head.spec['name']!r} cannot say where it looked; heads with a network (slca, plain, ...) "
                "and attentive_probe can"
            )
        chosen = slices.mean(0).argmax()
        index, seen = int(slices[:, chosen].argmax()), self.view.of(case)
        inputs, frame = self.inputs(seen, index, maps)
        found = self.head.saliency(self.features([inputs]), chosen[None])
        placed = {title: to_original(x.float().cpu(), frame)[0].numpy() for title, x in found.items()}
        return Saliency(index, seen.windowed(index).numpy(), placed)


_PREDICTORS: dict[str, type[Segmenter] | type[Classifier]] = {
    "segmentation": Segmenter,
    "classification": Classifier,
}


def load_run(
    run: str | Path, device: str = "auto", checkpoint: str | None = None, maps_stored: bool = False
) -> Segmenter | Classifier:
    """The model of a finished run folder.

    Args:
        run: the folder, or `OWNER/NAME@REVISION` of a run on the Hugging Face hub.
        checkpoint: where the encoder's weights are on this machine, if not where they were.
        maps_stored: whether its maps will be given, so that a frozen encoder's network need not be loaded.
    """
    run = find_run(run)
    config = read_config(run)
    included = bool(
        config.get("encoder_included")
    )  # with the encoder's weights in it, as an export for the hub may be
    with _described(run):
        tuning, named = TUNINGS[config["train"]["tune"]], dict(config["encoder"])
        if checkpoint is not None:
            named["checkpoint"] = checkpoint
        _demand_same_network(named["name"], config["encoder_fingerprint"], run)
    try:
        with _described(run):
            spec = EncoderSpec(**named)
        if not (tuning.whole or included) and spec.fingerprint != config["encoder_fingerprint"]:
            raise SamAdaptError(
                f"the weights of encoder {spec.name!r} are not those that it was trained with (fingerprint "
                f"{spec.fingerprint!r}, expected {config['encoder_fingerprint']!r})"
            )
        with _described(run):
            head = build_head(taps=spec.taps, **config["head"])
        model = AdaptedModel(spec, head.to(pick_device(device)))
        if not maps_stored or not tuning.frozen:
            model.load(drawn=tuning.whole or included)
    except SamAdaptError as error:
        cure = "give --checkpoint and where its weights are on this machine"
        if len(encoder_names(named["name"])) > 1:
            cure = "the weights of all of them must be on this machine, those that it was trained with"
        raise SamAdaptError(f"{error} (the run {run} reads encoder {named['name']!r}: {cure})") from error
    if model.extractor is not None:
        if included and not tuning.whole:
            load_state(model.extractor.network, run / "encoder.safetensors")
        tuning.restore(model.extractor, run)
        model.encoder_trained = sum(
            x.numel() for x in tuning.tensors(model.extractor).values() if isinstance(x, nn.Parameter)
        )
        tuning.merge(model.extractor)
    load_state(head, run / "head.safetensors")
    return replace(
        build_predictor(model, Opening.from_json(config["opening"], run)), calibration=read_calibration(run)
    )


@contextmanager
def _described(run: Path) -> Iterator[None]:
    """What `config.json` lacks, or has too much, is said of it."""
    try:
        yield
    except SamAdaptError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SamAdaptError(
            f"{run / 'config.json'} does not describe a model ({type(error).__name__}: {error}); it was edited or damaged: copy "
            "the whole run folder again"
        ) from error


def _demand_same_network(name: str, fingerprint: str, run: Path) -> None:
    """Before its weights are looked for: whether an encoder, or each of several, still computes what it did."""
    for one, then in zip(encoder_names(name), versions_in(fingerprint), strict=True):
        entry = ENCODERS.get(one)
        if entry is not None and then != entry.version:
            raise SamAdaptError(
                f"{run} was trained on encoder {one!r} of another version of samadapt, which gave other maps from the same "
                f"weights ({then} there, {entry.version} now); train again"
            )


def build_predictor(model: AdaptedModel, opening: Opening) -> Segmenter | Classifier:
    """From parts already built."""
    return _PREDICTORS[model.head.task](model.eval(), opening)
