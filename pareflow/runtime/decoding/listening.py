"""Who hears tokens as they are decoded: what streams a text sets it, and the model tells it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[int], object]
"""Is told each token of a request's only row, in the thread that decodes."""

_waiting: ContextVar[list[Listener] | None] = ContextVar("listener", default=None)


@contextmanager
def heard_by(listener: Listener | None) -> Iterator[None]:
    """What is asked inside tells its tokens while it is decoded; None: nobody hears them.

    Only the first that decodes does, also among tasks that are begun inside. A policy that stands before the
    model may answer from elsewhere, or of what it computed for others: then nothing is heard, or something
    that is not the answer, which whoever listens must find out.
    """
    token = _waiting.set(None if listener is None else [listener])
    try:
        yield
    finally:
        _waiting.reset(token)


def take_listener() -> Listener | None:
    """Who hears the tokens of the present request, from now on ours alone; None: nobody, or another's."""
    waiting = _waiting.get()  # one list for all copies of the context
    return waiting.pop() if waiting else None
