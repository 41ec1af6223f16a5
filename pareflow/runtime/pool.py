"""Sessions that work side by side, each in a thread of its own: what stands under every policy."""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

import numpy as np

from pareflow.runtime.endpoint import Endpoint
from pareflow.session import Session
from pareflow.workload import Arrays


class SessionPool:
    """One or more loaded copies of an executable; runtimes let go of Python's lock while they compute.

    `inline`: a request is computed where it arrives, on the event loop. That saves the way to a thread and
    back, some 0.1 ms, and holds up all others for as long as it takes: for networks that take less than that.
    """

    def __init__(self, sessions: Sequence[Session], *, inline: bool = False) -> None:
        self._idle: SimpleQueue[Session] = SimpleQueue()
        for session in sessions:
            self._idle.put(session)
        self._size = len(sessions)
        self._inline = sessions[0] if inline else None
        self._threads = ThreadPoolExecutor(len(sessions), thread_name_prefix="session")

    def endpoint(self, identity: str) -> Endpoint:
        """The pool as an endpoint. `identity` names what answers."""
        return Endpoint(self.answer, identity, self._size)

    async def answer(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        if self._inline is not None:
            return self._inline.run(feeds)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, feeds)

    def close(self) -> None:
        """Let what runs end, and take no more."""
        self._threads.shutdown(wait=True)

    def _run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        session = self._idle.get_nowait()  # there are as many threads as sessions
        try:
            return session.run(feeds)
        finally:
            self._idle.put(session)
