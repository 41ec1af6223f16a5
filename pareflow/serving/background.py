"""Work that blocks, beside the event loop, and that the end of the server does not wait for."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

_Found = TypeVar("_Found")


async def in_background(work: Callable[[], _Found]) -> _Found:
    """What `work` gives, done in a daemon thread: a registry that swallows what it is asked may hold it for
    minutes, and a pool's threads are waited for.

    Raises: what it raises.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[_Found] = loop.create_future()

    def told(tell: Callable[[Any], None], found: Any) -> None:
        if not answer.cancelled():
            tell(found)

    def run() -> None:
        try:
            outcome: tuple[Callable[[Any], None], Any] = answer.set_result, work()
        except BaseException as error:
            outcome = answer.set_exception, error
        with suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(told, *outcome)

    threading.Thread(target=run, name="registry", daemon=True).start()
    return await answer
