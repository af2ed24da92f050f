"""SAM prompted with the truth, and nnU-Net through its commands (a script stands in for them here)."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from benchmarks.photos import write_photo
from torch import nn

from fakes import Nowhere, TinyEncoder, tiny
from samadapt import encoders
from samadapt.baselines import nnunet, zero_shot
from samadapt.baselines.nnunet import NnUNetConfig
from samadapt.baselines.zero_shot import ZeroShot, box_prompts, load_decoder, point_prompts
from samadapt.datasets import Dataset, open_dataset
from samadapt.experiment import Grid, build_methods, make_study, run_experiment
from samadapt.experiment import baselines as methods_module
from samadapt.experiment.baselines import NnUNetMethod, ZeroShotMethod
from samadapt.features import FeatureStore
from samadapt.heads.mask_decoder import PromptedDecoder
from samadapt.io import make_case, write_volume
from samadapt.learner import Learner
from samadapt.metrics import read_scores
from samadapt.training import TrainConfig
from samadapt.transforms import resize_and_pad, stretch, to_original
from samadapt.types import Case, Frame, SamAdaptError

CONFIG = TrainConfig(steps=1, batch_size=1, check_every=1, device="cpu", precision="32")
TURNED = np.array([[0.0, 0.6, 0.8, 9.0], [0.1, -0.8, 0.6, -4.0], [-5.0, 0.0, 0.0, 2.0], [0.0, 0.0, 0.0, 1.0]])


def drawing(number: int) -> np.ndarray:
    """A label (4, 40, 64): a bar of class 1, two spots of class 2, one slice with nothing."""
    label = np.zeros((4, 40, 64), np.uint8)
    label[:3, 5 + number : 15 + number, 40:60] = 1
    label[1:3, 25:33, 8 : 18 + number] = 2
    label[2, 25:31, 30:36] = 2
    return label


@pytest.fixture
def data(tmp_path) -> Dataset:
    """Five patients in nnU-Net's layout, slices along the file's first axis, turned in space; class 2 is brightest."""
    folder = tmp_path / "drawn"
    for number in range(5):
        label = drawing(number)
        write_volume(folder / f"imagesTr/p{number}_0000.nii.gz", 100.0 * label.astype(np.float32), TURNED)
        write_volume(folder / f"labelsTr/p{number}.nii.gz", label, TURNED)
    about = {
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "bar": 1, "spot": 2},
        "file_ending": ".nii.gz",
    }
    (folder / "dataset.json").write_text(json.dumps(about))
    return open_dataset(folder)


def study(data, out, learners, labels=(1,), seeds=(0,), select=0):
    grid = Grid(learners, labels, seeds, threads=1, select=select)
    return run_experiment(data, grid, CONFIG, out, FeatureStore(out.parent / "store"))


def scores_of(out, learner, metric="dsc"):
    cells = json.loads((out / "experiment.json").read_text())["cells"]
    rows = [
        s for d, c in cells.items() if c["learner"] == learner for s in read_scores(out / d / "scores.csv")
    ]
    return [s for s in rows if s.metric == metric]


def cost_of(out, learner):
    cells = json.loads((out / "experiment.json").read_text())["cells"]
    (cost,) = [
        json.loads((out / d / "cost.json").read_text()) for d, c in cells.items() if c["learner"] == learner
    ]
    return cost


# ---------------------------------------------------------------- prompts


@pytest.mark.parametrize("size", [(30, 60), (60, 30), (64, 64), (13, 200)])
@pytest.mark.parametrize("place", [resize_and_pad, stretch])
def test_prompts_land_on_the_object(size, place):
    label = np.zeros(size, np.uint8)
    row, column = size[0] // 2, size[1] - 9  # far from the middle and from the corner
    label[row - 3 : row + 4, column : column + 6] = 1
    square, frame = place(torch.from_numpy(label)[None].float(), 128)
    (box,) = box_prompts(label, 2, frame).boxes
    filled = torch.zeros(1, 128, 128)
    x0, y0, x1, y1 = (int(v) for v in (box + 0.5).round())
    filled[:, y0:y1, x0:x1] = 1
    back = to_original(filled, frame)[0].numpy() > 0.5
    assert 2 * (back & (label == 1)).sum() / (back.sum() + label.sum()) > 0.9
    ((x, y),) = point_prompts(label, 2, frame).points[0].round().int().tolist()
    assert square[0, y, x] > 0.99


def test_boxes_and_points_by_hand():
    label = np.zeros((20, 40), np.uint8)
    label[2:5, 10:20] = 2  # rows 2..4, columns 10..19
    frame = Frame((20, 40), (40, 80), 80)  # twice as large; the bottom half is padding
    boxes = box_prompts(label, 4, frame)
    assert boxes.classes == [2]
    # Its edges, 20 and 40, 4 and 10; minus the half pixel that the prompt encoder adds.
    assert boxes.boxes.tolist() == [[19.5, 3.5, 39.5, 9.5]]
    points = point_prompts(label, 4, frame)
    # The middle row is deepest; of its columns 11..18 the nearest to 14.5 is 14; its centre is at 14.5.
    assert points.classes == [2] and points.points[0].tolist() == [[28.5, 6.5]]


def test_a_ring_gets_its_point_on_the_ring_and_every_part_one():
    rows, columns = np.mgrid[:50, :50]
    distance = np.hypot(rows - 20, columns - 20)
    label = ((distance > 8) & (distance < 13)).astype(np.uint8)
    label[40:44, 40:44] = 1
    label[47, 47] = 255  # ignored: nobody's
    ((x0, y0), (x1, y1)) = (point_prompts(label, 3, Frame((50, 50), (50, 50), 50)).points[0]).int().tolist()
    assert label[y0, x0] == 1 and 8 < np.hypot(y0 - 20, x0 - 20) < 13  # the larger part first
    assert 40 <= x1 < 44 and 40 <= y1 < 44
    specks = np.zeros((50, 50), np.uint8)
    specks[::5, ::5] = 1
    assert len(point_prompts(specks, 2, Frame((50, 50), (50, 50), 50)).points[0]) == zero_shot._MOST_POINTS


def test_an_object_at_the_border_is_not_deepest_at_the_border():
    label = np.zeros((20, 20), np.uint8)
    label[:9, :9] = 1
    points = point_prompts(label, 2, Frame((20, 20), (20, 20), 20)).points
    assert points[0].tolist() == [[4.0, 4.0]]


# ---------------------------------------------------------------- SAM's own decoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompting(TinyEncoder):
    """The tiny encoder with the weights of a decoder behind its neck."""

    def taps(self, side):
        return {"neck": (16, 16, 16)}


@pytest.fixture
def sam(tiny_encoder, monkeypatch):
    """A function that puts a decoder's weights behind the tiny encoder; and these weights."""
    torch.manual_seed(0)
    state = PromptedDecoder(16, (16, 16), 64, num_heads=8, mlp_dim=24, depth=1).state_dict()
    more = {**state, "prompt_encoder.of_another_kind": torch.zeros(1)}

    def behind(weights=more):
        monkeypatch.setitem(
            encoders.ENCODERS,
            "tiny",
            Prompting(decoder=weights, published=Nowhere(f"{len(weights)} tensors")),
        )
        return tiny()

    return behind, state


def test_the_decoder_is_the_encoders_own(sam):
    behind, state = sam
    decoder = load_decoder(behind())
    assert all(torch.equal(value, state[key]) for key, value in decoder.state_dict().items())
    assert not any(p.requires_grad for p in decoder.parameters())


def test_answers_are_those_of_sams_forward(sam):
    decoder = load_decoder(sam[0]())
    neck = torch.randn(1, 16, 16, 16)
    label = np.zeros((64, 64), np.uint8)
    label[5:20, 30:50], label[40:50, 40:50], label[40:50, 5:9] = 1, 3, 3
    frame = Frame((64, 64), (64, 64), 64)
    model = ZeroShot(decoder, 4, 64)
    logits = model.logits(neck, box_prompts(label, 4, frame))
    boxes = torch.tensor([[29.5, 4.5, 49.5, 19.5], [4.5, 39.5, 49.5, 49.5]])
    expected, _ = decoder(neck, boxes=boxes)
    assert torch.equal(logits[[1, 3]], expected[:, 0]) and bool((logits[0] == 0).all())
    assert float(logits[2].max()) < -1000  # a class that is not there cannot win
    points = point_prompts(label, 4, frame)
    logits = ZeroShot(decoder, 4, 64, "points").logits(neck, points)
    xy = points.points[0][None]
    masks, iou = decoder(neck, points=(xy, torch.ones(1, 1)), multimask=True)
    assert torch.equal(logits[1], masks[0, iou[0].argmax()])  # one point: the surest of three
    xy = points.points[1][None]
    masks, _ = decoder(neck, points=(xy, torch.ones(1, 2)), multimask=False)
    assert xy.shape == (1, 2, 2) and torch.equal(logits[3], masks[0, 0])


def test_encoders_that_cannot_be_prompted_are_told(sam):
    with pytest.raises(SamAdaptError, match="encoder 'tiny' brings no prompt encoder"):
        load_decoder(tiny())
    behind, state = sam
    encoder = behind({k: v for k, v in state.items() if "iou_token" not in k})
    with pytest.raises(SamAdaptError, match=r"in 1 of \d+ weights, such as 'mask_decoder.iou_token.weight'"):
        load_decoder(encoder)
    case = Case("a", torch.zeros(1, 1, 8, 8), None, None, None, "a")
    with pytest.raises(SamAdaptError, match="has no label"):
        ZeroShot(nn.Identity(), 2, 64).predict(case, np.zeros((1, 16, 16, 16)), Frame((8, 8), (8, 8), 8))


class Mirror(nn.Module):
    """Its map is what it sees, so that a decoder can be perfect."""

    def __init__(self):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, x, wanted):
        return {"neck": x}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seeing(TinyEncoder):
    name: str = "seeing"
    prepare: str = "unit"

    def taps(self, side):
        return {"neck": (3, 64, 64)}

    def loaded(self, state, side, source):
        return Mirror()


class Perfect(nn.Module):
    """Outlines whatever is as bright as what it was pointed at; in a box, as its brightest or its most frequent."""

    def forward(self, neck, points=None, boxes=None, multimask=False, side=None):
        assert side == 64
        grey = neck[0, 0]
        if points is not None:
            xy, labels = points
            assert (labels == 1).all()
            wanted = [torch.stack([grey[int(y.round()), int(x.round())] for x, y in xy[0]]).median()]
        else:
            wanted = []
            for x0, y0, x1, y1 in (boxes + 0.5).round().int().tolist():
                inside = grey[y0:y1, x0:x1]
                wanted.append(inside[inside > 0.1].mode().values)
        masks = torch.stack([20.0 * (0.2 - (grey - value).abs()) for value in wanted])[:, None]
        masks = masks.repeat_interleave(3, 1) if multimask else masks
        return masks, torch.zeros(masks.shape[:2])


@pytest.fixture
def seeing(monkeypatch):
    monkeypatch.setitem(encoders.ENCODERS, "seeing", Seeing())
    monkeypatch.setattr(methods_module, "load_decoder", lambda encoder: Perfect())


def test_a_perfect_decoder_with_the_truth_as_prompt_is_right(data, tmp_path, seeing):
    base = Learner("linear", "seeing")
    learners = build_methods(["zero_shot", "zero_shot_points"], "segmentation", base)
    outcome = study(data, tmp_path / "e", learners, (1, 2), (0, 1))
    assert (outcome.done, outcome.failed) == (2, {})  # it learns nothing: one cell for all labels and seeds
    for name in learners:
        dice = [s.value for s in scores_of(tmp_path / "e", name)]
        assert len(dice) == 2 * len(data.split(1).val) and min(dice) > 0.97
        cost = cost_of(tmp_path / "e", name)
        assert cost["role"] == "oracle" and cost["parameters"] == 0 and cost["steps"] == 0
    note = json.loads((tmp_path / "e/experiment.json").read_text())
    assert note["learners"]["zero_shot"]["role"] == "oracle"


def test_an_encoder_without_a_decoder_fails_its_cell_only(data, tmp_path):
    learners = {"prompted": ZeroShotMethod(Learner(encoder="sam_nano", checkpoint="random", side=32))}
    outcome = study(data, tmp_path / "e", learners)
    assert "brings no prompt encoder" in outcome.failed["prompted"]


# ---------------------------------------------------------------- nnU-Net

FAKE = """\
#!{python}
import json, os, pathlib, sys
import nibabel as nib, numpy as np
name, given = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
raw, done, results = (pathlib.Path(os.environ["nnUNet_" + x]) for x in ("raw", "preprocessed", "results"))
data = raw / "Dataset001_cell"
seen = {{f: sorted(p.name for p in (data / f).glob("*")) for f in ("imagesTr", "labelsTr", "imagesTs")}}
splits = done / data.name / "splits_final.json"
splits = json.loads(splits.read_text()) if splits.is_file() else None
with open({calls!r}, "a") as file:
    about = json.loads((data / "dataset.json").read_text())
    file.write(json.dumps({{"name": name, "given": given, "seen": seen, "splits": splits, "about": about}}) + "\\n")
print("I am", name)
if name == {breaks!r}:
    sys.exit("RuntimeError: no such luck")
if name == "nnUNetv2_plan_and_preprocess":
    if int(os.environ["nnUNet_n_proc_DA"]) < 1:  # as nnU-Net 2.8.1's planner
        sys.exit("RuntimeError: set_num_threads expects a positive integer")
    (done / data.name / "gt_segmentations").mkdir(parents=True)
    plans = {{"configurations": {{c: {{"batch_size": 2, "patch_size": [8, 8]}} for c in {plans!r}}}}}
    (done / data.name / "nnUNetPlans.json").write_text(json.dumps(plans))
if name == "nnUNetv2_train":
    (results / "x").mkdir(parents=True)
    for kind in ("best", "final"):
        (results / "x" / f"checkpoint_{{kind}}.pth").write_bytes(pathlib.Path({checkpoint!r}).read_bytes())
if name == "nnUNetv2_predict":
    out = pathlib.Path(given[given.index("-o") + 1])
    out.mkdir()
    for path in pathlib.Path(given[given.index("-i") + 1]).glob("*_0000.nii.gz"):
        image = nib.load(path)
        label = np.round(np.asarray(image.dataobj) / 100).astype(np.uint8)
        nib.save(nib.Nifti1Image(label, image.affine), out / path.name.replace("_0000", ""))
"""


@pytest.fixture
def fake(tmp_path):
    """A folder with nnU-Net's three commands: they note how they were called, and answer with the image / 100."""

    def make(breaks="", plans=("2d", "3d_fullres")):
        folder = tmp_path / "nnunet-env" / "bin"
        folder.mkdir(parents=True)
        calls, checkpoint = str(tmp_path / "calls.jsonl"), str(tmp_path / "a.pth")
        state = {
            "network_weights": {"a": torch.zeros(3, 4)},
            "_best_ema": np.float64(0.5),
            "current_epoch": 1,
        }
        state["logging"] = {"mean_fg_dice": [np.float32(0.5)], "lrs": [0.1]}
        state["init_args"] = {"device": torch.device("cpu"), "fold": 0}
        torch.save(state, checkpoint)
        for name in nnunet.COMMANDS:
            (folder / name).write_text(
                FAKE.format(
                    python=sys.executable,
                    calls=calls,
                    breaks=breaks,
                    plans=list(plans),
                    checkpoint=checkpoint,
                )
            )
            (folder / name).chmod(0o755)
        site = folder.parent / "lib/python3/site-packages/nnunetv2-2.8.1.dist-info"
        site.mkdir(parents=True)
        return str(folder)

    return make


def calls_of(tmp_path):
    return [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]


def test_the_round_trip_through_its_files_keeps_every_voxel(data, tmp_path, fake):
    learner = NnUNetMethod(NnUNetConfig(bin=fake(), budget=12))
    outcome = study(data, tmp_path / "e", {"nnunet": learner})
    assert outcome.failed == {}
    assert [s.value for s in scores_of(tmp_path / "e", "nnunet")] == [1.0, 1.0]
    assert scores_of(tmp_path / "e", "nnunet", "hd95_mm")[0].value == 0.0
    cost = cost_of(tmp_path / "e", "nnunet")
    assert (cost["steps"], cost["epochs"], cost["trainer"]) == (2500, 10, "nnUNetTrainer_10epochs")
    assert (cost["parameters"], cost["nnunet_version"], cost["seeded"]) == (12, "2.8.1", False)
    assert cost["batch_size"] == 2 and cost["configuration"] == "3d_fullres"


def test_it_sees_the_labelled_cases_and_no_other_label(data, tmp_path, fake):
    study(data, tmp_path / "e", {"nnunet": NnUNetMethod(NnUNetConfig(bin=fake()))}, (3,), select=1)
    split = data.split(3, select=1)
    plan, train, predict = calls_of(tmp_path)
    labelled = sorted((*split.train, *split.select))
    assert plan["seen"]["labelsTr"] == [f"{i}.nii.gz" for i in labelled] and len(labelled) == 3
    assert plan["seen"]["imagesTr"] == [f"{i}_0000.nii.gz" for i in labelled]
    assert plan["seen"]["imagesTs"] == [f"{i}_0000.nii.gz" for i in sorted(split.val)]
    assert train["splits"] == [{"train": list(split.train), "val": list(split.select)}]
    assert train["given"] == ["1", "3d_fullres", "0", "-tr", "nnUNetTrainer_20epochs", "-p", "nnUNetPlans",
                              "-device", "cpu"]  # fmt: skip
    assert predict["given"][4:12] == [
        "-d",
        "1",
        "-c",
        "3d_fullres",
        "-f",
        "0",
        "-tr",
        "nnUNetTrainer_20epochs",
    ]
    assert plan["about"]["labels"] == {"background": 0, "bar": 1, "spot": 2}
    assert plan["about"]["channel_names"] == {"0": "MRI"}


def test_without_selection_it_validates_on_what_it_learns_from(data, tmp_path, fake):
    study(data, tmp_path / "e", {"nnunet": NnUNetMethod(NnUNetConfig(bin=fake()))}, (2,))
    split = data.split(2)
    assert calls_of(tmp_path)[1]["splits"] == [{"train": list(split.train), "val": list(split.train)}]


def test_copies_of_the_data_do_not_stay(data, tmp_path, fake):
    study(data, tmp_path / "e", {"nnunet": NnUNetMethod(NnUNetConfig(bin=fake()))})
    (work,) = tmp_path.glob("e/*/nnunet")
    names = {p.relative_to(work).as_posix() for p in work.rglob("*") if p.is_file()}
    assert {n for n in names if not n.startswith("predictions/")} == {
        "nnunet.log", "raw/Dataset001_cell/dataset.json", "results/x/checkpoint_final.pth",
        "preprocessed/Dataset001_cell/nnUNetPlans.json", "preprocessed/Dataset001_cell/splits_final.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("budget", "trainer"),
    [
        (1, "nnUNetTrainer_1epoch"),
        (4, "nnUNetTrainer_1epoch"),
        (5, "nnUNetTrainer_5epochs"),
        (99, "nnUNetTrainer_50epochs"),
        (999, "nnUNetTrainer_250epochs"),
        (5000, "nnUNetTrainer"),
    ],
)
def test_the_budget_is_kept(budget, trainer):
    config = NnUNetConfig(budget=budget)
    assert config.trainer == trainer and config.epochs <= budget


def test_pictures_go_as_volumes_of_one_slice_and_ignored_pixels_as_its_last_label(tmp_path, fake):
    folder = tmp_path / "photos"
    for number in range(4):
        label = drawing(number)[2]
        photo = np.repeat((100 * label)[..., None], 3, axis=2).astype(np.uint8)
        write_photo(folder / f"images/q{number}.png", photo)
        label[0, :5] = 255
        (folder / "masks").mkdir(parents=True, exist_ok=True)
        write_photo(folder / f"masks/q{number}.png", label)
    data = open_dataset(folder)
    learner = NnUNetMethod(NnUNetConfig(bin=fake(plans=["2d"])))
    outcome = study(data, tmp_path / "e", {"nnunet": learner})
    assert outcome.failed == {}
    assert [s.value for s in scores_of(tmp_path / "e", "nnunet")] == [1.0, 1.0]
    plan, train, _ = calls_of(tmp_path)
    (case_id,) = data.split(1).train
    assert plan["seen"]["imagesTr"] == [f"{case_id}_{channel:04d}.nii.gz" for channel in range(3)]
    assert (
        list(plan["about"]["labels"].values()) == [0, 1, 2, 3]
        and list(plan["about"]["labels"])[3] == "ignore"
    )
    assert train["given"][1] == "2d"  # it plans no 3d_fullres for pictures
    assert cost_of(tmp_path / "e", "nnunet")["configuration"] == "2d"


def test_a_picture_keeps_its_pixels_on_the_way(tmp_path):
    case = make_case(np.arange(12.0).reshape(3, 4), "a")
    nnunet._write_image(tmp_path, case)
    image = nib.load(tmp_path / "a_0000.nii.gz")
    assert image.shape == (3, 4, 1) and image.header.get_zooms() == (1.0, 1.0, 999.0)
    assert np.array_equal(np.asarray(image.dataobj)[..., 0], np.arange(12.0).reshape(3, 4))


def test_what_nnunet_says_when_it_fails_is_recorded(data, tmp_path, fake):
    learner = NnUNetMethod(NnUNetConfig(bin=fake(breaks="nnUNetv2_train")))
    outcome = study(data, tmp_path / "e", {"nnunet": learner})
    message = outcome.failed["nnunet, 1 labelled, seed 0"]
    assert "nnUNetv2_train ended with exit code 1: RuntimeError: no such luck" in message
    (log,) = tmp_path.glob("e/*/nnunet/nnunet.log")
    assert "I am nnUNetv2_plan_and_preprocess" in log.read_text() and str(log) in message


def test_commands_that_are_not_there(data, tmp_path, fake, monkeypatch):
    outcome = study(data, tmp_path / "e", {"nnunet": NnUNetMethod(NnUNetConfig(bin=str(tmp_path)))})
    (message,) = outcome.failed.values()
    assert (
        f"nnUNetv2_plan_and_preprocess is not in {tmp_path}" in message and "pip install nnunetv2" in message
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SamAdaptError, match="is not on the PATH"):
        nnunet.find_commands(None)
    monkeypatch.setenv("PATH", fake())
    assert set(nnunet.find_commands(None)) == set(nnunet.COMMANDS)


def test_settings_of_nnunet():
    grid, _ = make_study({"learners": ["nnunet"], "nnunet": {"budget": 5, "bin": "x"}}, "segmentation")
    assert grid.learners["nnunet"].spec["trainer"] == "nnUNetTrainer_5epochs"
    elsewhere = dataclasses.replace(grid.learners["nnunet"].config, bin="y")
    assert NnUNetMethod(elsewhere).spec == grid.learners["nnunet"].spec  # where it lies changes no number
    for wrong in ({"epochs": 5}, {"budget": 0}, {"configuration": "4d"}):
        with pytest.raises(SamAdaptError, match="nnunet"):
            make_study({"learners": ["nnunet"], "nnunet": wrong}, "segmentation")


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.skipif(shutil.which("nnUNetv2_train") is None, reason="nnU-Net's commands are not on the PATH")
def test_nnunet_itself_on_the_hippocampus(shared_data: Path, tmp_path):
    whole = open_dataset(shared_data / "Task04_Hippocampus")
    split = whole.split(1)
    few = dataclasses.replace(whole[(*split.train, *split.val[:3])], folds=((split.train, split.val[:3]),))
    outcome = study(few, tmp_path / "e", {"nnunet": NnUNetMethod(NnUNetConfig(budget=1, configuration="2d"))})
    assert outcome.failed == {}
    dice = [s.value for s in scores_of(tmp_path / "e", "nnunet")]
    assert len(dice) == 6 and np.mean(dice) > 0.3
