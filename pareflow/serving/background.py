"""Work that blocks, beside the event loop, and that the end of the server does not wait for."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from pareflow.errors import TimedOutError

_Found = TypeVar("_Found")
THREAD = "background"


async def in_background(
    work: Callable[[], _Found],
    limit_s: float | None = None,
    unwanted: Callable[[_Found], object] = lambda found: None,
) -> _Found:
    """What `work` gives, done in a daemon thread: a registry that swallows what it is asked may hold it for
    minutes, a runtime for ever, and a pool's threads are waited for.

    `unwanted` gets, in a thread, what it gives once nobody waits for it any more.
    Raises: what it raises; TimedOutError where it takes longer than the limit.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[_Found] = loop.create_future()

    def heard(tell: Callable[[Any], None], found: Any) -> bool:
        try:
            loop.call_soon_threadsafe(tell, found)
        except RuntimeError:  # the loop has ended meanwhile
            return False
        return True

    def run() -> None:
        try:
            found = work()
        except BaseException as error:
            heard(answer.set_exception, error)
        else:
            if not heard(answer.set_result, found):
                unwanted(found)

    def leave(ended: "asyncio.Future[_Found]") -> None:
        if ended.exception() is None:
            threading.Thread(target=unwanted, args=(ended.result(),), name=THREAD, daemon=True).start()

    threading.Thread(target=run, name=THREAD, daemon=True).start()
    try:
        await asyncio.wait((answer,), timeout=limit_s)
    except asyncio.CancelledError:
        answer.add_done_callback(leave)
        raise
    if not answer.done():
        answer.add_done_callback(leave)
        raise TimedOutError(
            f"what is done in the background must end within {limit_s:g} s",
            "it has not, and is left behind",
            "See what hangs: a runtime, its driver or a disk",
        )
    return answer.result()
