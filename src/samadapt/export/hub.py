"""A run as a folder for the Hugging Face hub: config.json, model.safetensors and a model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from samadapt.export.card import card_text
from samadapt.export.job import Job
from samadapt.files import write_json, write_text
from samadapt.postprocessing import Postprocessing, write_postprocessing
from samadapt.runs import HUB_FILE, read_config, read_state, save_tensors
from samadapt.tuning import TUNINGS
from samadapt.types import SamAdaptError

ENCODER = "encoder.safetensors"  # of a run: the encoder's own weights, where they are in it


def write_hub(job: Job, folder: Path) -> None:
    """All but the card. Names of cases and of folders are left out."""
    config = read_config(job.run)
    tuning = TUNINGS[config["train"]["tune"]]
    included = bool(config.get("encoder_included"))
    tensors = _prefixed("head.safetensors", read_state(job.run / "head.safetensors"))
    if not tuning.frozen:
        tensors |= _prefixed(tuning.file, read_state(job.run / tuning.file))
    if job.options.with_encoder and not tuning.whole:
        model = job.predictor.model
        fresh = model.spec.load(model.head.reads) if not included else None  # without merged adapters
        state = read_state(job.run / ENCODER) if fresh is None else fresh.network.state_dict()
        tensors |= _prefixed(ENCODER, state)
        included = bool(state)
    elif included:
        raise SamAdaptError(f"{job.run} holds its encoder's weights; give --with-encoder to export it again")
    save_tensors(tensors, folder / HUB_FILE)
    if job.postprocessing != Postprocessing():
        write_postprocessing(folder, job.postprocessing)
    write_json(folder / "config.json", _public(config, included))


def write_card(job: Job, folder: Path, comparison: dict[str, Any]) -> None:
    """README.md, last: it says what the comparison found."""
    write_text(folder / "README.md", card_text(job, comparison), finished=True)


def _prefixed(file: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{Path(file).stem}.{name}": tensor for name, tensor in tensors.items()}


def _public(config: Mapping[str, Any], included: bool) -> dict[str, Any]:
    """What the model is made of, without the names of cases, patients and folders."""
    opening = {**config["opening"], "group": None, "group_rule": "not published, for it names cases"}
    opening.pop("anonymous", None)
    checkpoint = config["encoder"]["checkpoint"]
    local = checkpoint is not None and Path(checkpoint).exists()
    return {
        **{name: config[name] for name in ("format", "head", "encoder_fingerprint", "maps", "stored_maps")},
        "opening": opening,
        "encoder": {**config["encoder"], "checkpoint": Path(checkpoint).name if local else checkpoint},
        "data": {"name": config["data"]["name"], "hash": config["data"]["hash"], "train": [], "select": []},
        "selection": config["selection"],
        "split_hash": None,  # the split has the names of all cases
        "train": config["train"],
        "unlabelled": None,
        "encoder_included": included,
    }


def demand_name(job: Job) -> None:
    """Before hours of work: whether the hub can have a repository of this name."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        if job.options.push is not None:
            validate_repo_id(job.options.push)
    except HFValidationError as error:
        raise SamAdaptError(
            f"--push {job.options.push!r} is no name of a repository: {error}; give OWNER/NAME"
        ) from error


def push(folder: Path, repo: str) -> str:
    """Upload the folder, with the token that the user is logged in with or has in HF_TOKEN; where it is then.

    Raises:
        SamAdaptError: the hub refuses it, or cannot be reached. The folder stays.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(repo, private=True, exist_ok=True)  # its owner makes it public
        done = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Exported by samadapt")
    except (OSError, ValueError) as error:  # all of the hub's are one of these
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise SamAdaptError(
            f"{folder} was exported, and could not be pushed to {repo!r} ({first}); log in (hf auth login) or set HF_TOKEN to a token "
            "that may write there, and push again with the same command and --overwrite"
        ) from error
    return f"{repo}@{done.oid}"
