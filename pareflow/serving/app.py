"""The HTTP application around served models: the Open Inference Protocol, MLflow's routes, metrics."""

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

import pareflow
from pareflow.errors import PareflowError
from pareflow.runtime.endpoint import answered_within
from pareflow.serving import generate, invocations, openapi, protocol, refusals
from pareflow.serving.hosting import Hosted
from pareflow.serving.metrics import CONTENT_TYPE, Metrics
from pareflow.serving.plan import ServingPlan
from pareflow.serving.refusals import JSON, NotFoundError, TooLargeError, UnreadableError
from pareflow.serving.settings import Settings
from pareflow.serving.slot import Slot, Source

log = logging.getLogger("pareflow.serving")

BINARY = "application/octet-stream"
VERSION = pareflow.__version__
EXTENSIONS = ["binary_tensor_data"]
OPEN_TO_ALL = ("/v2/health/", "/ping", "/health")
"""What an orchestrator asks without a key."""

Answer = Callable[[Request], Awaitable[Response]]
_Answer = TypeVar("_Answer")


def assembled(
    sources: Sequence[Source], plan: ServingPlan | None, settings: Settings, found: Callable[[str], Source]
) -> ASGIApp:
    """The application of these models, loaded: that blocks.

    Without a plan each is served by its own. `found` gives the source of what a plan's tiers name.
    Raises: what the sources raise, and what a model that cannot be served does.
    """
    metrics = Metrics()
    slots = [Slot(source, plan, metrics, found) for source in sources]
    return App(slots, settings, metrics).asgi()


class App:
    """The routes, over the slots of the models that are served."""

    def __init__(self, slots: Sequence[Slot], settings: Settings, metrics: Metrics) -> None:
        self._slots = {slot.source.name: slot for slot in slots}
        self._settings, self._metrics = settings, metrics
        self._most_bytes = int(settings.body_mib * 2**20)
        self._draining = False

    def asgi(self) -> ASGIApp:
        """The application that a server runs."""
        starlette = Starlette(
            routes=self._routes(),
            lifespan=self._lifespan,
            exception_handlers={HTTPException: refusals.no_route},
        )
        return _Keyed(starlette, self._settings.api_keys) if self._settings.api_keys else starlette

    def _routes(self) -> list[Route]:
        model = "/v2/models/{model}"
        routes = []
        for path in (model, f"{model}/versions/{{version}}"):
            routes += [
                Route(f"{path}/infer", self._told("infer", self._infer), methods=["POST"]),
                Route(f"{path}/generate", self._told("generate", self._generate), methods=["POST"]),
                Route(f"{path}/ready", self._told("ready", self._model_ready)),
                Route(path, self._told("metadata", self._metadata)),
            ]
        return [
            *routes,
            Route("/invocations", self._told("invocations", self._invocations), methods=["POST"]),
            Route("/v2", self._told("server", self._server)),
            Route("/v2/health/live", self._told("live", self._live)),
            Route("/v2/health/ready", self._told("ready", self._ready)),
            Route("/ping", self._told("ping", self._ready)),
            Route("/health", self._told("ping", self._ready)),
            Route("/version", self._told("version", self._version)),
            Route("/metrics", self._told("metrics", self._figures)),
            Route("/openapi.json", self._told("openapi", self._openapi)),
        ]

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        """Follow the models' sources; at the end wait for what is being answered."""
        slots = self._slots.values()
        for slot in slots:
            slot.start()
        every_s = self._settings.poll_s
        tasks = [] if every_s is None else [asyncio.create_task(slot.follow(every_s)) for slot in slots]
        yield
        self._draining = True
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(slot.close() for slot in slots))

    def _told(self, route: str, answer: Answer) -> Answer:
        """The route, counted and timed, its errors in the protocol's form."""

        async def answered(request: Request) -> Response:
            began = time.perf_counter()
            try:
                response = await answer(request)
            except ClientDisconnect:
                return Response(status_code=499)  # nobody reads it
            except PareflowError as error:
                response = refusals.response(error)
            except Exception:
                log.exception("a request to %s failed", request.url.path)
                response = refusals.as_json({"error": "the server failed, and its log says why"}, 500)
            self._metrics.answered(route, response.status_code, time.perf_counter() - began)
            return response

        return answered

    async def _infer(self, request: Request) -> Response:
        hosted = self._hosted(request)
        body = await self._body(request)
        asked = protocol.parse(body, request.headers.get(protocol.HEADER))
        async with hosted.asked():
            with answered_within(_limit_s(asked.timeout_s, hosted)):
                outputs = await _unless_gone(request, hosted, hosted.answer(asked.inputs))
        name, version = hosted.release.name, hosted.release.version
        content, head = protocol.render(name, version, asked, outputs)
        if head is None:
            return Response(content, media_type=JSON)
        return Response(content, media_type=BINARY, headers={protocol.HEADER: str(head)})

    async def _generate(self, request: Request) -> Response:
        hosted = self._hosted(request)
        asked = generate.parse(await self._body(request))
        async with hosted.asked():
            with answered_within(_limit_s(asked.timeout_s, hosted)):
                text = await _unless_gone(request, hosted, hosted.generate(asked))
        name, version = hosted.release.name, hosted.release.version
        return refusals.as_json({"model_name": name, "model_version": version, "text_output": text})

    async def _invocations(self, request: Request) -> Response:
        hosted = self._only()
        samples = invocations.samples_in(await self._body(request), request.headers.get("content-type", JSON))
        async with hosted.asked():
            with answered_within(_limit_s(None, hosted)):
                predictions, _ = await _unless_gone(request, hosted, hosted.predict(samples))
        return refusals.as_json({"predictions": predictions})

    async def _metadata(self, request: Request) -> Response:
        return refusals.as_json(self._hosted(request).metadata())

    async def _model_ready(self, request: Request) -> Response:
        hosted = self._hosted(request)
        return refusals.as_json({"name": hosted.release.name, "ready": True})

    async def _server(self, _: Request) -> Response:
        return refusals.as_json({"name": "pareflow", "version": VERSION, "extensions": EXTENSIONS})

    async def _live(self, _: Request) -> Response:
        return refusals.as_json({"live": True})

    async def _ready(self, _: Request) -> Response:
        return refusals.as_json({"ready": not self._draining}, 503 if self._draining else 200)

    async def _version(self, _: Request) -> Response:
        return Response(VERSION, media_type="text/plain")

    async def _figures(self, _: Request) -> Response:
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    async def _openapi(self, _: Request) -> Response:
        models = {name: slot.hosted.release.version for name, slot in self._slots.items()}
        return refusals.as_json(openapi.document(VERSION, models))

    def _hosted(self, request: Request) -> Hosted:
        """The version that a path names. Raises: NotFoundError."""
        name = request.path_params["model"]
        slot = self._slots.get(name)
        if slot is None:
            raise NotFoundError(
                f"a model must be one of {', '.join(self._slots)}", f"got {name}", "Name one of them"
            )
        hosted = slot.hosted
        version = request.path_params.get("version", hosted.release.version)
        if version != hosted.release.version:
            raise NotFoundError(
                f"a version of {name} must be one that is served here, {hosted.release.version}",
                f"got {version}",
                "Leave the version out to be answered by the present one",
            )
        return hosted

    def _only(self) -> Hosted:
        """Raises: NotFoundError."""
        if len(self._slots) > 1:
            raise NotFoundError(
                "`/invocations` needs a server of one model",
                f"this one has {len(self._slots)}",
                "Use /v2/models",
            )
        return next(iter(self._slots.values())).hosted

    async def _body(self, request: Request) -> bytes:
        """Raises: TooLargeError as soon as it is known, UnreadableError."""
        if request.headers.get("content-encoding", "identity") != "identity":
            raise UnreadableError("a body must not be encoded", "it is", "Send it plain")
        told = request.headers.get("content-length", "")
        if told.isdecimal() and int(told) > self._most_bytes:
            raise self._too_large()
        pieces, size = [], 0
        async for piece in request.stream():
            size += len(piece)
            if size > self._most_bytes:
                raise self._too_large()
            pieces.append(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _too_large(self) -> TooLargeError:
        return TooLargeError(
            f"a body must be at most {self._settings.body_mib:g} MiB",
            "it is larger",
            "Send fewer samples at once",
        )


class _Keyed:
    """The application for those who hold a key (`Authorization: Bearer KEY`)."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app, self._keys = app, [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(OPEN_TO_ALL) or self._knows(scope):
            await self._app(scope, receive, send)
            return
        response = refusals.as_json(
            {"error": "`Authorization: Bearer KEY` must be given, with a key of this server"}, 401
        )
        response.headers["www-authenticate"] = "Bearer"
        await response(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        matches = [hmac.compare_digest(given, b"Bearer " + key) for key in self._keys]
        return any(matches)


async def _unless_gone(request: Request, hosted: Hosted, answer: Coroutine[Any, Any, _Answer]) -> _Answer:
    """The answer, for as long as somebody waits for it: else it is given up, unless it is in a batch by then.

    One that is computed on the event loop is there before anybody could go. Raises: ClientDisconnect.
    """
    if hosted.main.inline:
        return await answer
    asked, gone = asyncio.ensure_future(answer), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((asked, gone), return_when=asyncio.FIRST_COMPLETED)
        if asked.done():
            return asked.result()
        raise ClientDisconnect
    finally:
        asked.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    """Wait until the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _limit_s(asked_s: float | None, hosted: Hosted) -> float | None:
    """How long the answer may take: what the request says, and no longer than the plan allows."""
    planned = hosted.plan.deadline_ms
    limits = [limit for limit in (asked_s, planned and planned / 1000) if limit]
    return min(limits, default=None)
