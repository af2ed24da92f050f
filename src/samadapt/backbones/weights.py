"""Published weights into a backbone: from a file, a model's folder, or a pinned revision on the hub."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from samadapt.backbones.backbone import Backbone
from samadapt.types import SamAdaptError
from samadapt.weights import read_weights

_FILES = ("model.safetensors", "pytorch_model.bin")  # of a folder, the first that is there
_PINNED = re.compile(r"^([\w.-]+/[\w.-]+)@([0-9a-f]{40})$")


def load_weights(backbone: Backbone, source: str) -> None:
    """Overwrite the backbone's weights; its classifier, if the source has one, is left aside.

    Args:
        source: a `.safetensors` or `.pth`/`.bin` state dict; a folder with `model.safetensors` or
            `pytorch_model.bin`; or `OWNER/NAME@REVISION` on the Hugging Face hub, the revision a full commit,
            so that the same command always gives the same network.
    """
    state = {backbone.rename(key): value for key, value in read_weights(_locate(source)).items()}
    own = backbone.state_dict()
    # Index tables are computed, not learned, and stand in some published files only; batch counts likewise.
    learned = {key for key, value in own.items() if value.is_floating_point() and _learned(key)}
    missing = sorted(key for key in learned if key not in state)
    if missing:
        raise SamAdaptError(
            f"weights {source!r} lack {len(missing)} of {len(learned)} tensors of this backbone, the first is "
            f"{missing[0]!r}; give the weights of the same network"
        )
    chosen = {key: _fitted(key, state[key], own[key], source) for key in own if key in state}
    backbone.load_state_dict(own | chosen)


def _learned(key: str) -> bool:
    return not key.endswith(("relative_coords_table", "relative_position_index"))


def _fitted(key: str, value: Tensor, own: Tensor, source: str) -> Tensor:
    if value.shape == own.shape:
        return value
    if value.squeeze().shape == own.shape:  # SENet's 1x1 convolutions are linear layers in MONAI
        return value.squeeze()
    raise SamAdaptError(
        f"weights {source!r}: {key!r} is {tuple(value.shape)}, the backbone's is {tuple(own.shape)}; "
        "give the weights of the same network (a small-input stem fits no published one)"
    )


def _locate(source: str) -> Path:
    path = Path(source)
    if path.is_dir():
        found = next((path / name for name in _FILES if (path / name).is_file()), None)
        if found is None:
            raise SamAdaptError(f"{path} holds no weights; expected {' or '.join(_FILES)}")
        return found
    if path.is_file():
        return path
    pinned = _PINNED.match(source)
    if pinned is None:
        raise SamAdaptError(
            f"weights {source!r} are neither a file nor a folder; a hub id needs its revision, "
            "e.g. microsoft/resnet-18@<40 hexadecimal digits of the commit>"
        )
    return _fetch(*pinned.groups())


def _fetch(name: str, revision: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    problem: Exception | None = None
    for file in _FILES:
        try:
            return Path(hf_hub_download(name, file, revision=revision))
        except LocalEntryNotFoundError as error:
            problem = error
            break
        except EntryNotFoundError as error:
            problem = error
        except (HfHubHTTPError, OSError) as error:
            problem = error
            break
    raise SamAdaptError(
        f"weights {name}@{revision} could not be fetched from the hub ({type(problem).__name__}); "
        "check name, revision and network, or give a local file"
    ) from problem
