"""Bodies of requests as they come in: no larger, no slower, and no more of them at once than may be."""

import asyncio
import time

from starlette.requests import Request

from pareflow.errors import OverloadedError
from pareflow.serving.refusals import SlowBodyError, TooLargeError, UnreadableError

COMES_WITHIN_S = 60.0
"""How long a body may take to come."""
ROOM_MIB = 256
"""For the bodies of all requests that are under way; one of the largest size fits in any case."""
WHOLE = "pareflow.whole"
"""Since when, by `time.perf_counter`, a request is here with its whole body: in its scope."""


class Bodies:
    """Takes bodies in, each of at most `most_mib`. Use it in the event loop."""

    def __init__(self, most_mib: float) -> None:
        self._most_mib, self._room_mib = most_mib, max(ROOM_MIB, most_mib)
        self._held = 0

    def of(self, request: Request) -> "_Held":
        """The body of a request, which counts as held inside.

        Raises: UnreadableError; TooLargeError as soon as it is known, SlowBodyError, OverloadedError.
        """
        if request.headers.get("content-encoding", "identity") != "identity":
            raise UnreadableError("a body must not be encoded", "it is", "Send it plain")
        told = request.headers.get("content-length", "")
        self.hold(0, int(told) if told.isdecimal() else 0)
        return _Held(self, request)

    def hold(self, more: int, size: int) -> None:
        """Count so many bytes more, of a body of this size by now. Raises: TooLargeError, OverloadedError."""
        self._held += more
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

    def let_go(self, size: int) -> None:
        """Count so many bytes less."""
        self._held -= size


class _Held:
    """A body that is taken in, and counted until it is no longer needed."""

    __slots__ = ("_bodies", "_request", "_size")

    def __init__(self, bodies: Bodies, request: Request) -> None:
        self._bodies, self._request, self._size = bodies, request, 0

    async def __aenter__(self) -> bytes:
        try:
            async with asyncio.timeout(COMES_WITHIN_S):
                return await self._read()
        except TimeoutError as error:
            self._bodies.let_go(self._size)
            raise SlowBodyError(
                f"a body must be there within {COMES_WITHIN_S:g} s",
                f"{self._size} bytes are",
                "Send it again",
            ) from error
        except BaseException:
            self._bodies.let_go(self._size)
            raise

    async def __aexit__(self, *_: object) -> None:
        self._bodies.let_go(self._size)

    async def _read(self) -> bytes:
        pieces = list[bytes]()
        async for piece in self._request.stream():
            if piece:
                pieces.append(piece)
                self._size += len(piece)
                self._bodies.hold(len(piece), self._size)
        self._request.scope[WHOLE] = time.perf_counter()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)
