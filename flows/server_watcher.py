"""The process that owns an embedded Prefect server, and ends it when nobody uses it any more.

`python -m flows.server_watcher FOLDER LINGER_SECONDS` is started by `flows.local_server`, detaches itself,
and lives as long as the server: it needs the standard library only. Every user holds a shared lock on
`FOLDER/users`, which the kernel frees however the user dies, so that an exclusive lock proves that there is
none. The server in turn reads a pipe from the watcher and ends when that does.
"""

import fcntl
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path
from typing import IO

_PROBE_SECONDS = 0.25
_STOP_SECONDS = 5.0
_SETTINGS = {
    "DO_NOT_TRACK": "true",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_UI_ENABLED": "false",
    # In memory, a lease outlives a restart of the server as a slot taken for good.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # The default of 1 records 10 task runs a second.
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_READ_BATCH_SIZE": "100",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    # 1.3 s of every start; a block type registers itself when it is first saved.
    "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",
    # What only a server that outlives its users can do. They cost 0.5 s at the start, and a third of the
    # idle server's processor time while variants are being timed.
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_CLEANUP_RECONCILER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_FOREMAN_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
}


def watch(folder: Path, linger_seconds: float) -> None:
    """Run the server until it stops, or nobody has used it for `linger_seconds`."""
    _create_database(folder / "prefect.db")
    server = _start_server(folder)
    idle_since = time.monotonic()
    with (folder / "users").open("a") as users:
        while server.poll() is None:
            time.sleep(_PROBE_SECONDS)
            if not try_lock(users):
                idle_since = time.monotonic()
            elif time.monotonic() - idle_since >= linger_seconds:
                break  # with the lock: a user who comes now waits, and finds a clean place
            else:
                fcntl.flock(users, fcntl.LOCK_UN)
        (folder / "server.json").unlink(missing_ok=True)
        _stop(server)


def serve(descriptor: int) -> None:
    """The server's process: Prefect's API on the bound socket `descriptor`, until stdin closes."""
    import gc

    threading.Thread(target=_die_with_watcher, daemon=True).start()
    gc.disable()  # a fifth of the start is collecting what imports do not let go
    import uvicorn
    from prefect.server.api.server import create_app

    app = create_app(final=True)
    gc.freeze()
    gc.enable()
    uvicorn.run(app, fd=descriptor, log_level="warning", timeout_graceful_shutdown=2)


def try_lock(file: IO[str]) -> bool:
    """Whether the lock on this file could be had, alone and at once."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _create_database(path: Path) -> None:
    """Create the tables from the schema beside this file, if it is of the installed Prefect.

    Prefect's 114 migrations take 8 s to arrive at the same. Without the file Prefect migrates by itself, and
    it does so from this schema on, too. The rename makes it whole or absent.
    """
    schema = Path(__file__).with_name(f"prefect-{version('prefect')}.sql")
    if path.exists() or not schema.exists():
        return
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with closing(sqlite3.connect(partial)) as database:
        database.executescript(schema.read_text())
    partial.rename(path)


def _start_server(folder: Path) -> "subprocess.Popen[bytes]":
    """Start the server on a free port and announce it in `server.json`.

    The port is bound here and handed down, so that nobody can take it in between, and a request that comes
    early waits for its answer.
    """
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = subprocess.Popen(
            [sys.executable, "-P", "-m", "flows.server_watcher", "serve", str(bound.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[bound.fileno()],
            cwd=folder,  # away from a prefect.toml or .env of the user's
            env=_environment(folder),
            start_new_session=True,
        )
        announcement = {"pid": server.pid, "watcher": os.getpid(), "port": bound.getsockname()[1]}
    partial = folder / "server.json.partial"
    partial.write_text(json.dumps(announcement))
    partial.rename(folder / "server.json")
    return server


def _environment(folder: Path) -> dict[str, str]:
    """Ours, without the user's Prefect settings: those may name another database."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    return {**others, **_SETTINGS, "PREFECT_HOME": str(folder)}


def _stop(server: "subprocess.Popen[bytes]") -> None:
    for order in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, order)
        with suppress(subprocess.TimeoutExpired):
            server.wait(_STOP_SECONDS)


def _die_with_watcher() -> None:
    os.read(0, 1)  # ends when the watcher does, which writes nothing
    os._exit(1)


def main() -> None:
    """Be the watcher, or with `serve` as the first argument its server."""
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    elif os.fork() == 0:  # detached: no zombie is left to the command that started it
        watch(Path(sys.argv[1]), float(sys.argv[2]))


if __name__ == "__main__":
    main()
