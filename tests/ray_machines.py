"""Machines of a Ray cluster for the tests: each a raylet in processes of its own, on this host or in a network namespace."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from samadapt.cluster import connection

# The command `ray`. It would take 127.0.0.1 for the address of this host in the network, and listen on all interfaces.
_RAY = """
from ray._private import services
from ray.scripts.scripts import main
services.resolve_ip_for_localhost = lambda host: host
main()
"""
_SRC = str(Path(__file__).parents[1] / "src")
_PORT = 6399  # of the head, in a namespace of its own


@dataclass(frozen=True)
class Machines:
    """A cluster that runs.

    Args:
        address: HOST:PORT of its head.
        environment: of every process that works with it.
        roots: the process that each machine was started as.
        prefix: before a command that is to run on the first machine.
    """

    address: str
    environment: dict[str, str]
    roots: tuple[int, ...]
    prefix: tuple[str, ...] = ()

    def busy(self) -> list[tuple[int, int]]:
        """(number of the machine, process) of the workers that compute something now."""
        children = _children()
        return [
            (machine, process)
            for machine, root in enumerate(self.roots)
            for process in _below(root, children)
            if (title := " ".join(words_of(process))).startswith("ray::")
            and not title.startswith(("ray::IDLE", "ray::Dashboard", "ray::Runtime"))
        ]


@contextlib.contextmanager
def machines(cores: Sequence[int], namespaces: Sequence[str] = ()) -> Iterator[Machines]:
    """One machine for each number of cores; with namespaces, each in its own, at 10.77.0.1, 10.77.0.2, ..."""
    environment = {
        **os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": connection._TOKEN, "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": _SRC,
        "OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0",
    }  # fmt: skip
    port = _PORT if namespaces else _free_port()
    with contextlib.ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True))
        hosts = [f"10.77.0.{n + 1}" if namespaces else "127.0.0.1" for n in range(len(cores))]
        roots = []
        for n, (host, number) in enumerate(zip(hosts, cores, strict=True)):
            prefix = ("ip", "netns", "exec", namespaces[n]) if namespaces else ()
            joins = ["--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={place}"]
            joins += [f"--ray-client-server-port={_free_port()}"]
            if n:
                joins = [f"--address={hosts[0]}:{port}"]
            command = [
                *prefix,
                sys.executable,
                "-c",
                _RAY,
                "start",
                "--block",
                "--disable-usage-stats",
                *joins,
            ]
            command += [
                f"--num-cpus={number}",
                f"--node-ip-address={host}",
                "--object-store-memory=100000000",
            ]
            log = stack.enter_context(open(Path(place) / f"machine{n}.log", "wb"))
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=log, start_new_session=True
            )
            stack.callback(_end, process)
            roots.append(process.pid)
            _await(process, Path(log.name), "Ray runtime started")
        first = ("ip", "netns", "exec", namespaces[0]) if namespaces else ()
        yield Machines(f"{hosts[0]}:{port}", environment, tuple(roots), first)


@contextlib.contextmanager
def namespaces(names: Sequence[str]) -> Iterator[None]:
    """Network namespaces that see each other over a bridge, and nothing else."""

    def ip(*words: str, inside: str = "") -> None:
        place = ["-n", inside] if inside else []
        subprocess.run(["ip", *place, *words], check=True, capture_output=True, text=True)

    with contextlib.ExitStack() as stack:
        for name in names:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "del", name)
            ip("link", "set", "lo", "up", inside=name)
        ip("link", "add", "br77", "type", "bridge", inside=names[0])
        ip("addr", "add", "10.77.0.1/24", "dev", "br77", inside=names[0])
        ip("link", "set", "br77", "up", inside=names[0])
        for n, name in enumerate(names[1:], start=1):
            ip(
                "link",
                "add",
                f"v{n}",
                "netns",
                names[0],
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                name,
            )
            ip("link", "set", f"v{n}", "master", "br77", inside=names[0])
            ip("link", "set", f"v{n}", "up", inside=names[0])
            ip("addr", "add", f"10.77.0.{n + 1}/24", "dev", "eth0", inside=name)
            ip("link", "set", "eth0", "up", inside=name)
        yield


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _await(process: subprocess.Popen[bytes], log: Path, word: str) -> None:
    limit = time.monotonic() + 180
    while word not in (text := log.read_text(errors="replace")):
        if process.poll() is not None or time.monotonic() > limit:
            raise RuntimeError(f"Ray did not start:\n{text}")
        time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    """A machine, and what it has started."""
    below = _below(process.pid, _children())
    process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    for one in (process.pid, *below):
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    process.wait()


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            parent = int(place.read_text().rpartition(")")[2].split()[1])
            found.setdefault(parent, []).append(int(place.parent.name))
    return found


def listening(processes: Sequence[int]) -> list[str]:
    """Addresses of the ports that they wait at, in the hexadecimal digits of /proc/net, without those of loopback."""
    sockets = set()
    for place in (path for process in processes for path in Path(f"/proc/{process}/fd").glob("*")):
        with contextlib.suppress(OSError):
            sockets.add(os.readlink(place))
    lines = [
        line.split()
        for name in ("tcp", "tcp6")
        for line in Path("/proc/net", name).read_text().splitlines()[1:]
    ]
    own = [
        line[1].partition(":")[0] for line in lines if line[3] == "0A" and f"socket:[{line[9]}]" in sockets
    ]
    assert own  # else there is nothing to see
    return [
        address for address in own if not address.endswith(("0100007F", "00000000000000000000000001000000"))
    ]


def below(root: int) -> list[int]:
    """Processes that a process has started, and they in turn."""
    return _below(root, _children())


def _below(root: int, children: dict[int, list[int]]) -> list[int]:
    own = children.get(root, [])
    return [*own, *(each for child in own for each in _below(child, children))]


def words_of(process: int) -> list[str]:
    """Its command line; empty where it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_text(errors="replace").split("\0")[:-1]
    return []
