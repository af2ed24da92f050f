"""To a Ray cluster, and what it has."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch

from samadapt.cluster.spread import Cluster
from samadapt.runs import pick_device
from samadapt.types import SamAdaptError

#: In place of an address: a cluster of this machine alone that ends with the command.
LOCAL = "local"
AUTO = "auto"  # the cluster that this machine is part of
_PATIENCE = 10.0  # seconds
#: Of the driver's environment, what its workers are to have too. Tokens are not passed on.
_PASSED_ON = ("HF_HUB_OFFLINE", "HF_HOME", "SAMADAPT_CACHE", "SAMADAPT_QUIET", "PYTHONWARNINGS")
_CURE = (
    "start one (on its first machine: ray start --head; on each other one: ray start --address=HOST:6379), give its address, "
    "or leave out --ray"
)


@contextmanager
def connect(address: str, device: str = "auto") -> Iterator[Cluster]:
    """A cluster for as long as the block runs.

    Args:
        address: auto, local, or HOST:PORT of the head, as `samadapt --ray` takes it.
        device: to compute on; auto: the GPUs if the cluster has any, else the processors.

    Raises:
        SamAdaptError: Ray is not installed, no cluster answers, or it has no such device.
    """
    if find_spec("ray") is None:
        raise SamAdaptError(
            f"--ray {address} needs the package ray, which is not installed; pip install 'samadapt[cluster]', or leave it out"
        )
    _demand_answer(address)
    _join(address)
    import ray

    try:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield Cluster(_device(device, nodes, address), torch.get_num_threads(), nodes)
    finally:
        ray.shutdown()


def _demand_answer(address: str) -> None:
    """Ray ends the whole process where nobody answers."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address in (AUTO, LOCAL):
        return
    if not host or not port.isdigit():
        raise SamAdaptError(
            f"--ray {address} is no address; expected {AUTO}, {LOCAL}, or HOST:PORT of the head: {_CURE}"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _PATIENCE).close()
    except OSError as error:
        raise SamAdaptError(
            f"no Ray cluster answers at --ray {address}: {error.strerror or error}; {_CURE}"
        ) from error


def _join(address: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing about a hospital's machines leaves them
    import ray

    more: dict[str, Any] = {"include_dashboard": False} if address == LOCAL else {}
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    try:
        ray.init(address, logging_level=logging.ERROR, runtime_env={"env_vars": passed_on} if passed_on else None, **more)  # fmt: skip
    except (ConnectionError, ValueError, RuntimeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SamAdaptError(f"no Ray cluster answers at --ray {address}: {first}; {_CURE}") from error


def _device(asked: str, nodes: list[dict[str, float]], address: str) -> str:
    """The same one for all workers: cuda or cpu."""
    gpus = any(node.get("GPU", 0) >= 1 for node in nodes)
    found = {"auto": "cuda" if gpus else "cpu", "cuda": "cuda", "gpu": "cuda", "cpu": "cpu"}.get(asked)
    if found is None:
        pick_device(asked)  # refuses names that are no device's
        raise SamAdaptError(
            f"--device {asked} and --ray {address} do not go together; expected auto, cpu or cuda"
        )
    if found == "cuda" and not gpus:
        raise SamAdaptError(
            f"--device {asked} was asked for, and no machine of the Ray cluster at {address} has a GPU; leave it out, or start the "
            "machines with GPUs (ray start --num-gpus=1)"
        )
    return found
