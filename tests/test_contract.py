"""One contract over all tables: each entry brings its tiny variant, and this test knows no names.

What a family must do beyond this stands in its own tests; a new entry is held to this by being in its table.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from samadapt import io, names
from samadapt.backbones import BACKBONES
from samadapt.datasets.layouts import LAYOUTS
from samadapt.encoders import ENCODERS, EncoderSpec
from samadapt.experiment.registry import METHODS, BaselineOptions
from samadapt.features import MapSpec
from samadapt.heads import HEADS, build_head
from samadapt.learner import Learner
from samadapt.losses import LOSSES
from samadapt.metrics import METRICS
from samadapt.overlap import training_of
from samadapt.records import ROLES
from samadapt.training.loggers import LOGGERS, Logger
from samadapt.transforms import AUGMENTATIONS
from samadapt.tuning import TUNINGS
from samadapt.types import IDENTITY, LABEL_GRID, PIXELS
from samadapt.views.prepare import PREPARES, units_of

BASE = EncoderSpec("sam_nano", side=64)


def encoder(name: str, entry: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tiny variant gives the taps that it declares, and nothing of it is trained."""
    assert entry.name == name in names.ENCODERS and entry.text and training_of(name).text
    tiny = entry.tiny or entry
    monkeypatch.setitem(ENCODERS, tiny.name, tiny)
    spec = EncoderSpec(tiny.name, "random" if tiny.published else None, max(64, tiny.least))
    assert EncoderSpec(**json.loads(json.dumps(spec.to_json()))) == spec
    extractor = spec.load()
    found = extractor(torch.randn(2, *spec.taps[PIXELS]))
    assert {tap: tuple(x.shape[1:]) for tap, x in found.items()} == spec.taps
    assert not any(p.requires_grad for p in extractor.parameters())


def head(name: str, kind: Any, *_: Any) -> None:
    """Its tiny variant reads what the encoder gives, has a finite loss with a gradient, and its spec builds it again."""
    assert names.HEADS[name] == kind.task and kind.__doc__
    built = build_head(name, BASE.taps, 3, **kind.tiny)
    MapSpec(BASE, built.reads)  # refuses taps that the encoder does not have
    shapes = {tap: BASE.taps[tap] for tap in built.reads if tap != IDENTITY}
    x = {tap: torch.randn(4, *shape) for tap, shape in shapes.items()}
    x |= {IDENTITY: torch.arange(4.0)[:, None]} if IDENTITY in built.reads else {}
    target = torch.arange(4) % 3
    if kind.task == "segmentation":
        target = torch.eye(3)[torch.randint(3, (4, LABEL_GRID, LABEL_GRID))].permute(0, 3, 1, 2)
    loss = built.loss(x, target)
    loss.backward()
    assert loss.isfinite() and any(p.grad is not None for p in built.parameters())
    again = build_head(taps=BASE.taps, **json.loads(json.dumps(built.spec)))
    assert again.spec == built.spec and set(again.state_dict()) == set(built.state_dict())


def backbone(name: str, build: Any, *_: Any) -> None:
    """It gives the stages that it declares; on no memory, since some are large."""
    assert name in names.BACKBONES
    found: dict[str, int] = {}
    with torch.device("meta"):
        network = build(False)
        last = network(
            torch.zeros(2, 3, network.side, network.side), lambda s, y: found.update({s: y.shape[1]}) or y
        )
    assert found == network.stages and last.shape[:2] == (2, network.channels)


def tuning(name: str, entry: Any, tmp_path: Path, *_: Any) -> None:
    """A frozen one trains nothing; another one comes back from the run folder as it was left."""
    assert name in names.TUNINGS and entry.text
    extractor, fresh = BASE.load({"neck": 1}), BASE.load({"neck": 1})
    entry.begin(extractor)
    tensors = entry.tensors(extractor)
    assert bool(tensors) != entry.frozen
    assert any(p.requires_grad for p in extractor.parameters()) != entry.frozen
    with torch.no_grad():
        for value in tensors.values():
            value.add_(1)
    entry.save_to(extractor, tmp_path)
    entry.begin(fresh)
    entry.restore(fresh, tmp_path)
    again = entry.tensors(fresh)
    assert all(torch.equal(value, again[key]) for key, value in tensors.items())


def file_format(name: str, entry: Any, tmp_path: Path, *_: Any) -> None:
    """Its example is found, its header tells the shape that is read, and its label maps come back."""
    assert entry.name == name
    path = entry.example(tmp_path / "in")
    (found,) = io.find_files(tmp_path / "in")
    case = io.read_case(path, case_id="a")
    assert found == path and case.format == name and case.image.isfinite().all()
    label = torch.zeros(tuple(case.image.shape[1:]), dtype=torch.uint8)
    label[:, 1:3, 1:2] = 1
    written = io.label_file(tmp_path / "out", case)
    io.write_label(written, label, case)
    assert torch.equal(io.read_label(written, case), label)


def structure_format(name: str, entry: Any, tmp_path: Path, *_: Any) -> None:
    """Its example names its structures, and they are read on the voxels of a scan by their names; so are those it writes."""
    assert entry.name == name
    scan = next(each for each in io.FORMATS.values() if each.name == (entry.source or "dicom")).example(
        tmp_path
    )
    case = io.read_case(scan, case_id="a")
    label = torch.zeros(tuple(case.image.shape[1:]), dtype=torch.uint8)
    label[1:3, 1:3, 1:2], label[2, 3:5, 3:5] = 1, 2
    paths = [entry.example(tmp_path / f"label{entry.suffix}", io.to_file_axes(label.numpy(), case), case)]
    if entry.write is not None:
        assert name in names.LABEL_FORMATS
        legend = io.Legend(("background", "liver", "spleen"))
        paths += [io.write_label(io.label_file(tmp_path / "out", case, name), label, case, name, legend)]
        assert io.find_label(tmp_path / "out", "a") == paths[-1]
    for path in paths:
        assert entry.matches(path) and not entry.matches(scan) and entry.names(path) == ("liver", "spleen")
        assert path in io.find_files(path.parent)
        assert torch.equal(io.read_label(path, case), label)
        swapped = io.read_label(path, case, names=("background", "spleen", "liver"))
        assert torch.equal(swapped, torch.tensor([0, 2, 1], dtype=torch.uint8)[label.long()])


def layout(name: str, entry: Any, tmp_path: Path, *_: Any) -> None:
    """It does not take an empty folder, a missing path or a lone text file for its own."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "lone").mkdir()
    (tmp_path / "lone" / "readme.txt").write_text("no data")
    assert entry.name == name and entry.shape and entry.task in names.TASKS
    assert not any(entry.matches(tmp_path / place) for place in ("empty", "lone", "missing"))


def method(name: str, make: Any, *_: Any) -> None:
    """It says what it is, in words that JSON can hold, and two that are made alike are alike."""
    base = Learner("fused", BASE.name, side=BASE.side)
    one, two = make(base, BaselineOptions()), make(base, BaselineOptions())
    assert one.role in ROLES and json.loads(json.dumps(one.spec)) and one.spec == two.spec


def metric(name: str, entry: Any, *_: Any) -> None:
    assert entry.title and entry.text and entry.low < entry.high and entry.digits >= 0


def loss(name: str, function: Any, *_: Any) -> None:
    """Better answers cost less; what is not known costs nothing."""
    shares = torch.eye(3)[torch.randint(3, (2, 8, 8), generator=torch.Generator().manual_seed(0))].permute(
        0, 3, 1, 2
    )
    right, wrong = 9 * shares, 9 * shares.roll(1, 1)
    assert function(right, shares) < function(wrong, shares)
    logits = torch.zeros_like(shares).requires_grad_()
    function(logits, torch.zeros_like(shares)).backward()
    assert logits.grad is not None and not logits.grad.any()


def augmentation(name: str, entry: Any, *_: Any) -> None:
    """The same key gives the same view, another one another; a label stays a label."""
    assert name in names.AUGMENTATIONS
    if entry is None:
        return
    image, label = torch.rand(1, 40, 30) * 255, torch.randint(3, (40, 30), dtype=torch.uint8)
    views = [entry(image, label, torch.Generator().manual_seed(seed), 64) for seed in (1, 1, 2)]
    assert torch.equal(views[0][0], views[1][0]) and not torch.equal(views[0][0], views[2][0])
    assert views[0][1].dtype == torch.uint8


def preparation(name: str, entry: Any, *_: Any) -> None:
    """A square of three finite channels, the place of the slice in it, and units that undo it as far as can be."""
    pixels, frame = entry(torch.rand(1, 40, 30) * 255, 64)
    assert pixels.shape == (3, 64, 64) and pixels.isfinite().all()
    assert frame.original_size == (40, 30) and max(frame.input_size) == frame.side == 64
    assert all(deviation > 0 for deviation in units_of(name)[1])


def logger(name: str, kind: Any, *_: Any) -> None:
    assert name in names.LOGS and issubclass(kind, Logger)


TABLES: dict[Callable[..., None], dict[str, Any]] = {
    encoder: ENCODERS,
    head: HEADS,
    backbone: BACKBONES,
    tuning: TUNINGS,
    file_format: io.FORMATS,
    structure_format: io.STRUCTURE_FORMATS,
    layout: {entry.name: entry for entry in LAYOUTS},
    method: {f"{task} {name}": of.make for task, table in METHODS.items() for name, of in table.items()},
    metric: METRICS,
    loss: LOSSES,
    augmentation: AUGMENTATIONS,
    preparation: PREPARES,
    logger: LOGGERS,
}


def entries() -> Iterator[Any]:
    for contract, table in TABLES.items():
        for name in sorted(table):
            yield pytest.param(contract, name, id=f"{contract.__name__}-{name}")


@pytest.mark.parametrize(("contract", "name"), list(entries()))
def test_the_contract(contract, name, tmp_path, monkeypatch):
    torch.manual_seed(0)
    contract(name, TABLES[contract][name], tmp_path, monkeypatch)


def test_label_maps_can_be_asked_for_in_every_format_that_is_written():
    written = {name for name, entry in io.FORMATS.items() if entry.write_label is not None}
    written |= {name for name, entry in io.STRUCTURE_FORMATS.items() if entry.write is not None}
    assert written == set(names.LABEL_FORMATS)


def test_the_contract_sees_a_bad_entry(tmp_path, monkeypatch):
    """An encoder that gives another map than it declares; a loss that rewards mistakes."""
    entry = ENCODERS[BASE.name]

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Wrong(type(entry)):
        def taps(self, side):
            return {**super().taps(side), "neck": (1, 1, 1)}

    fields = {field.name: getattr(entry, field.name) for field in dataclasses.fields(entry)}
    with pytest.raises(AssertionError):
        encoder(BASE.name, Wrong(**fields), tmp_path, monkeypatch)
    with pytest.raises(AssertionError):
        loss("bad", lambda logits, target: -next(iter(LOSSES.values()))(logits, target))
