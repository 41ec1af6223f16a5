"""The embedded Prefect server: one per data directory, shared by all that use it, gone with the last.

It is what runs where PREFECT_API_URL is not set. `flows.server_watcher` owns it; the lock on `watcher` says
whether there is one, so that a `server.json` left by a killed one is never believed.
"""

import fcntl
import importlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from flows.server_watcher import try_lock
from pareflow.errors import MissingExtraError, TrackingError, TransientError

START_SECONDS = 180.0
LINGER_SECONDS = 10.0
_ANSWER_SECONDS = 10.0


@contextmanager
def under_prefect(data_dir: Path, meanwhile: str) -> Iterator[None]:
    """The server that PREFECT_API_URL names, or this data directory's own, for the flows that run inside.

    Raises: TransientError where it is away, or goes away; as `local_server`.
    """
    named = os.environ.get("PREFECT_API_URL")
    with nullcontext() if named else local_server(data_dir, meanwhile=meanwhile):
        import httpx  # Prefect's, which need not be installed

        try:
            yield
        except (httpx.ConnectError, RuntimeError) as error:
            away = error.__cause__ if isinstance(error, RuntimeError) else error  # Prefect's, at its start
            if not isinstance(away, httpx.ConnectError):
                raise
            raise TransientError(
                "the Prefect server must stay reachable during a run",
                f"it is away ({away})",
                "Run the same command again; what is finished is kept",
            ) from error


@contextmanager
def local_server(
    data_dir: Path, linger_seconds: float = LINGER_SECONDS, meanwhile: str = "prefect.flow_engine"
) -> Iterator[str]:
    """The API's URL of this data directory's server, started if need be; flows run inside use it.

    It outlives its last user by `linger_seconds` (the first user's), for the run's last events to be recorded
    and the next command to find it. `meanwhile` is a module to import while it starts, the longer the better.
    Raises: MissingExtraError, TrackingError.
    """
    if find_spec("prefect") is None:
        raise MissingExtraError(
            "Prefect must be installed to orchestrate",
            "it is not",
            "Run `pip install 'pareflow[orchestration]'`",
        )
    folder = data_dir.resolve() / "prefect"
    direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    loopback = f"{direct},127.0.0.1" if direct else "127.0.0.1"
    with (
        _used(folder),
        _environment_with(PREFECT_HOME=str(folder), NO_PROXY=loopback, no_proxy=loopback),
    ):
        url = _running(folder, linger_seconds, meanwhile)
        with _environment_with(PREFECT_API_URL=url), _connected(folder, url):
            yield url


@contextmanager
def _used(folder: Path) -> Iterator[None]:
    """Be counted as a user, until the end of the context or of this process, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        users = (folder / "users").open("a")
    except OSError as error:
        raise TrackingError(
            f"{folder} must be writable for the local Prefect server",
            str(error),
            "Mend that, or choose another data directory",
        ) from error
    with users:
        os.register_at_fork(after_in_child=users.close)  # a forked child that outlives us does not count
        fcntl.flock(users, fcntl.LOCK_SH)  # waits only while the last server is going down
        yield


def _running(folder: Path, linger_seconds: float, meanwhile: str) -> str:
    """The URL of the server, once it answers."""
    deadline = time.monotonic() + START_SECONDS
    started = False
    while time.monotonic() < deadline:
        with (folder / "watcher").open("a") as lock:
            if try_lock(lock):
                if started:
                    raise _failed(folder, "stopped before it answered")
                _start_watcher(folder, lock, linger_seconds)
                started = True
        importlib.import_module(meanwhile)  # both import Prefect, which takes seconds: at the same time
        url = _answering(folder)
        if url is not None:
            return url
        time.sleep(0.05)
    raise _failed(folder, f"did not answer within {START_SECONDS:g} s")


def _start_watcher(folder: Path, lock: IO[str], linger_seconds: float) -> None:
    """Start the watcher, which inherits our lock: nobody else can start one in between."""
    (folder / "server.json").unlink(missing_ok=True)
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with (folder / "server.log").open("wb") as log:
        subprocess.run(
            [sys.executable, "-P", "-m", "flows.server_watcher", str(folder), str(linger_seconds)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": path},
            pass_fds=[lock.fileno()],
            start_new_session=True,  # Ctrl-C is for the command, not for the server it shares
            check=False,
        )


def _answering(folder: Path) -> str | None:
    """The URL of the server that is announced, if it answers."""
    try:
        announcement = json.loads((folder / "server.json").read_text())
        url = f"http://127.0.0.1:{announcement['port']}/api"
        with urllib.request.urlopen(f"{url}/health", timeout=_ANSWER_SECONDS):
            return url
    except (OSError, ValueError, HTTPException):
        return None


def _failed(folder: Path, how: str) -> TrackingError:
    log = folder / "server.log"
    lines = log.read_text(errors="replace").split("\n") if log.exists() else []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing")
    return TrackingError(
        "the local Prefect server must start",
        f"it {how}; its log ends with: {last}",
        f"See {log}; set PREFECT_API_URL to use a server of your own, or pass --no-orchestrator",
    )


@contextmanager
def _connected(folder: Path, url: str) -> Iterator[None]:
    """Point this process's Prefect, whose settings were read when it was imported, at the server."""
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    with temporary_settings({PREFECT_HOME: folder, PREFECT_API_URL: url}):
        try:
            yield
        finally:
            # Send what is queued while there is a server; at the interpreter's exit there may be none.
            APILogWorker.drain_all(timeout=_ANSWER_SECONDS)
            EventsWorker.drain_all(timeout=_ANSWER_SECONDS)


@contextmanager
def _environment_with(**values: str) -> Iterator[None]:
    """The environment with these values, as it was afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
