"""The application: its paths, and what happens between a request and its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import gettempdir, mkdtemp
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from samadapt import io
from samadapt.files import free_bytes, scratch_folder
from samadapt.serving import contract
from samadapt.serving.answers import form_of, forms_of
from samadapt.serving.asked import Asked, notes_to_senders
from samadapt.serving.engine import Beside, Engine, Places
from samadapt.serving.guard import LEFT, NOTE, Guard, refused
from samadapt.serving.models import Served
from samadapt.serving.options import ServeOptions
from samadapt.serving.pages import PAGES
from samadapt.serving.refusals import RefusedError
from samadapt.serving.sending import Sent
from samadapt.serving.telemetry import MEDIA, Telemetry
from samadapt.serving.uploads import MOST_UNPACKED, Upload, demand_once, find_scan, receive, too_large, unpack
from samadapt.serving.viewing import as_shown
from samadapt.types import SamAdaptError

T = TypeVar("T")
_MEMORY = Path("/dev/shm")  # a folder in memory, on Linux
#: FastAPI would tell paths and errors to whatever OpenTelemetry is set up to, also by the environment.
_NO_TELEMETRY: Any = dict.fromkeys(("auto_configure", "tracing", "metrics", "logs", "operation_spans"), False)
_UNPACKING = 2  # uploads that are unpacked and looked at side by side


class Server:
    """The models, the row of requests, and the folder of what is being answered."""

    def __init__(self, models: Mapping[str, Served], options: ServeOptions) -> None:
        self.models, self.options = models, options
        self.places, self.telemetry = Places(options.queue), Telemetry()
        self.folder, self.engine = Path(), Engine(Path(), self.telemetry.computed)
        self.unpacking = Beside(_UNPACKING)
        self.telemetry.gauge(
            "samadapt_requests_taken",
            "Requests from the first byte until the answer is read.",
            lambda: self.places.taken,
        )
        self.telemetry.gauge(
            "samadapt_requests_waiting", "Requests that wait for the network.", lambda: self.engine.waiting
        )

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """Ready for requests, until the server stops."""
        with scratch_folder(scratch_place(self.options)) as self.folder, notes_to_senders():
            answers = self.folder / "answers"
            answers.mkdir()
            self.engine = Engine(answers, self.telemetry.computed)
            self.engine.start()
            try:
                yield
            finally:
                await asyncio.to_thread(self.engine.stop)
                self.unpacking.pool.shutdown(cancel_futures=True)

    # ------------------------------------------------ a request

    def model(self, name: str | None) -> Served:
        """By its name; the only one may go unnamed."""
        if name is None and len(self.models) == 1:
            return next(iter(self.models.values()))
        known = ", ".join(self.models)
        if name is None:
            raise RefusedError(422, f"no model is named, and there are several; give ?model= one of {known}")
        if name not in self.models:
            raise RefusedError(404, f"there is no model {name!r}; known: {known}")
        return self.models[name]

    async def predict(self, request: Request, name: str | None, form: str) -> Response:
        """What `/predict` does."""
        model = self.model(name)
        request.scope[NOTE]["model"] = model.name
        answered_as, begun = form_of(model, form), time.perf_counter()
        with ExitStack() as place:
            async with self._asked(request, model, place) as asked:
                asked.form = answered_as
                self.engine.submit(asked)
                answer = await _unless_left(request, asyncio.wrap_future(asked.answer))
            about = {"model": model.name, "task": model.opening.task, **answer.about, "notes": asked.notes}
            about["seconds"] = round(time.perf_counter() - begun, 4)
            return Sent(answer, about, place.pop_all(), self.options.time_limit)

    async def view(self, request: Request, name: str | None) -> Response:
        """What `/view` does."""
        model = self.model(name)
        request.scope[NOTE]["model"] = model.name
        with ExitStack() as place:
            async with self._asked(request, model, place) as asked:
                answer = await _unless_left(request, self._beside(asked, partial(as_shown, asked)))
            return Sent(answer, {"notes": asked.notes}, place.pop_all(), self.options.time_limit)

    @asynccontextmanager
    async def _asked(self, request: Request, model: Served, place: ExitStack) -> AsyncIterator[Asked]:
        """What was sent, for which a place is taken. It is deleted at the end, and when the client leaves or the time is over."""
        most = self.options.upload_bytes
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            raise too_large(most)
        place.enter_context(self.places.one())
        received = False
        try:
            async with asyncio.timeout(self.options.time_limit):
                asked = Asked(model, Path(mkdtemp(dir=self.folder)))
                try:
                    uploads = await receive(request, most)
                    received = True
                    found = self._beside(asked, partial(self._place, asked, uploads))
                    del uploads
                    await _unless_left(request, found)
                    yield asked
                finally:
                    self.engine.withdraw(asked)
                    asked.leave()
                    io.forget_headers()
        except TimeoutError:
            limit = f"{self.options.time_limit:g} seconds"
            raise (
                RefusedError(
                    504,
                    f"the answer took longer than {limit}; try again when the server is less busy, or crop the scan",
                )
                if received
                else RefusedError(
                    408,
                    f"the upload took longer than {limit}; send a smaller file, or over a faster line",
                )
            ) from None

    def _place(self, asked: Asked, uploads: list[Upload]) -> None:
        """What was sent is unpacked, and found to be one scan."""
        given = unpack(uploads, asked.folder, self.options.upload_bytes)
        uploads.clear()
        asked.input, asked.voxels = find_scan(given, asked.model.opening, self.options.voxels)

    def _beside(self, asked: Asked, work: Callable[[], T]) -> asyncio.Future[T]:
        """In another thread, so that others are served meanwhile."""
        return asyncio.wrap_future(self.unpacking.submit(partial(asked.carry_out, work)))

    @property
    def is_well(self) -> bool:
        """Whether requests are unpacked and computed. Those of whom nobody waits any more end soon, unless something hangs."""
        limit = 2 * self.options.time_limit
        return self.engine.is_alive and max(self.engine.busy_seconds, self.unpacking.busy_seconds) < limit


async def _unless_left(request: Request, found: asyncio.Future[Any]) -> Any:
    """The result, unless the client leaves before."""
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({found, left}, return_when=asyncio.FIRST_COMPLETED)
        if not found.done():
            raise ClientDisconnect
        if found.cancelled():
            raise RefusedError(503, "the server stops; try again in a minute", {"Retry-After": "60"})
        return found.result()
    finally:
        left.cancel()
        found.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def scratch_place(options: ServeOptions) -> Path:
    """Memory, where there is a folder in it that holds the largest upload; else the folder of temporary files."""
    needed = options.upload_bytes * (MOST_UNPACKED + 1)
    return _MEMORY if _MEMORY.is_dir() and free_bytes(_MEMORY) >= needed else Path(gettempdir())


# ---------------------------------------------------------------- the paths


def make_app(models: Mapping[str, Served], options: ServeOptions, token: str | None = None) -> FastAPI:
    """The server as an ASGI application."""
    server = Server(models, options)
    app = FastAPI(
        title="samadapt", version=version("samadapt"), lifespan=server.running, docs_url=None, redoc_url=None, redirect_slashes=False,
        telemetry=_NO_TELEMETRY, description=contract.DESCRIPTION, responses=contract.REFUSED,
    )  # fmt: skip
    _add_paths(app, server, token is not None)
    for page in PAGES:
        app.add_api_route(page.path, page.respond, include_in_schema=False, methods=["GET", "HEAD"])
    _add_refusals(app)
    paths = [
        "/models",
        "/predict",
        "/view",
        "/healthz",
        "/metrics",
        "/openapi.json",
        *(page.path for page in PAGES),
    ]
    app.add_middleware(
        Guard,
        token=token,
        telemetry=server.telemetry,
        paths=paths,
        open_paths=["/healthz", *(page.path for page in PAGES)],
    )
    app.state.server = server
    schema = contract.with_models(
        app.openapi(), {name: len(each.opening.channel_names) for name, each in models.items()}
    )
    app.openapi = lambda: schema  # type: ignore[method-assign]
    return app


def _add_paths(app: FastAPI, server: Server, secured: bool) -> None:
    needs = contract.SECURED if secured else {}
    described = [
        contract.ModelOf(**model.describe(forms_of(model))) for model in server.models.values()
    ]  # takes seconds

    @app.get("/models", summary="The models and their classes", openapi_extra=needs)
    async def models() -> contract.Models:
        return contract.Models(models=described)

    @app.post("/predict", summary="Ask a model about one scan", response_class=Response, responses=contract.ANSWERED,
              openapi_extra=contract.UPLOADED | needs)  # fmt: skip
    async def predict(
        request: Request, model: contract.ModelName = None, output: contract.OutputName = "auto"
    ) -> Response:
        demand_once(request)
        return await server.predict(request, model, output)

    @app.post("/view", summary="A scan as the page can show it: NIfTI of a volume, PNG of a picture", response_class=Response,
              responses=contract.SHOWN, openapi_extra=contract.UPLOADED | needs)  # fmt: skip
    async def view(request: Request, model: contract.ModelName = None) -> Response:
        demand_once(request)
        return await server.view(request, model)

    @app.get("/healthz", summary="Whether the server can answer", responses=contract.HEALTH)
    async def healthz() -> contract.Health:
        if not server.is_well:
            raise RefusedError(503, "the server does not answer any more; start it again")
        return contract.Health(status="ok")

    @app.get(
        "/metrics",
        summary="Counts for Prometheus",
        response_class=Response,
        responses=contract.COUNTED,
        openapi_extra=needs,
    )
    async def metrics() -> Response:
        return Response(server.telemetry.text(), media_type=MEDIA)


def _add_refusals(app: FastAPI) -> None:
    """Every refusal is JSON with one sentence."""

    @app.exception_handler(RefusedError)
    async def _refused(_: Request, error: RefusedError) -> Response:
        return refused(error)

    @app.exception_handler(SamAdaptError)
    async def _mistaken(_: Request, error: SamAdaptError) -> Response:
        return refused(RefusedError(422, str(error)))

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return refused(
            RefusedError(
                422,
                f"{first['loc'][-1]} is {first.get('input')!r}; {first['msg'][:1].lower()}{first['msg'][1:]}",
            )
        )

    @app.exception_handler(HTTPException)
    async def _no_such_path(_: Request, error: HTTPException) -> Response:
        said = {
            404: "there is no such path; /openapi.json lists all",
            405: "this path does not take this method",
        }
        return refused(
            RefusedError(error.status_code, said.get(error.status_code, str(error.detail)), error.headers)
        )

    @app.exception_handler(ClientDisconnect)
    async def _left(_: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=LEFT)  # nobody reads it
