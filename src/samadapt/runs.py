"""The run folder on disk: what training writes and prediction reads.

    runs/<name>/config.json split.json environment.json metrics.csv last.ckpt head.safetensors scores.csv

`head.safetensors` is written last by training: it exists = the training is finished. A run folder explains
itself: it can be zipped, moved and loaded; nothing in it is pickled but the checkpoint, which is
read with `weights_only`.
"""

from __future__ import annotations

import json
import platform
import re
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from samadapt.files import demand_writable, is_leftover, replacing, write_json
from samadapt.settings import TrainConfig
from samadapt.types import SamAdaptError
from samadapt.weights import fill

#: The file of all weights of a run that was exported for the hub (`samadapt export --format hub`): those of
#: `head.safetensors` begin with "head.", and so on.
HUB_FILE = "model.safetensors"
_HUB_RUN = re.compile(r"^([\w.-]+/[\w.-]+)@([\w./-]+)$")
_COMMIT = re.compile(r"^[0-9a-f]{40}$")
#: Of `config.json`; 2 said how files become cases ("opening"), 3 names encoders by their files' hashes.
FORMAT = 3


def open_run(out: Path, settings: dict[str, Any], overwrite: bool) -> int | None:
    """Make the folder or find what is in it. The step to start from; None when it is already trained."""
    if overwrite and out.exists():
        if any(out.iterdir()) and not (out / "config.json").is_file():
            raise SamAdaptError(f"{out} is not a run folder; --overwrite deletes run folders only")
        if inside := runs_inside(out):
            raise SamAdaptError(
                f"{out} holds other run folders ({_some(inside)}), which --overwrite would delete as well; choose another --out"
            )
        shutil.rmtree(out)
    demand_writable(out, "--out")
    out.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(settings))
    if (out / "config.json").is_file():
        before = read_json(
            out / "config.json", "copy the whole run folder again, choose another --out, or give --overwrite"
        )
        for name in TrainConfig.UNCHANGING:  # what the run was begun with may differ in these
            if name in before.get("train", {}):
                settings["train"][name] = before["train"][name]
        changed = [key for key in settings if before.get(key) != settings[key]]
        if changed:
            raise SamAdaptError(
                f"{out} holds a run with another {', '.join(changed)} ({_difference(before, settings, changed[0])}); "
                "choose another --out or give --overwrite"
            )
        if (out / "head.safetensors").is_file():
            demand_split(out, settings)
            return None
        if not (out / "environment.json").is_file():
            write_json(out / "environment.json", environment())
        return _steps_done(out / "last.ckpt")
    if not all(is_leftover(path) for path in out.iterdir()):
        raise SamAdaptError(f"{out} is not empty and not a run folder; choose another --out")
    write_json(out / "config.json", settings)
    write_json(out / "environment.json", environment())
    return 0


def runs_inside(folder: Path) -> list[str]:
    """The run folders below a folder, as paths from there, in order."""
    found = (path.parent.relative_to(folder) for path in folder.rglob("config.json"))
    return sorted(str(path) for path in found if path.parts)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def demand_split(run: Path, config: Mapping[str, Any]) -> None:
    """Whether the split of a run that was trained on one is still there."""
    if config.get("split_hash") and not (run / "split.json").is_file():
        raise SamAdaptError(
            f"{run} was trained on a split, and its split.json is missing, so nobody knows which cases it learned from; "
            "copy the whole run folder again"
        )


def pick_device(name: str) -> torch.device:
    """From what users type: auto (CUDA, else MPS, else CPU), cpu, cuda (or gpu), mps."""
    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device(next(device for device in ("cuda", "mps", "cpu") if found[device]))
    device = {"gpu": "cuda"}.get(name, name)
    if device not in found:
        raise SamAdaptError(f"unknown device {name!r}; known: auto, cpu, cuda, mps")
    if not found[device]:
        raise SamAdaptError(
            f"device {name!r} was asked for, but torch finds none here; use --device auto or cpu"
        )
    return torch.device(device)


def has_bf16(device: str) -> bool:
    """Whether bfloat16 is fast there, not merely possible: on a CPU it takes instructions of its own."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return device == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def precision_note(config: TrainConfig) -> str | None:
    """What to say where bfloat16 is asked of a processor that only emulates it; None elsewhere."""
    device = pick_device(config.device).type
    if config.precision != "bf16" or has_bf16(device):
        return None
    return f"this {device} has no bfloat16 of its own: bf16 is slower here than 32; auto takes the faster one"


def _difference(before: dict[str, Any], after: dict[str, Any], key: str) -> str:
    old, new = before.get(key), after[key]
    if isinstance(old, dict) and isinstance(new, dict):
        inner = next(k for k in new if old.get(k) != new[k])
        return f"{key}.{inner}: {str(old.get(inner))[:80]} there, {str(new[inner])[:80]} now"
    return f"{key}: {str(old)[:80]} there, {str(new)[:80]} now"


def _steps_done(checkpoint: Path) -> int:
    if not checkpoint.is_file():
        return 0
    try:
        return int(torch.load(checkpoint, map_location="cpu", weights_only=True)["step"])
    except OSError:
        raise
    except Exception as error:  # torch raises whatever the bytes happen to mean
        raise SamAdaptError(
            f"{checkpoint} ({checkpoint.stat().st_size} bytes) cannot be read, so the training cannot go on from it; "
            "delete it to begin again, or give --overwrite"
        ) from error


def environment() -> dict[str, Any]:
    """What else could change the numbers: versions, machine, threads."""
    packages = ("samadapt", "torch", "lightning", "transformers", "monai", "numpy", "scipy")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in packages},
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": sys.argv,
    }


def save_state(module: nn.Module, path: Path) -> None:
    """All weights of a network, as safetensors."""
    save_tensors(module.state_dict(), path)


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """safetensors under a temporary name, then renamed."""
    with replacing(path, finished=True) as temporary:
        try:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary)
        except SafetensorError as error:  # what it says of a full disk
            raise OSError(str(error)) from error


def load_state(module: nn.Module, path: Path, only: Collection[str] | None = None) -> None:
    """The inverse of `save_state`; with `only`, of `save_tensors` of the network's tensors of these names."""
    state = read_state(path)
    if only is not None:
        state |= {name: x for name, x in module.state_dict().items() if name not in only}
    fill(module, state, str(path), "it is not of this config.json: copy the run folder again")


def weights_file(run: Path, name: str = "head.safetensors") -> Path:
    """Where the weights of this name are in a run folder, or in one that was exported for the hub."""
    path, together = run / name, run / HUB_FILE
    return together if together.is_file() and not path.is_file() else path


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of a run folder, which may stand in the one file of a run from the hub."""
    try:
        found = weights_file(path.parent, path.name)
        state = load_file(found)
        prefix = "" if found == path else f"{path.stem}."
        return {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
    except FileNotFoundError:
        raise SamAdaptError(
            f"{path} does not exist: the training did not finish; rerun its command to resume"
        ) from None
    except SafetensorError as error:
        raise SamAdaptError(f"{path} cannot be read ({error}); copy the run folder again") from error


def read_json(path: Path, cure: str = "copy the whole run folder again") -> Any:
    """The content of a JSON file of a run folder."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SamAdaptError(f"{path} cannot be read ({error}); {cure}") from error


def _writer(run: Path) -> str:
    """The version that wrote a run folder, as far as it says."""
    try:
        note = json.loads((run / "environment.json").read_text(encoding="utf-8"))
        return f"version {note['packages']['samadapt']}"
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return "it does not say which"


def find_run(run: str | Path) -> Path:
    """The run folder that is meant: a folder, or `OWNER/NAME@REVISION` of the Hugging Face hub, fetched once.

    A path that exists, and a name without a revision, never lead to the network.
    """
    path, named = Path(run), _HUB_RUN.match(str(run))
    if path.exists() or named is None:
        return path
    from huggingface_hub import snapshot_download  # here: it takes a second, and most runs do not need it

    files = ["config.json", HUB_FILE, "postprocessing.json", "README.md"]
    failure: Exception | None = None
    # What a commit means does not change, so the cache is asked first; a branch or a tag may have moved.
    for cached in (True, False) if _COMMIT.match(named[2]) else (False, True):
        try:
            return Path(
                snapshot_download(named[1], revision=named[2], allow_patterns=files, local_files_only=cached)
            )
        except (OSError, ValueError) as error:  # all of the hub's are one of these
            failure = failure or error
    raise SamAdaptError(
        f"cannot get the run {run} from the Hugging Face hub, nor find it in its cache ({type(failure).__name__}); check the name "
        "and the revision, log in where it is private (hf auth login), connect once, or give a run folder"
    ) from failure


def read_config(run: Path) -> dict[str, Any]:
    """`config.json` of a run folder."""
    if not run.exists():
        raise SamAdaptError(
            f"{run} does not exist; give the --out of `samadapt train`, or OWNER/NAME@REVISION of the Hugging Face hub"
        )
    if not (run / "config.json").is_file():
        if inside := sorted(path.parent.name for path in run.glob("*/config.json")):
            raise SamAdaptError(
                f"{run} is not a run folder itself, but holds run folders: {_some(inside)}; name one of them, such as "
                f"{run / inside[0]}"
            )
        raise SamAdaptError(
            f"{run} is not a run folder: it has no config.json; give the --out of `samadapt train`"
        )
    config = read_json(run / "config.json")
    told = config.get("format") if isinstance(config, dict) else None
    if told != FORMAT:
        raise SamAdaptError(
            f"{run} was written by another version of samadapt ({_writer(run)}; format {told!r} of config.json, this one "
            f"reads {FORMAT}), and what its model reads cannot be told with certainty: train it again, or use that version"
        )
    return config
