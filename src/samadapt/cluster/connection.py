"""To a Ray cluster, and what it has."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

import torch

from samadapt.cluster.spread import Cluster
from samadapt.experiment.executors import variables
from samadapt.runs import pick_device
from samadapt.types import SamAdaptError

#: In place of an address: a cluster of this machine alone that ends with the command.
LOCAL = "local"
AUTO = "auto"  # the cluster that this machine is part of
_PATIENCE = 10.0  # seconds
#: Of clusters that this process starts. One for all: Ray reads it once.
_TOKEN = secrets.token_hex(32)
#: Of the driver's environment, what its workers are to have too. Tokens are not passed on.
_PASSED_ON = ("HF_HUB_OFFLINE", "HF_HOME", "SAMADAPT_CACHE", "SAMADAPT_QUIET", "PYTHONWARNINGS")
_CURE = (
    "start one (on its first machine: ray start --head; on each other one: ray start --address=HOST:6379), give its address, "
    "or leave out --ray"
)


@contextmanager
def connect(address: str, device: str = "auto", cores: int | None = None) -> Iterator[Cluster]:
    """A cluster for as long as the block runs.

    Args:
        address: auto, local, or HOST:PORT of the head, as `samadapt --ray` takes it.
        device: to compute on; auto: the GPUs if the cluster has any, else the processors.
        cores: of this machine, that `local` may use; None: all of them.

    Raises:
        SamAdaptError: Ray is not installed, no cluster answers, or it has no such device.
    """
    if find_spec("ray") is None:
        raise SamAdaptError(
            f"--ray {address} needs the package ray, which is not installed; pip install 'samadapt[cluster]', or leave it out"
        )
    _demand_answer(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing about a hospital's machines leaves them
    with ExitStack() as stack:
        if address == LOCAL:
            settings = {"include_dashboard": False, "num_cpus": cores} | stack.enter_context(_private())
        else:
            settings = {}
        import ray

        stack.callback(ray.shutdown)  # also where it failed to begin
        _join(address, settings)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield Cluster(_device(device, nodes, address), torch.get_num_threads(), nodes)


@contextmanager
def _private() -> Iterator[dict[str, Any]]:
    """For a cluster of this machine alone: no port that others reach, no file that stays, a token of its own.

    Ray would listen on all network interfaces, keep its logs in /tmp/ray and write a token into the user's home.
    """
    token = os.environ.get("RAY_AUTH_TOKEN", _TOKEN)
    with (
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as place,
        # Where the mode is not set, Ray sets it itself, and it is to be forgotten with the token.
        variables({"RAY_AUTH_TOKEN": token, "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE")}),
    ):
        from ray._private import ray_constants

        # As Ray does on macOS and Windows. A test looks at the ports, for this name is not public.
        before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
        try:
            yield {} if "RAY_TMPDIR" in os.environ else {"_temp_dir": place}
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = before


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


def _join(address: str, settings: dict[str, Any]) -> None:
    import ray

    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    try:
        ray.init(address, logging_level=logging.ERROR, runtime_env={"env_vars": passed_on} if passed_on else None, **settings)  # fmt: skip
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
