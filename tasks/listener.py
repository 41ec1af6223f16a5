"""The endpoint that MLflow's registry webhooks call: a small HTTP application, and its server."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pareflow.errors import PareflowError, TransientError
from tasks.deliveries import Delivery, ForgedError, Memory, RepeatedError, received
from tasks.triggering import Handled

log = logging.getLogger("pareflow.triggers")

PATH = "/webhooks/mlflow"
MAX_BODY = 256 * 1024
"""Bytes. MLflow sends a version's name, source, description and tags: a few KiB."""
RETRY_AFTER_S = 5
_STATUSES: Mapping[type[PareflowError], int] = {ForgedError: 401, RepeatedError: 409, TransientError: 503}
Handle = Callable[[str, str], Handled]
"""What is done about a version, by its name and number; it may block."""


class Listener:
    """The routes. A delivery is handled before it is answered: what fails, MLflow sends again.

    401: not signed with the secret, or not now. 400: signed, and not what MLflow sends. 409: an id that came
    before, with another body. 413: too large. 503: MLflow or Prefect is away. 500: a rule cannot be followed.
    """

    def __init__(self, secrets: Sequence[str], memory: Memory, handle: Handle) -> None:
        self._secrets, self._memory, self._handle = tuple(secrets), memory, handle

    def asgi(self) -> Starlette:
        """The application that a server runs."""
        return Starlette(
            routes=[Route(PATH, self._deliver, methods=["POST"]), Route("/health", self._health)],
        )

    async def _health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _deliver(self, request: Request) -> Response:
        try:
            body = await _body(request)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        if body is None:
            return _refused(413, f"the body must have at most {MAX_BODY} bytes")
        try:
            delivery = received(self._secrets, request.headers, body, time.time())
        except PareflowError as error:
            return _refused(_STATUSES.get(type(error), 400), str(error))
        try:
            return JSONResponse(await run_in_threadpool(self._outcome, delivery))
        except PareflowError as error:
            log.error("delivery %s: %s", delivery.id, error)
            status = next((s for kind, s in _STATUSES.items() if isinstance(error, kind)), 500)
            return _refused(status, str(error))

    def _outcome(self, delivery: Delivery) -> dict[str, Any]:
        """What came of a delivery, now or when it came first."""
        before = self._memory.outcome(delivery)
        if before is not None:
            return {**before, "new": False}
        if delivery.version is None:
            outcome: dict[str, Any] = {"reason": "it is about no version", "run_id": None, "new": False}
        else:
            outcome = asdict(self._handle(*delivery.version))
        log.info("delivery %s: %s", delivery.id, outcome)
        self._memory.remember(delivery, outcome, time.time())
        return outcome


async def _body(request: Request) -> bytes | None:
    """The body; None as soon as it is too large, however much more would come."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > MAX_BODY:
        return None
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            return None
    return bytes(body)


def _refused(status: int, why: str) -> Response:
    headers = {"retry-after": str(RETRY_AFTER_S)} if status == 503 else None
    return JSONResponse({"error": why}, status, headers)
