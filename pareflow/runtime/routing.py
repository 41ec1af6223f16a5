"""Tiers chosen by what a request's deadline leaves: the best that will be in time, a cheaper one, or none."""

import asyncio
import heapq
import math
import time
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic import Field

from pareflow.errors import DeadlineError
from pareflow.runtime.calibration import FULL
from pareflow.runtime.decoding import heard_by
from pareflow.runtime.endpoint import Endpoint, answered_within, deadline
from pareflow.runtime.policy import Policy
from pareflow.runtime.pool import require_room
from pareflow.runtime.rows import row_count
from pareflow.runtime.service_time import ServiceTime
from pareflow.runtime.tiers import chosen
from pareflow.workload import Arrays


class DeadlineRouting(Policy):
    """Answer by the best variant that will be in time; refuse at once what none can answer in time.

    In time is what waits behind those before it and is served before its deadline, by the service times of
    the requests before. Without a deadline the full model answers. Where a variant fails, the next cheaper
    one that is in time does. A variant that was passed over is timed on a copy of a request now and then,
    when it has nothing else to do: one slow moment does not shut it out for ever.

    Answers depend on the load: a cache belongs below, not before it; and so does what joins requests, which
    have no deadlines then.
    """

    name: ClassVar[str] = "deadline_routing"
    requires: ClassVar[tuple[str, ...]] = ("numpy",)
    chooses: ClassVar[bool] = True
    approximates: ClassVar[bool] = True
    minds_deadlines: ClassVar[bool] = True

    tiers: tuple[str, ...] = Field(
        default=(), description="names, cheapest first; none: all there are, but for a cache's encoder"
    )
    caution: float = Field(default=1.2, ge=1, description="what predicted times are multiplied by")
    probe_every_s: float = Field(
        default=5, gt=0, description="how often a variant that is passed over is timed on a copy"
    )

    def wrap(self, below: Endpoint) -> Endpoint:
        """Raises: InputError where a tier is not there."""
        tiers = chosen(below, self.tiers or below.tiers)
        router = _Router(self, [_Lane(FULL, below), *(_Lane(n, tiers[n]) for n in reversed(tiers))])
        return below.then(self.name, router.answer, router.figures)


class _Lane:
    """The line before one variant, and how long it takes.

    As many requests as the variant works on at a time are let through; so the time of each is its own.
    """

    def __init__(self, name: str, endpoint: Endpoint) -> None:
        self.name = name
        self.answered = self.failed = self.late = self.probes = 0
        self.seen = -math.inf
        self._endpoint, self._time = endpoint, ServiceTime()
        self._free = asyncio.Semaphore(endpoint.concurrency)
        self._waiting: dict[object, int] = {}
        self._running: dict[object, tuple[int, float]] = {}

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._running

    def predicted_s(self, count: int) -> float:
        """Seconds until a request of so many rows would be answered; 0 where nothing was asked yet.

        Whoever is before it goes, in his turn, where the variant is free first.
        """
        now = time.monotonic()
        # who takes longer than predicted is expected to go on for as long as that
        left = [abs(self._takes_s(n) - (now - began)) for n, began in self._running.values()]
        ends = left + [0.0] * max(0, self._endpoint.concurrency - len(left))
        heapq.heapify(ends)
        for ahead in self._waiting.values():
            heapq.heappush(ends, heapq.heappop(ends) + self._takes_s(ahead))
        return heapq.heappop(ends) + self._takes_s(count)

    def _takes_s(self, count: int) -> float:
        """Of so many rows; 0 before the first answer."""
        known = self._time.predict(count)
        return 0.0 if math.isnan(known) else known

    async def answer(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Raises: OverloadedError where too many wait, DeadlineError where its turn comes too late; what the
        variant raises."""
        require_room(len(self._waiting))
        token, count, limit = object(), row_count(feeds, otherwise=1), deadline()
        self._waiting[token] = count
        try:
            async with asyncio.timeout(None if limit is None else limit - time.monotonic()):
                await self._free.acquire()
        except TimeoutError:
            raise self._too_late(count, "its turn had not come by then") from None
        finally:
            del self._waiting[token]
        self._running[token] = (count, time.monotonic())
        try:
            return await self._served(feeds, count)
        finally:
            del self._running[token]
            self._free.release()

    async def _served(self, feeds: Mapping[str, np.ndarray], count: int) -> Arrays:
        began, limit = time.monotonic(), deadline()
        if limit is not None and began > limit:
            raise self._too_late(count, f"its turn came {(began - limit) * 1000:.1f} ms after it")
        try:
            answers = await self._endpoint.answer(feeds)
        except asyncio.CancelledError:
            if limit is not None and time.monotonic() >= limit:  # it would have taken longer
                self._took(count, began, limit)
            raise
        self._took(count, began, limit)
        return answers

    def _took(self, count: int, began: float, limit: float | None) -> None:
        self.seen = time.monotonic()
        self._time.observe(count, self.seen - began)
        self.late += int(limit is not None and self.seen > limit)

    def _too_late(self, count: int, found: str) -> DeadlineError:
        self.late += 1
        return DeadlineError(
            "a request must be answered before its deadline", found, retry_after_s=self.predicted_s(count)
        )


class _Router:
    """The lanes, best first, and what was refused."""

    def __init__(self, policy: DeadlineRouting, lanes: list[_Lane]) -> None:
        self._policy, self._lanes = policy, lanes
        self._refused = 0
        self._probes = set[asyncio.Task[None]]()

    async def answer(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Raises: DeadlineError, and what the best variant that could be in time raises."""
        failure: Exception | None = None
        for lane in self._lanes:
            if not self._in_time(lane, row_count(feeds, otherwise=1)):
                self._probe(lane, feeds)
                continue
            try:
                answers = await lane.answer(feeds)
            except Exception as error:  # whatever a broken variant raises: a cheaper one may answer in time
                lane.failed += 1
                failure = failure or error
            else:
                lane.answered += 1
                return answers
        if failure is not None:
            raise failure
        self._refused += 1
        needed = min(lane.predicted_s(row_count(feeds, otherwise=1)) for lane in self._lanes)
        raise DeadlineError(
            "a request must be answered before its deadline",
            f"even the quickest variant would take about {needed * 1000:.1f} ms",
            retry_after_s=needed,
        )

    def figures(self) -> Mapping[str, float]:
        """Requests per variant: answered, failed, late, timed on a copy; and those refused."""
        counts = {"answered", "failed", "late", "probes"}
        each = {f"{what}_{lane.name}": getattr(lane, what) for lane in self._lanes for what in sorted(counts)}
        return {**each, "refused": self._refused}

    def _in_time(self, lane: _Lane, count: int) -> bool:
        limit = deadline()
        if limit is None:
            return True
        return time.monotonic() + self._policy.caution * lane.predicted_s(count) <= limit

    def _probe(self, lane: _Lane, feeds: Mapping[str, np.ndarray]) -> None:
        """Time a variant that was passed over, unless it is at work or was timed just now."""
        if not lane.idle or time.monotonic() - lane.seen < self._policy.probe_every_s:
            return
        lane.probes += 1
        copies = {name: array.copy() for name, array in feeds.items()}  # the caller may change his own
        task = asyncio.create_task(_timed(lane, copies))
        self._probes.add(task)
        task.add_done_callback(self._probes.discard)


async def _timed(lane: _Lane, feeds: Mapping[str, np.ndarray]) -> None:
    """Let a variant answer for the sake of its time; nobody waits for it, and a failure is counted."""
    try:
        with answered_within(None), heard_by(None):
            await lane.answer(feeds)
    except Exception:
        lane.failed += 1
        lane.seen = time.monotonic()
