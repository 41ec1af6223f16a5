"""Scenarios inside an event loop, for tests of what answers requests."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from pareflow.workload import Arrays


def run(scenario: Callable[[], Awaitable[Any]], seconds: float = 20) -> Any:
    """What a scenario gives, in a loop of its own; one that hangs fails after so many seconds."""

    async def within() -> Any:
        return await asyncio.wait_for(scenario(), seconds)

    return asyncio.run(within())


async def settle() -> None:
    """Let every task that can go on go on."""
    for _ in range(20):
        await asyncio.sleep(0)


def skip(patch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let so many seconds pass at once, by the clock of requests and of the event loop."""
    before = time.monotonic
    patch.setattr(time, "monotonic", lambda: before() + seconds)


def answered_at_once(
    run: Callable[[Arrays], Arrays], asked: Sequence[Arrays], expected: Sequence[np.ndarray]
) -> None:
    """One thread for each request asks it again and again, and gets the answer to it each time."""
    together = Barrier(len(asked))

    def ask(feeds: Arrays, answer: np.ndarray) -> None:
        together.wait(20)
        for _ in range(100):
            np.testing.assert_allclose(run(feeds)["output"], answer, rtol=1e-4, atol=1e-5)

    with ThreadPoolExecutor(len(asked)) as threads:
        list(threads.map(ask, asked, expected))
