"""One request on its way: what was sent, what was said about it, and where the answer goes."""

from __future__ import annotations

import contextlib
import shutil
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from samadapt import io
from samadapt.inputs import Input
from samadapt.records import WriteError
from samadapt.serving.answers import Answer, Computed, Form
from samadapt.serving.models import Served
from samadapt.serving.refusals import RefusedError, own_mistake
from samadapt.serving.telemetry import LOG
from samadapt.types import Case, SamAdaptError, SamAdaptWarning

T = TypeVar("T")


_SMALL = (
    1 << 22
)  # values of a picture: those that wait are read together, so that large ones would fill the memory


class GoneError(Exception):
    """Nobody waits for the answer any more."""


@dataclass(eq=False)
class Asked:
    """A scan that a model is asked about."""

    model: Served
    folder: Path  # of what was sent; deleted with the request
    form: Form | None = None  # None until the files are there
    input: Input | None = None
    voxels: int = 0  # of all its channels
    notes: list[str] = field(default_factory=list)  # what was assumed of the scan
    answer: Future[Answer] = field(default_factory=Future)
    gone: threading.Event = field(default_factory=threading.Event)

    @property
    def is_small(self) -> bool:
        """Whether it is a small picture, which is answered together with others that wait."""
        assert self.input is not None
        return self.voxels <= _SMALL and io.is_picture(self.input.files[0])

    def read(self) -> Case | None:
        """The case; None where nobody waits for it, or it cannot be read, which was said then."""
        assert self.input is not None
        with self.told():
            self.demand_asker()
            return self.input.load()
        return None

    def demand_asker(self) -> None:
        """Raise where nobody waits for the answer."""
        if self.gone.is_set():
            raise GoneError

    def unless_gone(self, items: Iterable[T]) -> Iterator[T]:
        """The same items, as long as somebody waits for the answer."""
        for item in items:
            self.demand_asker()
            yield item

    def leave(self) -> None:
        """Nobody waits any more; what was sent is deleted."""
        self.gone.set()
        self.answer.cancel()
        shutil.rmtree(self.folder, ignore_errors=True)

    def carry_out(self, work: Callable[[], T]) -> T:
        """In a thread beside the server's: some work with what was sent. What is wrong is raised in words for the sender."""
        try:
            self.demand_asker()
            with noting(self):
                return work()
        except Exception as error:
            raise self.refusal(error) from None
        finally:
            if self.gone.is_set():  # the client left while files were written
                self.leave()

    # ------------------------------------------------ what becomes of it

    def finish(self, computed: Computed) -> None:
        """Send the answer back in the form that was asked for, unless nobody waits."""
        assert self.form is not None
        answer = self.form.make(computed)
        with contextlib.suppress(InvalidStateError):
            self.answer.set_result(answer)

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """What is wrong with this scan, or assumed of it, is told to who sent it; it stops no other."""
        try:
            with noting(self):
                yield
        except GoneError:
            self.answer.cancel()
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Tell what was wrong, unless it was answered."""
        with contextlib.suppress(InvalidStateError):
            self.answer.set_exception(self.refusal(error))

    def refusal(self, error: Exception) -> RefusedError:
        """In the words of the command line; nothing of the server's folders, and no words for what is our own mistake."""
        if isinstance(error, RefusedError):
            return error
        if isinstance(error, SamAdaptError) and not isinstance(error, WriteError):
            said = str(error) if self.input is None else self.input.what_failed(error)
            return RefusedError(422, self.without_folders(said))
        if isinstance(error, WriteError | MemoryError) or "out of memory" in str(error):
            return RefusedError(
                503,
                "the server has too little room for this scan now; try again later, or crop the scan",
                {"Retry-After": "30"},
            )
        refusal = own_mistake(error)
        LOG.error(refusal.sentence)
        return refusal

    def without_folders(self, text: str) -> str:
        """What is said of a file names the file, as its sender knows it."""
        inside = (self.folder / "scan", self.folder)
        for folder in (*inside, *(each.resolve() for each in inside)):
            text = text.replace(f"{folder}/", "").replace(str(folder), "the upload")
        return text


# ---------------------------------------------------------------- notes

_listening = threading.local()


@contextlib.contextmanager
def noting(asked: Asked) -> Iterator[None]:
    """What is assumed in this block, by this thread, is told to who sent the scan."""
    before, _listening.asked = getattr(_listening, "asked", None), asked
    try:
        yield
    finally:
        _listening.asked = before


@contextlib.contextmanager
def notes_to_senders() -> Iterator[None]:
    """While it lasts, our warnings about a scan go to who sent it. Others say values of headers, and are not written down."""

    def show(message: Warning | str, category: type[Warning], *place: object, **more: object) -> None:
        asked: Asked | None = getattr(_listening, "asked", None)
        if asked is not None and issubclass(category, SamAdaptWarning):
            asked.notes.append(asked.without_folders(str(message)))

    with warnings.catch_warnings():
        warnings.simplefilter("always", SamAdaptWarning)
        warnings.showwarning = show
        yield
