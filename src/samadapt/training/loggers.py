"""Where the losses go beside `metrics.csv`: a table of loggers that a user may ask for."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, final


class Logger(ABC):
    """Takes numbers by step."""

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Some numbers of one step."""

    @abstractmethod
    def close(self) -> None:
        """Write what is left."""


@final
class TensorBoard(Logger):
    """Event files below the run folder: `tensorboard --logdir RUN`."""

    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # an extra; `TrainConfig` asks whether it is here

        self.writer = SummaryWriter(str(run / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


@final
class MLflow(Logger):
    """A run of MLflow, at MLFLOW_TRACKING_URI or, without it, in a database in the run folder."""

    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        import mlflow  # an extra, as above

        if "MLFLOW_TRACKING_URI" not in os.environ:
            mlflow.set_tracking_uri(f"sqlite:///{(run / 'mlflow.db').resolve()}")
        mlflow.set_experiment("samadapt")
        self.mlflow = mlflow
        mlflow.start_run(run_name=run.name)
        mlflow.log_params({name: str(value)[:500] for name, value in settings.items()})

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.mlflow.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self.mlflow.end_run()


LOGGERS: dict[str, Callable[[Path, Mapping[str, Any]], Logger]] = {
    "mlflow": MLflow,
    "tensorboard": TensorBoard,
}
