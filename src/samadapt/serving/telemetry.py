"""What the server counts, for Prometheus and for its log. Names of files and of patients are in neither."""

from __future__ import annotations

import logging
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

MEDIA = CONTENT_TYPE_LATEST
LOG = logging.getLogger("samadapt.serving")
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Telemetry:
    """The counts of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "samadapt_requests", "Answered requests.", ("path", "model", "status"), registry=self.registry
        )
        self.seconds = Histogram(
            "samadapt_request_seconds", "Seconds from a request to its answer.", ("path", "model"), buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.together = Histogram(
            "samadapt_answered_together",
            "Requests that passed the network together.",
            buckets=_SIZES,
            registry=self.registry,
        )
        self.compute = Counter(
            "samadapt_compute_seconds",
            "Seconds in which scans were read and computed.",
            registry=self.registry,
        )

    def gauge(self, name: str, help: str, value: Callable[[], float]) -> None:
        """A number that is asked for when the counts are read."""
        Gauge(name, help, registry=self.registry).set_function(value)

    def computed(self, count: int, seconds: float) -> None:
        """Some requests were answered in one go."""
        self.together.observe(count)
        self.compute.inc(seconds)

    def answered(self, method: str, path: str, model: str, size: int, status: int, seconds: float) -> None:
        """One request: a line of the log, and the counts.

        Args:
            path, model: only those that the server knows, for clients can write anything there.
            size: bytes that were received.
        """
        self.requests.labels(path, model, status).inc()
        self.seconds.labels(path, model).observe(seconds)
        LOG.info("%s %s model=%s bytes=%d status=%d seconds=%.3f", method, path, model, size, status, seconds)

    def text(self) -> bytes:
        """As Prometheus reads it."""
        return generate_latest(self.registry)


class _Wordless(logging.Formatter):
    """Where something was said and not what: other packages name files and values of headers, which are a patient's."""

    def format(self, record: logging.LogRecord) -> str:
        place = f"{record.levelname} of {record.name} in {record.filename}, line {record.lineno}"
        return f"{self.formatTime(record)} {place}; its text is not logged, for it may name patients"


def log_to_stderr() -> None:
    """On stderr a line for each request; uvicorn speaks only where something is wrong, and others without words."""
    of_others = logging.StreamHandler()
    of_others.setFormatter(_Wordless())
    of_others.setLevel(logging.WARNING)
    logging.getLogger().handlers = [of_others]
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for name, level in (("samadapt.serving", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.propagate = False
        logger.handlers = [handler]
    for name in list(
        logging.root.manager.loggerDict
    ):  # those of libraries that brought handlers of their own
        logger = logging.getLogger(name)
        if logger.handlers and logger.handlers != [handler]:
            logger.handlers, logger.propagate = [], True
