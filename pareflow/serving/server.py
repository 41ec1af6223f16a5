"""The HTTP server: one process, uvicorn on its fast parser and loop, which drains before it ends."""

import asyncio
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence

from pareflow.catalog import installed_version
from pareflow.errors import InputError, MissingExtraError
from pareflow.runtime.pipelining import STAGES
from pareflow.runtime.pool import THREADS
from pareflow.serving.plan import ServingPlan
from pareflow.serving.settings import Settings
from pareflow.serving.slot import Source

log = logging.getLogger("pareflow.serving")

_NEEDED = ("cachetools", "httptools", "orjson", "prometheus-client", "starlette", "uvicorn", "uvloop")
DRAIN_S = 30
"""The most that the last requests may take."""
WAITING = 2048
"""Connections that wait to be taken."""


def serve(
    sources: Sequence[Source],
    plan: ServingPlan | None,
    settings: Settings,
    found: Callable[[str], Source],
    listening: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve the sources' models until SIGTERM or SIGINT; then answer what is there, and end.

    Without a plan each model is served by its own. `found` gives the source of what a plan's tiers name;
    `listening` is told the URL when connections are taken, which is not before all is loaded.
    Raises: MissingExtraError; InputError where the address cannot be had; what the sources raise, and what a
    model that cannot be served does, or its policies.
    """
    check_extra()
    import uvicorn
    import uvloop

    from pareflow.serving.app import assembled

    with bound(settings.host, settings.port) as listener:
        app = assembled(sources, plan, settings, found)
        config = uvicorn.Config(
            app.asgi(),
            http="httptools",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=DRAIN_S,
        )
        server = uvicorn.Server(config)

        async def run() -> None:
            app.start()
            _listen(listener, settings)
            for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn's own come first, and hand on at the end
                signal.signal(number, lambda *_: setattr(server, "should_exit", True))
            listening(f"http://{settings.host}:{listener.getsockname()[1]}")
            await server.serve([listener])

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())
    _leave_what_hangs()


def _leave_what_hangs() -> None:
    """End at once where a network or its processing hangs in a thread: Python would wait for it for ever."""
    left = [thread for thread in threading.enumerate() if thread.name.startswith((THREADS, *STAGES))]
    for thread in left:
        thread.join(1)
    if any(thread.is_alive() for thread in left):
        log.error("a network or its processing hangs, and is left behind")
        logging.shutdown()
        os._exit(1)


def bound(host: str, port: int) -> socket.socket:
    """A socket of that address, which listens once it is told to; port 0 is any that is free.

    Raises: InputError.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        found = socket.socket(family)
    except OSError as error:
        raise _taken(host, port, error) from error
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise _taken(host, port, error) from error
    return found


def _listen(listener: socket.socket, settings: Settings) -> None:
    """Raises: InputError."""
    try:
        listener.listen(WAITING)
    except OSError as error:  # another one has begun to, since it was bound
        raise _taken(settings.host, settings.port, error) from error


def _taken(host: str, port: int, error: OSError) -> InputError:
    return InputError(
        "the address to serve on must be free, and this machine's",
        f"{host}:{port} is not ({error.strerror})",
        "Choose another with --host and --port",
    )


def check_extra() -> None:
    """Raises: MissingExtraError where what serves is not installed."""
    absent = [name for name in _NEEDED if installed_version(name) is None]
    if absent:
        raise MissingExtraError(
            "serving needs the extra `serving`",
            f"not installed: {', '.join(absent)}",
            "Run `pip install 'pareflow[serving]'`",
        )
