"""The embedded Prefect server is one per data directory, quiet, and gone with its last user."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from flows.local_server import local_server
from flows.server_watcher import try_lock
from pareflow.errors import TrackingError

ROOT = Path(__file__).parents[2]
LINGER_SECONDS = 2.0
PATIENCE_SECONDS = 60.0
"""How long a test waits for what must come: a bound for a busy machine, not a measurement."""

BEGIN = """
import os, sys
from pathlib import Path
from flows.environment import set_environment
set_environment()
from flows.local_server import local_server
data_dir, linger_seconds = Path(sys.argv[1]), float(sys.argv[2])
"""
WAIT = """
with local_server(data_dir, linger_seconds) as url:
    print(url, flush=True)
    sys.stdin.read()
"""
FORK = """
import time
with local_server(data_dir, linger_seconds) as url:
    child = os.fork()
    if child == 0:
        time.sleep(600)
    print(url, child, flush=True)
    sys.stdin.read()
"""
RUN = """
import time
before = dict(os.environ)
with local_server(data_dir, linger_seconds):
    from prefect import flow, task

    @task
    def square(number: int) -> int:
        return number * number

    @flow
    def squares() -> int:
        return sum(future.result() for future in [square.submit(number) for number in range(4)])

    print(squares())
print(dict(os.environ) == before)
while (data_dir / "prefect" / "server.json").exists():
    time.sleep(0.1)  # the interpreter's end finds no server any more
"""


@dataclass
class Users:
    """Commands that use one data directory's server."""

    data_dir: Path
    started: list["subprocess.Popen[str]"] = field(default_factory=list)

    def start(self, script: str, **environment: str) -> "subprocess.Popen[str]":
        """A process that runs `script`."""
        user = subprocess.Popen(
            [sys.executable, "-c", BEGIN + script, str(self.data_dir), str(LINGER_SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, **environment},
            text=True,
        )
        self.started.append(user)
        return user

    def server(self) -> dict[str, int]:
        """What the server's watcher announces."""
        announced: dict[str, int] = json.loads((self.data_dir / "prefect" / "server.json").read_text())
        return announced

    def none_left(self) -> bool:
        """Whether no watcher holds the lock: it is the last to go."""
        path = self.data_dir / "prefect" / "watcher"
        if not path.exists():
            return True
        with path.open("a") as lock:
            return try_lock(lock)


@pytest.fixture
def users(tmp_path: Path) -> Iterator[Users]:
    users = Users(tmp_path)
    yield users
    for user in users.started:
        user.kill()
        user.communicate()
    assert in_time(users.none_left)


def first_line(user: "subprocess.Popen[str]") -> str:
    """What a user prints first: it has its server."""
    assert user.stdout is not None
    line = user.stdout.readline().strip()
    assert line, user.stderr and user.stderr.read()
    return line


def release(user: "subprocess.Popen[str]") -> tuple[str, str]:
    """Let a user go its way; what it printed until its end."""
    output, errors = user.communicate(timeout=PATIENCE_SECONDS)
    assert user.returncode == 0, errors
    return output, errors


def runs(pid: int) -> bool:
    """Whether there is such a process; a zombie is dead, and only waits to be counted."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def in_time(condition: Callable[[], bool]) -> bool:
    """Whether it comes true."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def gone(server: dict[str, int]) -> bool:
    """Whether the server and its watcher end."""
    return in_time(lambda: not runs(server["pid"]) and not runs(server["watcher"]))


def test_a_flow_runs_quietly_and_its_history_is_kept(users: Users) -> None:
    """Neither a proxy nor the user's settings for another Prefect stand in the way, and those are kept."""
    user = users.start(
        RUN,
        HTTP_PROXY="http://127.0.0.1:9",
        PREFECT_API_DATABASE_CONNECTION_URL="sqlite+aiosqlite:////nowhere/prefect.db",
    )
    assert release(user) == ("14\nTrue\n", "")

    assert in_time(users.none_left)
    with closing(sqlite3.connect(users.data_dir / "prefect" / "prefect.db")) as database:
        states = database.execute("SELECT state_type FROM flow_run UNION ALL SELECT state_type FROM task_run")
        assert states.fetchall() == [("COMPLETED",)] * 5
    assert (users.data_dir / "prefect" / "server.log").read_text() == ""


@pytest.mark.slow
def test_users_who_start_at_once_share_one_server_that_ends_with_the_last(users: Users) -> None:
    first, second = users.start(WAIT), users.start(WAIT)
    assert first_line(first) == first_line(second)
    server = users.server()

    release(first)
    time.sleep(3 * LINGER_SECONDS)
    assert runs(server["pid"])
    late = users.start(WAIT)
    first_line(late)
    assert users.server() == server

    release(second)
    release(late)
    assert gone(server)
    assert not (users.data_dir / "prefect" / "server.json").exists()


def test_a_killed_user_leaves_no_server_though_its_forked_child_lives(users: Users) -> None:
    user = users.start(FORK)
    _, child = first_line(user).split()
    server = users.server()
    try:
        user.kill()
        assert gone(server)
        assert runs(int(child))
    finally:
        os.kill(int(child), signal.SIGKILL)


class Foreign(BaseHTTPRequestHandler):
    """Another program that answers as a healthy server would."""

    def do_GET(self) -> None:  # the name is http.server's
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *values: object) -> None:  # noqa: A002 (the name is http.server's)
        pass


@pytest.mark.slow
def test_a_killed_watcher_takes_its_server_along_and_its_announcement_is_not_believed(users: Users) -> None:
    user = users.start(WAIT)
    first_line(user)
    server = users.server()
    os.kill(server["watcher"], signal.SIGKILL)
    assert gone(server)

    with HTTPServer(("127.0.0.1", 0), Foreign) as foreign:
        threading.Thread(target=foreign.serve_forever, daemon=True).start()
        stale = server | {"pid": os.getpid(), "port": foreign.server_port}
        (users.data_dir / "prefect" / "server.json").write_text(json.dumps(stale))
        late = users.start(WAIT)
        url = first_line(late)
        foreign.shutdown()

    assert url == f"http://127.0.0.1:{users.server()['port']}/api"
    assert users.server()["port"] != stale["port"]


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect" / "prefect.db").write_text("this is no database" * 100)

    with (
        pytest.raises(TrackingError, match=r"stopped before it answered.*server\.log"),
        local_server(tmp_path, LINGER_SECONDS),
    ):
        pass


def test_a_data_directory_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(TrackingError, match="must be writable"), local_server(tmp_path / "file"):
        pass
