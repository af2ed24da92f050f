"""What several tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the project; tests that need it are skipped where it is absent."""
    folder = Path(__file__).parents[1] / "../shared/data"
    if not folder.is_dir():
        pytest.skip("the real data is not beside the project (../shared/data)")
    return folder.resolve()


@pytest.fixture
def tiny_encoder(monkeypatch):
    """Puts the encoder of `fakes.py` into the table, under the name `tiny`."""
    from fakes import TinyEncoder, prepare_tiny
    from samadapt.encoders import ENCODERS
    from samadapt.views.prepare import PREPARES, UNITS

    monkeypatch.setitem(ENCODERS, "tiny", TinyEncoder())
    monkeypatch.setitem(PREPARES, "tiny", prepare_tiny)
    monkeypatch.setitem(UNITS, "tiny", ((127.5,) * 3, (255.0,) * 3))
    return ENCODERS["tiny"]


@pytest.fixture(scope="module")
def phantom(tmp_path_factory) -> Path:
    """A small data set, the same for all tests of a file."""
    from samadapt.phantom import make_phantom  # after the number of threads is set

    return make_phantom(tmp_path_factory.mktemp("phantom") / "data", patients=4, size=48, slices=3)


@pytest.fixture
def read_labels(monkeypatch):
    """The cases whose labels were read."""
    from samadapt.datasets import Dataset

    read, original = set(), Dataset._label

    def watched(self, entry, case):
        label = original(self, entry, case)
        if label is not None:
            read.add(entry.id)
        return label

    monkeypatch.setattr(Dataset, "_label", watched)
    return read
