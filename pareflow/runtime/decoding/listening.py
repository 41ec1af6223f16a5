"""Who hears tokens as they are decoded: what streams a text sets it, and the model tells it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[int], object]
"""Is told each token of a request's only row, in the thread that decodes."""

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def heard_by(listener: Listener) -> Iterator[None]:
    """What is asked inside tells its tokens while it is decoded.

    A policy that stands before the model may answer from elsewhere, or in a task of its own: then nothing is
    heard, and the answer comes whole.
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def listener() -> Listener | None:
    """Who hears the tokens of the present request; None: nobody does."""
    return _listener.get()
