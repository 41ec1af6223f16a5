"""The threads of one stage of processing, and the bounded line before them."""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TypeVar

from pareflow.errors import DeadlineError, OverloadedError
from pareflow.hardware import probe
from pareflow.runtime.endpoint import deadline
from pareflow.runtime.pool import let_end
from pareflow.runtime.service_time import ServiceTime

_Result = TypeVar("_Result")


class StageThreads:
    """What one stage does beside the event loop: in as many threads as there are cores to use, two at least.

    One that cannot be answered before its deadline is refused when it comes, and one whose turn came too late
    is not begun; where nobody else is there it is tried, whatever took how long before. Times are those of
    the clock on the wall: where threads wait for each other, that is how fast the line gets shorter.
    """

    def __init__(self, name: str, most_waiting: int) -> None:
        self._size = max(2, probe.usable_cores())
        self._name, self._most_waiting = name, most_waiting
        self._threads = ThreadPoolExecutor(self._size, thread_name_prefix=name)
        self._lock = Lock()  # threads count too
        self._time = ServiceTime()
        self._there, self._ahead_s = 0, 0.0
        self._refused = self._late = 0

    def learn(self, count: int, seconds: float) -> None:
        """What so many samples took."""
        with self._lock:
            self._time.observe(count, seconds)

    async def run(self, count: int, work: Callable[[], _Result], afterwards_s: float) -> _Result:
        """What `work` gives for so many samples; after it, an answer takes so many seconds more
        (NaN where that is unknown).

        Raises: OverloadedError where the line is full, DeadlineError, and what it raises.
        """
        takes_s = _known(self._time.predict(count))
        begin_by = self._admitted(takes_s, _known(afterwards_s))
        with self._lock:
            self._there += 1
            self._ahead_s += takes_s
        arrived = time.monotonic()

        def begun() -> _Result:
            began = time.monotonic()
            try:
                if began > begin_by:
                    raise self._too_late(f"it waited for {(began - arrived) * 1000:.1f} ms to be processed")
                found = work()
                self.learn(count, time.monotonic() - began)
                return found
            finally:
                self._left(takes_s)

        future = self._threads.submit(begun)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if future.cancel():  # it was in line; what has begun ends by itself
                self._left(takes_s)
            raise

    def figures(self) -> Mapping[str, int]:
        waiting = max(0, self._there - self._size)
        return {"waiting": waiting, "refused": self._refused, "late": self._late}

    def close(self) -> None:
        """Take no more, and let what runs end, as `let_end`."""
        let_end(self._threads, lambda: not self._there)

    def _admitted(self, takes_s: float, afterwards_s: float) -> float:
        """By when it must begin, by `time.monotonic`. Raises: OverloadedError, DeadlineError."""
        limit, line_s = deadline(), self._ahead_s / self._size if self._there >= self._size else 0.0
        if self._there >= self._size + self._most_waiting:
            self._refused += 1
            raise OverloadedError(
                f"at most {self._most_waiting} requests may wait to be processed",
                "the line is full",
                retry_after_s=line_s,
            )
        if limit is None:
            return math.inf
        if not self._there:
            return limit
        needed = line_s + takes_s + afterwards_s
        if time.monotonic() + needed > limit:
            words = f"those before it and itself take about {needed * 1000:.1f} ms"
            raise self._too_late(words, retry_after_s=needed)
        return limit - takes_s - afterwards_s

    def _too_late(self, found: str, retry_after_s: float | None = None) -> DeadlineError:
        after_s = self._ahead_s / self._size if retry_after_s is None else retry_after_s
        with self._lock:
            self._late += 1
        return DeadlineError("a request must be answered before its deadline", found, retry_after_s=after_s)

    def _left(self, takes_s: float) -> None:
        with self._lock:
            self._there -= 1
            self._ahead_s = max(0.0, self._ahead_s - takes_s) if self._there else 0.0


def _known(seconds: float) -> float:
    """0 while nothing is known."""
    return 0.0 if math.isnan(seconds) else seconds
