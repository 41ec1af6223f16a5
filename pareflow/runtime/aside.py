"""Work on a request beside the event loop, where others would wait for it."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

LARGE = 256 * 2**10
"""Bytes that take milliseconds to read or to write: that is done in a thread, and others go on meanwhile."""
ROW_BYTES = 2**10
"""What a sample counts as beside its bytes where samples are handled one by one: that takes some µs each."""

_Found = TypeVar("_Found")


async def aside(size: int, work: Callable[[], _Found]) -> _Found:
    """What `work` on so many bytes gives: at once, or from a thread where others would wait for it."""
    return await asyncio.to_thread(work) if size > LARGE else work()
