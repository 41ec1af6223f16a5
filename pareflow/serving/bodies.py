"""Bodies of requests as they come in: no larger, no slower, and no more of them at once than may be."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from starlette.requests import Request

from pareflow.errors import OverloadedError
from pareflow.serving.refusals import SlowBodyError, TooLargeError, UnreadableError

COMES_WITHIN_S = 60.0
"""How long a body may take to come."""
ROOM_MIB = 256
"""For the bodies of all requests that are under way; one of the largest size fits in any case."""
LARGE = 256 * 2**10
"""Bytes that take milliseconds to read or to write: that is done in a thread, and others go on meanwhile."""

_Found = TypeVar("_Found")


async def aside(size: int, work: Callable[[], _Found]) -> _Found:
    """What `work` on so many bytes gives: at once, or from a thread where others would wait for it."""
    return await asyncio.to_thread(work) if size > LARGE else work()


class Bodies:
    """Takes bodies in, each of at most `most_mib`. Use it in the event loop."""

    def __init__(self, most_mib: float) -> None:
        self._most_mib, self._room_mib = most_mib, max(ROOM_MIB, most_mib)
        self._held = 0

    @asynccontextmanager
    async def of(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request, which counts as held inside.

        Raises: UnreadableError; TooLargeError as soon as it is known, SlowBodyError, OverloadedError.
        """
        if request.headers.get("content-encoding", "identity") != "identity":
            raise UnreadableError("a body must not be encoded", "it is", "Send it plain")
        told = request.headers.get("content-length", "")
        self._check(int(told) if told.isdecimal() else 0)
        pieces = list[bytes]()
        try:
            await self._read(request, pieces)
            yield pieces[0] if len(pieces) == 1 else b"".join(pieces)
        finally:
            self._held -= sum(map(len, pieces))

    async def _read(self, request: Request, pieces: list[bytes]) -> None:
        size = 0
        try:
            async with asyncio.timeout(COMES_WITHIN_S):
                async for piece in request.stream():
                    if piece:
                        pieces.append(piece)
                        size += len(piece)
                        self._held += len(piece)
                        self._check(size)
        except TimeoutError as error:
            raise SlowBodyError(
                f"a body must be there within {COMES_WITHIN_S:g} s", f"{size} bytes are", "Send it again"
            ) from error

    def _check(self, size: int) -> None:
        """Raises: TooLargeError, OverloadedError."""
        if size > self._most_mib * 2**20:
            raise TooLargeError(
                f"a body must be at most {self._most_mib:g} MiB", "it is larger", "Send fewer samples at once"
            )
        if self._held > self._room_mib * 2**20:
            raise OverloadedError(
                f"the bodies of all requests under way must be at most {self._room_mib:g} MiB",
                "with this one they are more",
                "Try again later, or send fewer samples at once",
            )
