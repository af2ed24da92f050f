"""A run as a MONAI bundle: configs, the network as a torch.export program, and the runner as its script.

The program of torch.export and not ONNX, because MONAI brings torch and not onnxruntime; the runner and not MONAI's
transforms, because these have neither this window nor this square, and the answers must be those of samadapt.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from samadapt.export.description import describe_export, note_check, write_about
from samadapt.export.job import Job
from samadapt.export.program import RUNNER, runner_text, write_program
from samadapt.files import write_json, write_text

CONFIGS, MODELS, SCRIPTS = "configs", "models", "scripts"
#: What MONAI calls the kinds of intensities.
_FORMATS = {"CT": "hounsfield"}

_INFERENCE = {
    "imports": ["$import torch", "$from scripts import runner"],
    "bundle_root": ".",
    "dataset_dir": "$@bundle_root + '/scans'",
    "output_dir": "$@bundle_root + '/predictions'",
    "device": "$'cuda' if torch.cuda.is_available() else 'cpu'",
    "network_def": {
        "_target_": "scripts.runner.torch_module",
        "path": "$@bundle_root + '/models/model.pt2'",
        "device": "@device",
    },
    "inferer": "$runner.of_module(@network_def, @device)",
    "model": {
        "_target_": "scripts.runner.Model",
        "folder": "$@bundle_root + '/models'",
        "network": "@inferer",
    },
    "run": ["$print(runner.predict_all(@model, [@dataset_dir], @output_dir), 'predicted, and not')"],
}


def write_bundle(job: Job, folder: Path) -> None:
    """All of the bundle."""
    name = write_program(job.predictor.model, folder / MODELS / "model.pt2")
    write_about(job, folder / MODELS, [name])
    write_text(folder / SCRIPTS / "__init__.py", "from scripts import runner\n")  # MONAI imports the folder
    write_text(folder / SCRIPTS / RUNNER, runner_text())
    write_json(folder / CONFIGS / "inference.json", _INFERENCE)
    write_json(
        folder / CONFIGS / "metadata.json",
        _metadata(describe_export(job.predictor, job.run, job.postprocessing, [name])),
    )
    write_text(folder / "docs" / "README.md", _readme(job))


def note_bundle(job: Job, folder: Path, comparison: dict[str, Any]) -> None:
    """What the comparison found, in models/model.json."""
    note_check(job, folder / MODELS, comparison)


def how_to_run(folder: Path) -> str:
    """The command, from within the bundle."""
    return f"cd {folder} && python -m monai.bundle run --config_file configs/inference.json --dataset_dir SCANS --output_dir predictions"


def _metadata(about: dict[str, Any]) -> dict[str, Any]:
    """As MONAI's bundle specification has it."""
    classes = {str(number): name for number, name in enumerate(about["classes"])}
    side, segments = about["side"], about["task"] == "segmentation"
    channels = about["input"]["pixels"][1]
    answer = (
        {"type": "image", "format": "segmentation"}
        if segments
        else {"type": "probabilities", "format": "classification"}
    )
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json",
        "version": "0.1.0",
        "changelog": {"0.1.0": f"exported by {about['made_by']}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {name: version(name) for name in ("nibabel", "pillow")},
        "supported_apps": {},
        "name": f"{about['head']['name']} of {about['data']['name']}",
        "task": f"{about['task']} of {', '.join(about['classes'])}",
        "description": f"Head {about['head']['name']} on encoder {about['encoder']['name']}, slice by slice. A research model, not a medical device.",
        "authors": "not recorded",
        "copyright": "not recorded",
        "data_source": about["data"]["name"],
        "intended_use": "Research only.",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": _FORMATS.get(about["modality"], "magnitude"),
                    "modality": about["modality"] or "n/a",
                    "num_channels": channels,
                    "spatial_shape": [side, side],
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": False,
                    "channel_def": {str(n): f"channel {n} of the prepared slice" for n in range(channels)},
                }
            },
            "outputs": {
                "pred": {
                    **answer,
                    "num_channels": len(classes),
                    "spatial_shape": [side, side],
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": False,
                    "channel_def": classes,
                }
            },
        },
    }


def _readme(job: Job) -> str:
    ending = (
        "label map in the grid of its file"
        if job.predictor.opening.task == "segmentation"
        else "row of predictions.csv"
    )
    return f"""# A model of samadapt as a MONAI bundle

Run it from this folder; it needs monai, torch, numpy, fire and nibabel or Pillow, and no samadapt:

    python -m monai.bundle run --config_file configs/inference.json --dataset_dir SCANS --output_dir predictions

SCANS is a scan or a folder of NIfTI files or pictures. Each becomes a {ending}.

`models/model.json` says what the model is. `network_def` computes logits from prepared slices; `scripts/runner.py` prepares
the slices, and turns the logits into the answer. It is not a medical device.
"""
