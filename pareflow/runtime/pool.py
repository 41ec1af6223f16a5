"""Sessions that work side by side, each in a thread of its own: what stands under every policy."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, SimpleQueue

import numpy as np

from pareflow.errors import OverloadedError
from pareflow.runtime.endpoint import Endpoint
from pareflow.runtime.rows import row_count
from pareflow.session import Session
from pareflow.workload import Arrays

THREADS = "session"
"""What the names of their threads begin with."""
MAX_WAITING = 256
"""Requests in line for sessions; more are refused."""
HANGS_S = 10.0
"""What has not ended so long after its threads were closed never will."""


class SessionPool:
    """One or more loaded copies of an executable; runtimes let go of Python's lock while they compute.

    `inline_rows`: a request of at most so many samples is computed where it arrives, on the event loop. That
    saves the way to a thread and back, some 0.1 ms, and holds up all others for as long as it takes: for as
    many as take less than that. It may be changed while requests are answered.
    """

    def __init__(self, sessions: Sequence[Session], *, inline_rows: float = 0) -> None:
        self._idle: SimpleQueue[Session] = SimpleQueue()
        for session in sessions:
            self._idle.put(session)
        self._size, self._asked = len(sessions), 0
        self.inline_rows = inline_rows
        self._threads = ThreadPoolExecutor(len(sessions), thread_name_prefix=THREADS)

    def endpoint(self, identity: str) -> Endpoint:
        """The pool as an endpoint. `identity` names what answers."""
        return Endpoint(self.answer, identity, self._size, figures={"sessions": self.figures})

    def figures(self) -> Mapping[str, float]:
        """How many wait for a session."""
        return {"waiting": max(0, self._asked - self._size)}

    async def answer(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Raises: OverloadedError where too many wait, and what the session raises."""
        if 0 < row_count(feeds, otherwise=1) <= self.inline_rows:
            with suppress(Empty):  # a thread has it still, from before
                return self._answered_by(self._idle.get_nowait(), feeds)
        require_room(self._asked - self._size)
        self._asked += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, feeds)
        finally:
            self._asked -= 1

    def close(self) -> None:
        """Take no more, and let what runs end, as `let_end`."""
        let_end(self._threads, lambda: self._idle.qsize() >= self._size)

    def _run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        return self._answered_by(self._idle.get(), feeds)  # there are as many threads as sessions

    def _answered_by(self, session: Session, feeds: Mapping[str, np.ndarray]) -> Arrays:
        try:
            return session.run(feeds)
        finally:
            self._idle.put(session)


def let_end(threads: ThreadPoolExecutor, ended: Callable[[], bool]) -> None:
    """Take no more, and let what runs end; what does not, hangs: its thread is left behind."""
    threads.shutdown(wait=False)
    until = time.monotonic() + HANGS_S
    while not ended() and time.monotonic() < until:
        time.sleep(0.005)


def require_room(waiting: int) -> None:
    """Raises: OverloadedError where so many wait that nobody may come behind them."""
    if waiting >= MAX_WAITING:
        raise OverloadedError(f"at most {MAX_WAITING} requests may wait", "the line is full")
