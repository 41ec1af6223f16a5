"""What answers requests, as policies see it: an async callable over named arrays, and what is known of it."""

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace

import numpy as np

from pareflow.workload import Arrays

Handler = Callable[[Mapping[str, np.ndarray]], Awaitable[Arrays]]
"""Answers one request; the first axis of every array, in and out, is the batch.

What it gives is the caller's to keep and to change; what it is given stays as it is. A caller that is
cancelled takes nobody else's answer with it. Raises: PareflowError.
"""

Figures = Callable[[], Mapping[str, float]]
"""Counts and sums since the start, by name: what `/metrics` shows of one policy."""


Upkeep = Callable[[], Awaitable[None]]
"""Something to be done to what an endpoint keeps. Raises: PareflowError."""


async def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Something that answers requests; a policy makes another one of it.

    `identity` names what answers: registered version, processing, runtime and precision. Whatever is kept of
    its answers is kept under that name. `concurrency` is how many requests it works on at a time.
    `tiers` are other variants of the same model by name, cheapest first, for policies that choose among them.
    `shapes` are those of its inputs, -1 where sizes were seen to differ; none where that is not known.
    `flush` removes what is kept of its answers, wherever: for one that is no longer served. `close` lets go
    of files and connections.
    """

    answer: Handler
    identity: str
    concurrency: int = 1
    tiers: Mapping[str, "Endpoint"] = field(default_factory=dict)
    figures: Mapping[str, Figures] = field(default_factory=dict)
    flush: Upkeep = _nothing
    close: Upkeep = _nothing
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def then(
        self,
        name: str,
        answer: Handler,
        figures: Figures,
        concurrency: int | None = None,
        *,
        flush: Upkeep = _nothing,
        close: Upkeep = _nothing,
    ) -> "Endpoint":
        """This endpoint behind a policy: `answer` stands before it, and `figures` are what it counts.

        `flush` and `close` are done to what the policy keeps, before what is below it.
        """
        return replace(
            self,
            answer=answer,
            concurrency=self.concurrency if concurrency is None else concurrency,
            figures={**self.figures, name: figures},
            flush=_both(flush, self.flush),
            close=_both(close, self.close),
        )


def _both(first: Upkeep, second: Upkeep) -> Upkeep:
    """One after the other, the second also where the first fails."""

    async def both() -> None:
        try:
            await first()
        finally:
            await second()

    return both


_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


@contextmanager
def answered_within(seconds: float | None) -> Iterator[None]:
    """What is asked inside is worthless later than so many seconds from now; None sets no deadline."""
    token = _deadline.set(None if seconds is None else time.monotonic() + seconds)
    try:
        yield
    finally:
        _deadline.reset(token)


def deadline() -> float | None:
    """When the answer to the present request must be there, by `time.monotonic`; None: it has no limit."""
    return _deadline.get()
