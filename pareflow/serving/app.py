"""The HTTP application around served models: the Open Inference Protocol, MLflow's routes, metrics."""

import asyncio
import hmac
import logging
import re
import time
import uuid
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

import pareflow
from pareflow.errors import DeadlineError, InputError, PareflowError
from pareflow.runtime.aside import aside
from pareflow.runtime.endpoint import answered_within, deadline
from pareflow.serving import generate, invocations, openapi, protocol, refusals
from pareflow.serving.bodies import WHOLE, Bodies
from pareflow.serving.executable import Opened
from pareflow.serving.hosting import PREDICTIONS, SAMPLES, Hosted
from pareflow.serving.metrics import CONTENT_TYPE, Metrics
from pareflow.serving.plan import ServingPlan
from pareflow.serving.refusals import JSON, HurriedError, NotFoundError
from pareflow.serving.request_log import Names, RequestLog, expiring, logged
from pareflow.serving.settings import Settings
from pareflow.serving.slot import Slot, Source
from pareflow.serving.trial import Trial
from pareflow.workload import Arrays

log = logging.getLogger("pareflow.serving")

BINARY = "application/octet-stream"
VERSION = pareflow.__version__
EXTENSIONS = ["binary_tensor_data"]
CLIENT, REQUEST_ID = "x-client-id", "x-request-id"
"""By which a client is answered by one version while two are served; and by which a caller finds a kept
request again: the one that it sent, or one that is made."""
_PLAIN_ID = re.compile(r"[!-~]{1,128}")  # what a header can hold, and nobody's line break
GRACE_S = 0.005
"""After a deadline: whoever has a request in line tells by then how long that is."""
SOON_S = 0.01
"""Whether a client has gone is listened for from then on: what is answered by then is not worth a task."""
OPEN_TO_ALL = ("/v2/health/", "/ping", "/health")
"""What an orchestrator asks without a key."""

Answer = Callable[[Request], Awaitable[Response]]
_Work = Callable[[Hosted], Coroutine[Any, Any, Arrays]]
_Answer = TypeVar("_Answer")


def assembled(
    sources: Sequence[Source],
    plan: ServingPlan | None,
    settings: Settings,
    found: Callable[[str], Source],
    most_sessions: int | None = None,
) -> "App":
    """The application of these models, loaded: that blocks.

    Without a plan each is served by its own. `found` gives the source of what a plan's tiers name. Each model
    has `most_sessions` at most, where this process was given processors for no more.
    Raises: InputError where two models have one name; what the sources raise, and what a model that cannot
    be served does.
    """
    _check_differ([source.name for source in sources])
    metrics = Metrics()
    slots = [
        Slot(
            source,
            plan,
            metrics,
            found,
            standby=settings.standby,
            unjudged=settings.unjudged,
            models=len(sources),
            most_sessions=most_sessions,
        )
        for source in sources
    ]
    return App(slots, settings, metrics)


def _check_differ(names: Sequence[str]) -> None:
    """Raises: InputError."""
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(
            "the models of one server must have different names",
            f"`{twice}` is named more than once",
            "Name one version of it, or serve the other at a port of its own",
        )


class App:
    """The routes, over the slots of the models that are served."""

    def __init__(self, slots: Sequence[Slot], settings: Settings, metrics: Metrics) -> None:
        self._slots = {slot.source.name: slot for slot in slots}
        self._settings, self._metrics = settings, metrics
        self._bodies = Bodies(settings.body_mib)
        if settings.requests is not None:
            settings.requests.check(self._tensors())
        self._begin_log = logged(settings.requests, settings.requests_folder)
        self._requests: RequestLog | None = None
        self._started = False

    def start(self) -> None:
        """Put the policies of every model in place, once; call it in the event loop.

        Raises: what a policy or the log of requests cannot do without.
        """
        if self._started:
            return
        for slot in self._slots.values():
            slot.start()
        self._requests = self._begin_log()
        if self._requests is not None:
            self._metrics.counts("request_log", "what became of requests to be kept", self._requests.figures)
        self._started = True

    def asgi(self) -> ASGIApp:
        """The application that a server runs: it starts where nobody has started it."""
        starlette = Starlette(
            routes=self._routes(),
            lifespan=self._lifespan,
            exception_handlers={HTTPException: refusals.no_route},
        )
        return _Keyed(starlette, self._settings.api_keys) if self._settings.api_keys else starlette

    def _routes(self) -> list[Route]:
        model = "/v2/models/{model}"
        routes = [Route(f"{model}/trial", self._told("trial", self._trial))]
        for path in (model, f"{model}/versions/{{version}}"):
            routes += [
                Route(f"{path}/infer", self._told("infer", self._infer), methods=["POST"]),
                Route(f"{path}/generate", self._told("generate", self._generate), methods=["POST"]),
                Route(
                    f"{path}/generate_stream", self._told("generate_stream", self._stream), methods=["POST"]
                ),
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
        self.start()
        every_s = self._settings.poll_s
        tasks = [] if every_s is None else [asyncio.create_task(slot.follow(every_s)) for slot in slots]
        if self._requests is None:
            tasks.append(asyncio.create_task(expiring(self._settings.requests_folder)))
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            await asyncio.gather(*(slot.close() for slot in slots))
        finally:
            if self._requests is not None:
                await asyncio.to_thread(self._requests.close)

    def _told(self, route: str, answer: Answer) -> Answer:
        """The route, counted, timed from when the request is whole, its errors in the protocol's form."""

        async def answered(request: Request) -> Response:
            if request.method != "POST":
                request.scope[WHOLE] = time.perf_counter()  # it has no body
            try:
                response = await answer(request)
            except ClientDisconnect:
                response = Response(status_code=refusals.GONE)  # how long was waited counts
            except PareflowError as error:
                response = refusals.response(error)
            except Exception:
                log.exception("a request to %s failed", request.url.path)
                response = refusals.as_json(refusals.FAILED, 500)
            if not isinstance(response, generate.Events):  # which counts once it has ended
                self._count(route, request, _waited_s(request), response.status_code)
            return response

        return answered

    def _count(self, route: str, request: Request, waited_s: float | None, status: int) -> None:
        self._metrics.answered(self._counted_for(route, request), route, status, waited_s)

    def _counted_for(self, route: str, request: Request) -> str:
        """The model that a request is counted for; empty where it names none that is served here."""
        if route == "invocations" and len(self._slots) == 1:
            return next(iter(self._slots))
        name: str = request.path_params.get("model", "")
        return name if name in self._slots else ""

    async def _infer(self, request: Request) -> Response:
        missing = self._hosted(request).takes_missing  # a wrong name is told before the body is read
        async with self._bodies.of(request) as body:
            return await self._inferred(request, body, missing)

    async def _inferred(self, request: Request, body: bytes, missing: bool) -> Response:
        header = request.headers.get(protocol.HEADER)
        asked = await aside(len(body), lambda: protocol.parse(body, header, missing=missing))
        slot, hosted = self._slot(request), self._hosted(request)
        if asked.outputs is not None:
            protocol.check_wanted(asked.outputs, hosted.gives(asked.inputs))
        trial = None if "version" in request.path_params else slot.trial
        axis = next((one.shape[:1] for one in asked.inputs.values()), ())
        question = _Question(request, asked.timeout_s, _key(request, asked.id, body), axis)
        outputs, hosted = await _answered(question, hosted, trial, lambda by: by.answer(asked.inputs))
        name, version = hosted.release.name, hosted.release.version
        size = sum(array.nbytes for array in outputs.values())
        content, head = await aside(size, lambda: protocol.render(name, version, asked, outputs))
        identity = asked.id or request.headers.get(REQUEST_ID)
        told = self._kept(hosted, identity, asked.inputs, outputs, len(body))
        if head is None:
            return Response(content, media_type=JSON, headers=told)
        return Response(content, media_type=BINARY, headers={protocol.HEADER: str(head), **told})

    async def _generate(self, request: Request) -> Response:
        self._hosted(request)
        async with self._bodies.of(request) as body:
            asked = await aside(len(body), lambda: generate.parse(body))
        hosted = self._hosted(request)
        async with hosted.asked():
            with _within(asked.timeout_s, hosted):
                text = await _unless_gone(request, hosted.generate(asked))
        release = hosted.release
        return refusals.as_json(generate.answer(release.name, release.version, text))

    async def _stream(self, request: Request) -> Response:
        """Its first piece is waited for: what is refused until then has a status of its own."""
        self._hosted(request)
        async with self._bodies.of(request) as body:
            asked = await aside(len(body), lambda: generate.parse(body, stream=True))
        hosted = self._hosted(request)
        pieces = _pieces(hosted, asked)
        with _within(asked.timeout_s, hosted):
            first = await _unless_gone(request, anext(pieces))
        ended = partial(self._count, "generate_stream", request, _waited_s(request))
        return generate.Events(hosted.release.name, hosted.release.version, first, pieces, ended)

    async def _invocations(self, request: Request) -> Response:
        self._only()
        async with self._bodies.of(request) as body:
            return await self._invoked(request, body)

    async def _invoked(self, request: Request, body: bytes) -> Response:
        slot, kind = self._only(), request.headers.get("content-type", JSON)
        fields = slot.hosted.sample_fields
        samples = await aside(len(body), lambda: invocations.samples_in(body, kind, fields))
        question = _Question(request, None, _key(request, None, body), (len(samples),))
        outputs, hosted = await _answered(question, slot.hosted, slot.trial, lambda by: by.predicted(samples))
        found = outputs[PREDICTIONS]
        response = await aside(
            found.nbytes, lambda: refusals.as_json({"predictions": protocol.listed(PREDICTIONS, found)})
        )
        identity = request.headers.get(REQUEST_ID)
        response.headers.update(self._kept(hosted, identity, {SAMPLES: samples}, outputs, len(body)))
        return response

    def _kept(
        self,
        hosted: Hosted,
        identity: str | None,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
        size: int,
    ) -> dict[str, str]:
        """The headers that name a request which is kept, if requests are and this is one of the share."""
        if self._requests is None or not self._requests.wants():
            return {}
        if identity is None or not _PLAIN_ID.fullmatch(identity):
            identity = uuid.uuid4().hex
        release = hosted.release
        names = Names({tensor.name for tensor in hosted.main.inputs}, self._tensors(hosted.main))
        self._requests.take(identity, release.name, release.version, inputs, outputs, size, names)
        return {REQUEST_ID: identity}

    def _tensors(self, *others: Opened) -> set[str]:
        """The names of all that the served models, and these, take and give."""
        opened = [*(slot.hosted.main for slot in self._slots.values()), *others]
        return {tensor.name for one in opened for tensor in (*one.inputs, *one.outputs)}

    async def _metadata(self, request: Request) -> Response:
        return refusals.as_json(self._hosted(request).metadata())

    async def _trial(self, request: Request) -> Response:
        """What stands beside the version that answers, and what was seen of it."""
        return refusals.as_json(self._slot(request).observed())

    async def _model_ready(self, request: Request) -> Response:
        hosted = self._hosted(request)
        told = {"name": hosted.release.name, "ready": True, "judged": hosted.standing}
        return refusals.as_json(told)

    async def _server(self, _: Request) -> Response:
        return refusals.as_json({"name": "pareflow", "version": VERSION, "extensions": EXTENSIONS})

    async def _live(self, _: Request) -> Response:
        return refusals.as_json({"live": True})

    async def _ready(self, _: Request) -> Response:
        return refusals.as_json({"ready": True})

    async def _version(self, _: Request) -> Response:
        return Response(VERSION, media_type="text/plain")

    async def _figures(self, _: Request) -> Response:
        return Response(self._metrics.text(), media_type=CONTENT_TYPE)

    async def _openapi(self, _: Request) -> Response:
        models = {name: slot.hosted.release.version for name, slot in self._slots.items()}
        return refusals.as_json(openapi.document(VERSION, models))

    def _slot(self, request: Request) -> Slot:
        """The model that a path names. Raises: NotFoundError."""
        name = request.path_params["model"]
        slot = self._slots.get(name)
        if slot is None:
            raise NotFoundError(
                f"a model must be one of {', '.join(self._slots)}", f"got {name}", "Name one of them"
            )
        return slot

    def _hosted(self, request: Request) -> Hosted:
        """The version that a path names. Raises: NotFoundError."""
        loaded = self._slot(request).loaded
        name, present = loaded[0].release.name, loaded[0].release.version
        version = request.path_params.get("version", present)
        for hosted in loaded:
            if hosted.release.version == version:
                return hosted
        raise NotFoundError(
            f"a version of {name} must be one that is loaded here: "
            f"{', '.join(one.release.version for one in loaded)}",
            f"got {version}",
            f"Leave the version out to be answered by the present one, {present}",
        )

    def _only(self) -> Slot:
        """Raises: NotFoundError."""
        if len(self._slots) > 1:
            raise NotFoundError(
                "`/invocations` needs a server of one model",
                f"this one has {len(self._slots)}",
                "Use /v2/models",
            )
        return next(iter(self._slots.values()))


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


@dataclass(frozen=True, slots=True)
class _Question:
    """A request whose body was read: how long it may take, what it is drawn by, its first axis if any."""

    request: Request
    timeout_s: float | None
    key: bytes
    axis: tuple[int, ...]


async def _answered(
    question: _Question, hosted: Hosted, trial: Trial | None, work: _Work
) -> tuple[Arrays, Hosted]:
    """The answer, and which version gave it; `hosted` is not closed meanwhile. Raises: what it raises."""

    async def copy(by: Hosted) -> Arrays:
        async with by.asked():
            return await work(by)

    async def ask(by: Hosted) -> Arrays:
        if by is hosted:  # which counts this request already
            return await _unless_gone(question.request, work(by))
        async with by.asked():
            return await _unless_gone(question.request, work(by))

    async with hosted.asked():
        with _within(question.timeout_s, hosted):
            if trial is None:
                return await _unless_gone(question.request, work(hosted)), hosted
            rows = question.axis[0] if question.axis else 0
            return await trial.answered(hosted, question.key, rows, ask, copy)


def _waited_s(request: Request) -> float | None:
    """Since the request was whole; None where it never was."""
    whole = request.scope.get(WHOLE)
    return None if whole is None else time.perf_counter() - whole


async def _pieces(hosted: Hosted, asked: generate.Asked) -> AsyncGenerator[str, None]:
    """A text as it is decoded; `hosted` is not closed meanwhile. Raises: as `Hosted.pieces`."""
    async with hosted.asked(), aclosing(hosted.pieces(asked)) as pieces:
        yield await anext(pieces)  # who asks for the first knows whose deadline it had
        with _blamed(asked.timeout_s, hosted):
            async for piece in pieces:
                yield piece


def _key(request: Request, identity: str | None, body: bytes) -> bytes:
    """What a request is drawn by: its client, where that says who it is; else its own name; else its body."""
    headers = request.headers
    named = headers.get(CLIENT) or identity or headers.get(REQUEST_ID)
    return body if named is None else named.encode()


async def _unless_gone(request: Request, answer: Awaitable[_Answer]) -> _Answer:
    """The answer, for as long as somebody waits for it, and until its deadline: else it is given up, unless
    it is in a batch by then.

    What never waits is there before anybody could go. Raises: ClientDisconnect, DeadlineError.
    """
    loop, limit, listening = asyncio.get_running_loop(), deadline(), list[asyncio.Task[None]]()
    left_s = None if limit is None else limit + GRACE_S - time.monotonic()
    try:
        async with asyncio.timeout(left_s) as wait:
            late = loop.call_later(SOON_S, lambda: listening.append(loop.create_task(_ends(wait, request))))
            try:
                return await answer
            finally:
                late.cancel()
                for task in listening:
                    task.cancel()
    except TimeoutError:
        if not wait.expired():
            raise
        if any(task.done() for task in listening):
            raise ClientDisconnect from None
        raise DeadlineError(
            "a request must be answered before its deadline", "there is no answer by then"
        ) from None


async def _ends(wait: asyncio.Timeout, request: Request) -> None:
    """End a wait once the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    if not wait.expired():
        wait.reschedule(asyncio.get_running_loop().time())


@contextmanager
def _within(asked_s: float | None, hosted: Hosted) -> Iterator[None]:
    """What is asked inside may take as long as the request says, and no longer than the plan allows.

    Raises: HurriedError where the request's own deadline is the one that is not kept.
    """
    limits = [limit for limit in (asked_s, _planned_s(hosted)) if limit]
    with _blamed(asked_s, hosted), answered_within(min(limits, default=None)):
        yield


@contextmanager
def _blamed(asked_s: float | None, hosted: Hosted) -> Iterator[None]:
    """Raises: HurriedError where the request's own deadline is the one that is not kept."""
    try:
        yield
    except DeadlineError as error:
        planned_s = _planned_s(hosted)
        if asked_s is None or (planned_s and planned_s <= asked_s):
            raise
        raise HurriedError(error.must, error.found, error.remedy, error.retry_after_s) from error


def _planned_s(hosted: Hosted) -> float | None:
    return hosted.plan.deadline_ms and hosted.plan.deadline_ms / 1000
