"""Dynamic batching: requests that wait are computed together."""

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from pareflow.errors import DeadlineError, OverloadedError
from pareflow.runtime.decoding import heard_by
from pareflow.runtime.endpoint import Endpoint, answered_within, deadline
from pareflow.runtime.padding import Padding
from pareflow.runtime.policy import Policy, TensorName
from pareflow.runtime.pool import MAX_WAITING
from pareflow.runtime.rows import check_rows
from pareflow.runtime.service_time import ServiceTime
from pareflow.workload import Arrays


class DynamicBatching(Policy):
    """Compute requests together that wait while the sessions are busy.

    By default nobody is made to wait: a request that finds a free session is computed at once, with those
    that came at the same moment; one that does not, with those behind it as soon as a session is free. Free
    sessions share what waits. Whoever came first goes first, however large; one that is larger than a batch
    is computed alone.

    Only requests of equal shapes and types, but for the first axis, go together; `pad_axis` fills shorter
    ones up, of each the inputs that are as long as it. Who waits for others of its kind, while a batch of
    another one is full, is overtaken. One that cannot be answered before its deadline is refused when it
    comes, not when it is late.
    """

    name: ClassVar[str] = "dynamic_batching"
    requires: ClassVar[tuple[str, ...]] = ("numpy",)
    joins: ClassVar[bool] = True

    max_batch_size: int = Field(default=8, ge=1, description="samples in a batch, at most")
    min_batch_size: int = Field(default=1, ge=1, description="samples worth waiting for")
    max_wait_ms: float = Field(default=0, ge=0, description="the most that a request waits for others")
    max_waiting: int = Field(default=MAX_WAITING, ge=1, description="requests in line; more are refused")
    pad_axis: int | None = Field(default=None, ge=1, description="along which requests differ in length")
    pad_to: tuple[Annotated[int, Field(gt=1)], ...] = Field(
        default=(), description="lengths to fill up to; else to the longest"
    )
    pad_values: dict[str, float] = Field(default={}, description="what fills an input up, by name; else 0")
    padded_outputs: tuple[str, ...] = Field(
        default=(), description="outputs that have the axis too, and are cut back to their request's length"
    )

    @model_validator(mode="after")
    def _can_be_met(self) -> Self:
        if self.min_batch_size > self.max_batch_size:
            raise ValueError(
                "`min_batch_size <= max_batch_size` must hold, "
                f"but got {self.min_batch_size} and {self.max_batch_size}"
            )
        if self.min_batch_size > 1 and not self.max_wait_ms:
            raise ValueError("`min_batch_size` above 1 needs `max_wait_ms` above 0: how long it may take")
        return self

    def tensors(self) -> tuple[TensorName, ...]:
        filled = (TensorName("pad_values", "inputs", name) for name in self.pad_values)
        return (*filled, *(TensorName("padded_outputs", "outputs", name) for name in self.padded_outputs))

    def wrap(self, below: Endpoint) -> Endpoint:
        line = _Line(self, below)
        return below.then(self.name, line.answer, line.figures, concurrency=self.max_waiting)


@dataclass(eq=False, slots=True)
class _Waiting:
    """A request in line. Its turn is given by the line, and the answer through `answer`."""

    feeds: Mapping[str, np.ndarray]
    count: int
    kind: object
    arrived: float
    deadline: float
    answer: asyncio.Future[Arrays]
    alone: bool = False
    """It was in a batch that failed: nobody is computed with it, nor waited for."""


class _Line:
    """The line before one endpoint, and the batches that are under way."""

    def __init__(self, policy: DynamicBatching, below: Endpoint) -> None:
        self._policy, self._below = policy, below
        self._padding = Padding(
            policy.pad_axis, policy.pad_to, policy.pad_values, policy.padded_outputs, below.shapes
        )
        self._waiting: deque[_Waiting] = deque()
        self._samples = 0
        self._busy = 0
        self._called = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._alarm: asyncio.TimerHandle | None = None
        self._time = ServiceTime()
        self._batches = self._batched = self._refused = self._late = 0

    async def answer(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Raises: OverloadedError where the line is full, DeadlineError, and what the sessions raise."""
        count = _count(feeds)
        limit = deadline()
        self._admit(count, limit)
        request = _Waiting(
            feeds,
            count,
            self._padding.kind(feeds),
            time.monotonic(),
            math.inf if limit is None else limit,
            asyncio.get_running_loop().create_future(),
        )
        self._waiting.append(request)
        self._samples += count
        loop = asyncio.get_running_loop()
        if not self._called:  # when all that has arrived by now has been read
            self._called = True
            loop.call_soon(self._next)
        over: asyncio.TimerHandle | None = None
        if limit is not None:
            over = loop.call_later(limit - request.arrived, self._time_is_over, request)
        try:
            return await request.answer
        except asyncio.CancelledError:
            self._leave(request)
            raise
        finally:
            if over is not None:
                over.cancel()

    def figures(self) -> Mapping[str, float]:
        return {
            "batches": self._batches,
            "samples": self._batched,
            "waiting": len(self._waiting),
            "refused": self._refused,
            "late": self._late,
        }

    def _admit(self, count: int, limit: float | None) -> None:
        """Raises: OverloadedError, DeadlineError, before the request has cost anything."""
        if len(self._waiting) >= self._policy.max_waiting:
            self._refused += 1
            raise OverloadedError(
                f"at most {self._policy.max_waiting} requests may wait",
                "the line is full",
                retry_after_s=self._wait_s(0),
            )
        if limit is None or not self._under_way:
            return  # what is idle is tried: else one slow moment would last for ever
        if time.monotonic() + (needed := self._wait_s(count)) > limit:
            self._late += 1
            raise DeadlineError(
                "a request must be answered before its deadline",
                f"those before it and itself take about {needed * 1000:.1f} ms",
                retry_after_s=needed,
            )

    @property
    def _under_way(self) -> bool:
        return bool(self._busy or self._waiting)

    def _wait_s(self, count: int) -> float:
        """About how long it takes to answer those in line, and so many samples after them; 0 if unknown."""
        most = self._policy.max_batch_size
        before, rest = divmod(self._samples, most)
        full = self._time.predict(most)
        if math.isnan(full):
            return 0.0
        line = before * full + (self._time.predict(rest) if rest else 0.0)
        under_way = full / 2 if self._busy >= self._below.concurrency else 0.0
        return under_way + line / self._below.concurrency + (self._time.predict(count) if count else 0.0)

    def _next(self) -> None:
        """Start batches while sessions are free and requests are due."""
        self._called = False
        while self._busy < self._below.concurrency and self._waiting:
            self._drop_late()
            kind = self._due()
            if kind is None:
                return
            batch = self._taken(kind)
            self._busy += 1
            task = asyncio.create_task(self._compute(batch))
            self._tasks.add(task)  # the loop itself keeps only weak references
            task.add_done_callback(self._tasks.discard)

    def _drop_late(self) -> None:
        """Take out whoever gave up, and whoever's time is over."""
        now = time.monotonic()
        while self._waiting and (self._waiting[0].answer.done() or self._waiting[0].deadline < now):
            request = self._waiting.popleft()
            self._samples -= request.count
            if not request.answer.done():
                self._tell_late(request)

    def _time_is_over(self, request: _Waiting) -> None:
        """Whatever the sessions do, who still waits in line is told; who is in a batch gets its answer."""
        if self._leave(request) and not request.answer.done():
            self._tell_late(request)

    def _leave(self, request: _Waiting) -> bool:
        """Take it out of the line; whether it was in it, and not in a batch."""
        if request not in self._waiting:
            return False
        self._waiting.remove(request)
        self._samples -= request.count
        return True

    def _tell_late(self, request: _Waiting) -> None:
        """Refuse what is in line no more."""
        self._late += 1
        error = DeadlineError(
            "a request must be answered before its deadline",
            f"it waited for {(time.monotonic() - request.arrived) * 1000:.1f} ms",
            retry_after_s=self._wait_s(request.count),
        )
        request.answer.set_exception(error)

    def _due(self) -> object | None:
        """The kind of the first request that need not wait for others; None where all may still wait.

        Then they are looked at again in time. Nobody waits for more than half of what the deadline leaves,
        so that there is time to compute.
        """
        least = self._policy.min_batch_size
        if least == 1:
            return self._waiting[0].kind if self._waiting else None
        waiting = [request for request in self._waiting if not request.answer.done()]
        samples = Counter[object]()
        for request in waiting:
            samples[request.kind] += request.count
        now, soonest = time.monotonic(), math.inf
        for request in waiting:
            left = self._until(request) - now
            if left <= 0 or request.alone or samples[request.kind] >= least:
                return request.kind
            soonest = min(soonest, left)
        if self._alarm is not None:
            self._alarm.cancel()
        if waiting:
            self._alarm = asyncio.get_running_loop().call_later(soonest, self._next)
        return None

    def _until(self, request: _Waiting) -> float:
        """When it has waited for others for as long as it may."""
        wait_s = min(self._policy.max_wait_ms / 1000, (request.deadline - request.arrived) / 2)
        return request.arrived + wait_s

    def _taken(self, kind: object) -> list[_Waiting]:
        """The first request of this kind and those after it that go with it, in their order."""
        free = self._below.concurrency - self._busy
        share = max(self._policy.min_batch_size, math.ceil(self._samples / free))
        room = min(self._policy.max_batch_size, share)
        batch, passed = list[_Waiting](), deque[_Waiting]()
        while self._waiting and room > 0:
            request = self._waiting.popleft()
            if request.answer.done():
                self._samples -= request.count
            elif request.kind == kind and (request.count <= room or not batch):
                batch.append(request)
                room -= request.count
            else:
                passed.append(request)
        self._waiting.extendleft(reversed(passed))
        self._samples -= sum(request.count for request in batch)
        return batch

    async def _compute(self, batch: list[_Waiting]) -> None:
        """Compute a batch, and give each request its part. Whoever is gone by then goes without."""
        count = sum(request.count for request in batch)
        began = time.monotonic()
        try:
            with answered_within(None), heard_by(None):  # they would be those of whoever came last
                answers = await self._together(batch, count)
        except Exception as error:
            self._fail(batch, error)
        else:
            self._time.observe(count, time.monotonic() - began)
            for request, answer in zip(batch, answers, strict=True):
                if not request.answer.done():
                    request.answer.set_result(answer)
        finally:
            self._batches += 1
            self._batched += count
            self._busy -= 1
            self._next()

    async def _together(self, batch: list[_Waiting], count: int) -> list[Arrays]:
        if len(batch) == 1 and not self._padding.changes(batch[0].feeds):
            return [await self._below.answer(batch[0].feeds)]
        joined = self._padding.joined([request.feeds for request in batch])
        outputs = await self._below.answer(joined)
        check_rows(outputs, count, " to be computed in batches", "Serve it without `dynamic_batching`")
        return self._padding.parted(outputs, [request.feeds for request in batch])

    def _fail(self, batch: list[_Waiting], error: Exception) -> None:
        """One bad request takes no others with it: those of a batch that failed are computed one by one."""
        if len(batch) == 1:
            if not batch[0].answer.done():
                batch[0].answer.set_exception(error)
            return
        now = time.monotonic()
        for request in reversed(batch):
            if request.answer.done():
                continue
            if request.deadline < now:
                self._tell_late(request)
                continue
            request.kind, request.alone = object(), True  # with no other again
            self._waiting.appendleft(request)
            self._samples += request.count


def _count(feeds: Mapping[str, np.ndarray]) -> int:
    """The samples of a request; 1 where an input has no axis, by which nothing can be joined."""
    return max(1, min((len(array) for array in feeds.values() if array.ndim), default=1))
