"""The HTTP server: one process, uvicorn on its fast parser and loop, which drains before it ends."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence

from pareflow.catalog import installed_version
from pareflow.errors import InputError, MissingExtraError
from pareflow.runtime.pool import THREADS
from pareflow.serving.plan import ServingPlan
from pareflow.serving.settings import Settings
from pareflow.serving.slot import Source

log = logging.getLogger("pareflow.serving")

_NEEDED = ("cachetools", "httptools", "orjson", "prometheus-client", "starlette", "uvicorn", "uvloop")
DRAIN_S = 30
"""The most that the last requests may take."""


def serve(
    sources: Sequence[Source],
    plan: ServingPlan | None,
    settings: Settings,
    found: Callable[[str], Source],
    listening: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve the sources' models until SIGTERM or SIGINT; then answer what is there, and end.

    Without a plan each model is served by its own. `found` gives the source of what the plan's tiers name;
    `listening` is told the URL when connections are taken. Raises: MissingExtraError; InputError where the
    address cannot be had; what the sources raise, and what a model that cannot be served does.
    """
    check_extra()
    import uvicorn

    from pareflow.serving.app import assembled

    with bound(settings.host, settings.port) as listener:
        config = uvicorn.Config(
            assembled(sources, plan, settings, found),
            http="httptools",
            loop="uvloop",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=DRAIN_S,
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(
                number, lambda *_: None
            )  # uvicorn's own come first, and hand on once it has drained
        listening(f"http://{settings.host}:{listener.getsockname()[1]}")
        uvicorn.Server(config).run([listener])
    _leave_what_hangs()


def _leave_what_hangs() -> None:
    """End at once where a network hangs in a thread, for which Python would wait for ever."""
    left = [thread for thread in threading.enumerate() if thread.name.startswith(THREADS)]
    for thread in left:
        thread.join(1)
    if any(thread.is_alive() for thread in left):
        log.error("a network hangs, and is left behind")
        logging.shutdown()
        os._exit(1)


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 is any that is free. Raises: InputError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise InputError(
            "the address to serve on must be free, and this machine's",
            f"{host}:{port} is not ({error.strerror})",
            "Choose another with --host and --port",
        ) from error


def check_extra() -> None:
    """Raises: MissingExtraError where what serves is not installed."""
    absent = [name for name in _NEEDED if installed_version(name) is None]
    if absent:
        raise MissingExtraError(
            "serving needs the extra `serving`",
            f"not installed: {', '.join(absent)}",
            "Run `pip install 'pareflow[serving]'`",
        )
