"""Many clients at once: are answers lost or mixed up, does the memory grow, is every refusal a clear one, how long does it take?

    make bench-serve_load ARGS="--segment RUN --classify RUN --volumes FOLDER --pictures FOLDER"

Starts `samadapt serve` with both runs as a process of its own. 50 clients send 500 requests: volumes, pictures, damaged and
huge files, and requests of clients that leave. Every answer is compared with that of the bare model, which is asked before.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gzip
import hashlib
import http.client
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np

from samadapt.folders import predict_folder
from samadapt.prediction import Classifier, Segmenter, load_run
from samadapt.serving.client import _form

KINDS = {"picture": 60, "volume": 14, "damaged": 10, "no form": 4, "huge": 4, "bomb": 2, "leaves": 6}
PATIENT = ("picture", "volume")
TOKEN = "load-test-token-0123456789"


def bomb() -> bytes:
    """A volume of two billion voxels by its header, and of a few kilobytes."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, 1200, 1200, 1200, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 2, 8)
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 0, 0, 0, 0)
    struct.pack_into("<3f", header, 108, 352, 1, 0)
    struct.pack_into("<h", header, 254, 1)
    struct.pack_into("<12f", header, 280, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    header[344:348] = b"n+1\0"
    return gzip.compress(bytes(header) + bytes(1 << 24))


class Bare:
    """What the models answer without a server, and the seconds that they take."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.volumes = sorted(args.volumes.glob("*.nii.gz"))[: args.files]
        self.pictures = sorted(args.pictures.glob("*.png"))[: 6 * args.files]
        segmenter, classifier = load_run(args.segment, "cpu"), load_run(args.classify, "cpu")
        assert isinstance(segmenter, Segmenter) and isinstance(classifier, Classifier)
        self.labels: dict[Path, str] = {}
        self.seconds: dict[str, list[float]] = {"volume": [], "picture": []}
        for path in self.volumes:
            begun = time.perf_counter()
            segmenter.predict(path)
            self.seconds["volume"].append(time.perf_counter() - begun)
            out = folder / path.name.split(".")[0]
            predict_folder(args.segment, path, out, device="cpu")
            self.labels[path] = hashlib.sha256(next(out.glob("*.nii.gz")).read_bytes()).hexdigest()
        self.values: dict[Path, np.ndarray] = {}
        for path in self.pictures:
            begun = time.perf_counter()
            self.values[path] = classifier.predict(path)
            self.seconds["picture"].append(time.perf_counter() - begun)


class Load:
    """Clients, and what became of their requests."""

    def __init__(self, port: int, bare: Bare, args: argparse.Namespace) -> None:
        self.port, self.bare, self.args = port, bare, args
        self.kinds = random.Random(0).choices(list(KINDS), list(KINDS.values()), k=args.requests)
        self.lock = threading.Lock()
        self.next = 0
        self.statuses: dict[str, collections.Counter[int | str]] = collections.defaultdict(
            collections.Counter
        )
        self.seconds: dict[str, list[float]] = collections.defaultdict(list)
        self.wrong: list[str] = []
        self.huge = b"x" * (args.max_upload + 8 << 20)
        self.bomb = bomb()

    def client(self) -> None:
        while True:
            with self.lock:
                number, self.next = self.next, self.next + 1
            if number >= len(self.kinds):
                return
            kind = self.kinds[number]
            try:
                self._request(number, kind)
            except Exception as error:
                with self.lock:
                    self.wrong.append(f"request {number} ({kind}): {type(error).__name__}: {error}")

    def _request(self, number: int, kind: str) -> None:
        rng = random.Random(number)
        volume, photo = rng.choice(self.bare.volumes), rng.choice(self.bare.pictures)
        path, model = (
            (photo, self.args.classify.name) if kind == "picture" else (volume, self.args.segment.name)
        )
        content = path.read_bytes()
        if kind == "damaged":
            content = content[: rng.randrange(len(content))]
        content = {"huge": self.huge, "bomb": self.bomb}.get(kind, content)
        content_type, body = _form([(path.name, content)])
        if kind == "no form":
            content_type, body = "application/json", b"{}"
        if kind == "leaves":
            self._leave(rng, model, content_type, body)
            return
        begun = time.perf_counter()
        while True:
            taken = time.perf_counter()
            status, headers, answer = self._post(model, content_type, body)
            with self.lock:
                self.statuses[kind][status] += 1
            if status != 429 or kind not in PATIENT:
                break
            assert int(headers["retry-after"]) > 0
            time.sleep(rng.uniform(0.5, 1.5))
        with self.lock:
            self.seconds[kind].append(time.perf_counter() - begun)
            self.seconds[f"{kind} taken"].append(time.perf_counter() - taken)
        self._check(number, kind, path, status, answer)

    def _check(self, number: int, kind: str, path: Path, status: int, answer: bytes) -> None:
        if status == 200 and kind == "volume":
            right = hashlib.sha256(answer).hexdigest() == self.bare.labels[path]
        elif status == 200 and kind == "picture":
            found = list(json.loads(answer)["probabilities"].values())
            right = bool(np.abs(np.array(found) - self.bare.values[path]).max() < 1e-5)
        else:
            sentence = json.loads(answer)["error"]
            right = kind not in PATIENT and 400 <= status < 500 and len(sentence) > 20
            right &= "/dev/shm" not in sentence and "/tmp" not in sentence
        if not right:
            with self.lock:
                self.wrong.append(f"request {number} ({kind}): {status} {answer[:200]!r}")

    def _post(self, model: str, content_type: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        with contextlib.closing(connection):
            headers = {"Content-Type": content_type, "Authorization": f"Bearer {TOKEN}"}
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all was sent
                connection.request("POST", f"/predict?model={model}", body, headers)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()

    def _leave(self, rng: random.Random, model: str, content_type: str, body: bytes) -> None:
        """Some in the middle of their upload, some while they wait."""
        head = (
            f"POST /predict?model={model} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {content_type}\r\n"
            f"Authorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)) as client:
            client.sendall(head + body[: rng.choice([len(body), len(body) // 2])])
            time.sleep(rng.uniform(0, 0.5))
        with self.lock:
            self.statuses["leaves"]["left"] += 1


def rss_mib(process: int) -> float:
    status = Path(f"/proc/{process}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


def start(args: argparse.Namespace, log: Path) -> tuple[subprocess.Popen[bytes], int]:
    command = [
        sys.executable,
        "-m",
        "samadapt.cli",
        "serve",
        str(args.segment),
        str(args.classify),
        "--port",
        "0",
    ]
    command += ["--device", "cpu", "--queue", str(args.queue), "--max-upload", str(args.max_upload)]
    environment = os.environ | {"SAMADAPT_TOKEN": TOKEN}
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    while not (found := re.search(r"http://127\.0\.0\.1:(\d+)/", log.read_text())):
        assert process.poll() is None, log.read_text()
        time.sleep(0.2)
    port = int(found.group(1))
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz"):
            return process, port
        time.sleep(0.1)


def storm(port: int, bare: Bare, args: argparse.Namespace) -> Load:
    load = Load(port, bare, args)
    threads = [threading.Thread(target=load.client) for _ in range(args.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return load


def report(load: Load, bare: Bare, seconds: float) -> None:
    print(f"{len(load.kinds)} requests of {load.args.clients} clients in {seconds:.0f} s")
    for kind, counts in sorted(load.statuses.items()):
        print(f"  {kind:8} {dict(counts)}")
    for kind in PATIENT:
        alone, taken, all_in_all = (
            "{:.2f} s (p95 {:.2f})".format(*np.percentile(x, (50, 95)))
            for x in (bare.seconds[kind], load.seconds[f"{kind} taken"], load.seconds[kind])
        )
        print(
            f"  {kind}: bare model {alone}; a request that was taken {taken}; with those refused before it {all_in_all}"
        )
    print(f"  wrong, lost or mixed up: {len(load.wrong)}")
    for line in load.wrong[:10]:
        print("   ", line)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("segment", "classify", "volumes", "pictures"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument(
        "--rounds", type=int, default=2, help="how often all of it; memory is compared after the first"
    )
    parser.add_argument("--files", type=int, default=8, help="different volumes; six times as many pictures")
    parser.add_argument("--queue", type=int, default=16)
    parser.add_argument("--max-upload", type=int, default=32)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        bare = Bare(args, Path(temporary))
        log = Path(temporary) / "log.txt"
        process, port = start(args, log)
        try:
            memory = [rss_mib(process.pid)]
            wrong = 0
            for _ in range(args.rounds):
                begun = time.perf_counter()
                load = storm(port, bare, args)
                report(load, bare, time.perf_counter() - begun)
                time.sleep(2)
                memory.append(rss_mib(process.pid))
                wrong += len(load.wrong)
            places = urllib.request.Request(
                f"http://127.0.0.1:{port}/metrics", headers={"Authorization": f"Bearer {TOKEN}"}
            )
            counts = urllib.request.urlopen(places).read().decode()
            print(*re.findall(r"^samadapt_requests_(?:taken|waiting) .*", counts, re.M), sep="; ")
            together = dict(re.findall(r"^samadapt_answered_together_(count|sum) (.*)", counts, re.M))
            print(f"{float(together['sum']):.0f} requests computed in {float(together['count']):.0f} goes")
            names = [path.name for path in (*bare.volumes, *bare.pictures) if path.name in log.read_text()]
            print(
                f"memory of the server, MiB: {', '.join(f'{x:.0f}' for x in memory)}; names of files in its log: {len(names)}"
            )
        finally:
            process.terminate()
            process.wait()
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
