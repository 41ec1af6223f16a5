"""What the server says no to, in the protocol's form: each error's status, and when to come again."""

import math
from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from pareflow.errors import DeadlineError, InputError, OverloadedError, PareflowError, TransientError
from pareflow.serving import protocol

JSON = "application/json"


class NotFoundError(InputError):
    """There is no model, or no version of it, of that name here."""


class TooLargeError(InputError):
    """The body is larger than it may be."""


class SlowBodyError(InputError):
    """The body does not come."""


class HurriedError(DeadlineError):
    """The answer would come after the deadline that the request itself names, no later than the server's."""


class UnreadableError(InputError):
    """The body is of a type or an encoding that is not read here."""


GONE = 499
"""The status of an answer that nobody reads: whoever asked has left. What nginx counts it as."""

FAILED = {"error": "the server failed, and its log says why"}
"""What is told of an error that is nobody's but ours."""

STATUSES: Mapping[type[PareflowError], int] = {
    NotFoundError: 404,
    SlowBodyError: 408,
    TooLargeError: 413,
    UnreadableError: 415,
    InputError: 400,
    HurriedError: 408,
    DeadlineError: 503,
    OverloadedError: 429,
    TransientError: 503,
    PareflowError: 500,
}
"""The first that an error is an instance of counts."""


def status_of(error: PareflowError) -> int:
    """What an error is told with."""
    return next(status for kind, status in STATUSES.items() if isinstance(error, kind))


def response(error: PareflowError) -> Response:
    """An error as an answer."""
    answer = as_json({"error": str(error)}, status_of(error))
    if isinstance(error, TransientError):
        after_s = error.retry_after_s if isinstance(error, OverloadedError) else 1.0
        answer.headers["retry-after"] = str(max(1, math.ceil(after_s)))
    if isinstance(error, SlowBodyError):
        answer.headers["connection"] = "close"  # what comes of it yet is nobody's
    return answer


async def no_route(request: Request, error: Exception) -> Response:
    """No such path (404), or no such method there (405), in the protocol's form."""
    assert isinstance(error, HTTPException)
    found = f"{request.method} {request.url.path} must be a route, but it is none. See GET /openapi.json"
    answer = as_json({"error": found}, error.status_code)
    answer.headers.update(error.headers or {})
    return answer


def as_json(document: object, status: int = 200) -> Response:
    """A document as an answer."""
    return Response(protocol.dumps(document), status, media_type=JSON)
