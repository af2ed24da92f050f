"""samadapt: adapt Segment Anything to medical images with a frozen encoder and light, prompt-free heads.

Names are loaded when they are first used, so that `import samadapt` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "open_dataset": "datasets",
    "EncoderSpec": "encoders",
    "load_encoder": "encoders",
    "build_head": "heads",
    "FeatureStore": "features",
    "Pairs": "features",
    "TrainConfig": "training",
    "train": "training",
    "Learner": "learner",
    "fit": "learner",
    "load_run": "prediction",
    "Segmenter": "prediction",
    "Classifier": "prediction",
    "predict_folder": "folders",
    "evaluate_folder": "evaluation",
    "run_experiment": "experiment",
    "write_report": "report",
    "summarise": "metrics",
    "Case": "types",
    "Frame": "types",
    "Head": "types",
    "SamAdaptError": "types",
    "Score": "types",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'samadapt' has no attribute {name!r}")
    return getattr(import_module(f"samadapt.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
