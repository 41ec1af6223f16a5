"""Scenarios inside an event loop, for tests of what answers requests."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any


def run(scenario: Callable[[], Awaitable[Any]], seconds: float = 20) -> Any:
    """What a scenario gives, in a loop of its own; one that hangs fails after so many seconds."""

    async def within() -> Any:
        return await asyncio.wait_for(scenario(), seconds)

    return asyncio.run(within())


async def settle() -> None:
    """Let every task that can go on go on."""
    for _ in range(20):
        await asyncio.sleep(0)
