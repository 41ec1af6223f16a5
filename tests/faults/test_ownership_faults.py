"""Owners that are killed, stopped or merely busy: only the dead are declared dead, and they stay so."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tasks.looks import Looks
from tasks.owners import owned_runs
from tasks.reconciling import Look, dead_owners
from tasks.tracking import Tracker

pytestmark = [
    pytest.mark.slow,
]
OWN = """
import sys, time
from pathlib import Path
from tasks.ownership import FencedError
from tasks.heartbeat import owned
from tasks.tracking import Tracker

tracker, parent, told = Tracker.open(Path(sys.argv[1])), sys.argv[2], Path(sys.argv[3])
with owned(tracker, parent, float(sys.argv[4])) as mine:
    told.write_text(mine.owner.name)
    while not told.with_suffix(".write").exists():
        time.sleep(0.05)
    try:
        mine.set_alias("images", "champion", "1")
    except FencedError as error:
        told.with_suffix(".refused").write_text(str(error))
        raise
"""
BEAT_S = 1
PATIENCE_S = 120.0
"""How long a test waits for what must come: a bound for a busy machine, not a measurement."""


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker.open(tmp_path / "data")


@pytest.fixture
def parent(tracker: Tracker) -> str:
    experiment = tracker.client.create_experiment("images", str(tracker.artifacts))
    return str(tracker.client.create_run(experiment).info.run_id)


Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(tmp_path: Path, parent: str, checkout: Path) -> Iterator[Start]:
    """Start an owner in a process of its own, and wait until it owns the run."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(name: str, **more: str) -> "subprocess.Popen[bytes]":
        told = tmp_path / name
        command = [sys.executable, "-W", "ignore", "-c", OWN, str(tmp_path / "data"), parent, str(told)]
        command.append(str(BEAT_S))
        variables = {**os.environ, **more}
        started.append(subprocess.Popen(command, cwd=checkout, env=variables))
        _wait_for(told, started[-1])
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


def _wait_for(path: Path, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not (path.exists() and path.read_text()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def look(tmp_path: Path, now: float) -> Look:
    """A look at a time that may be to come; suspects are watched for so many real heartbeats."""
    return Look(Looks(tmp_path / "looks.db"), now, window_s=120, confirm_s=10 * BEAT_S)


def test_a_killed_owner_is_declared_dead_and_a_healthy_one_is_not(
    start: Start, tracker: Tracker, parent: str, tmp_path: Path
) -> None:
    """The second look comes after a window without any look, as after a time in which the server was away."""
    killed, healthy = start("killed"), start("healthy")
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert dead_owners(look(tmp_path, 1000), tracker)[0] == []
    dead, _ = dead_owners(look(tmp_path, 1200), tracker)
    assert [one["owner"] for one in dead] == [(tmp_path / "killed").read_text()]
    assert healthy.poll() is None
    assert tracker.client.get_run(parent).info.status == "RUNNING"


def test_the_run_of_a_killed_owner_is_marked_and_goes_on_with_the_next(
    start: Start, tracker: Tracker, parent: str, tmp_path: Path
) -> None:
    killed = start("killed")
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    for now in (1000, 1200):
        dead_owners(look(tmp_path, now), tracker)
    assert tracker.client.get_run(parent).info.status == "KILLED"
    assert owned_runs(tracker) == []
    start("next")
    assert tracker.client.get_run(parent).info.status == "RUNNING"


@pytest.mark.parametrize(
    ("more", "status"),
    [({}, 1), ({"PREFECT__RUNTIME__DEPLOYMENT__ID": "some"}, 0)],
    ids=["of a command", "of a deployment"],
)
def test_an_owner_that_was_stopped_and_declared_dead_moves_no_alias_afterwards(
    more: dict[str, str], status: int, start: Start, tracker: Tracker, tmp_path: Path
) -> None:
    """The late writer: it does not know that it slept. Of a deployment it ends without a word to Prefect,
    whose flow run is its successor's."""
    late = start("late", **more)
    os.kill(late.pid, signal.SIGSTOP)
    for now in (1000, 1200):
        dead_owners(look(tmp_path, now), tracker)
    (tmp_path / "late.write").touch()
    os.kill(late.pid, signal.SIGCONT)
    assert late.wait(PATIENCE_S) == status
    assert "declared dead" in (tmp_path / "late.refused").read_text()
    assert owned_runs(tracker) == []
