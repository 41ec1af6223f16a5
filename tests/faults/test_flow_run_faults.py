"""Flow runs whose process was killed: marked once silent, resumed once settled; slots that nobody holds."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.local_server import local_server
from tasks import flow_runs
from tasks.looks import Looks
from tasks.reconciling import Look, dead_flow_runs, leaked_slots, never_began, resumed
from tests import servers
from tests.orchestration.test_deployments import PIPELINE, WORKLOAD

pytestmark = pytest.mark.slow
SLEEP = """
import sys, time
from pathlib import Path
from prefect import flow
from prefect.runtime import flow_run
from tasks.flow_runs import claim

@flow(name="pipeline", on_running=[claim])
def sleep():
    Path(sys.argv[1]).write_text(flow_run.get_id())
    time.sleep(1000)

sleep()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Prefect with the deployments."""
    with local_server(tmp_path_factory.mktemp("server"), linger_seconds=1) as url:
        servers.deploy()
        yield url


@pytest.fixture
def look(tmp_path: Path) -> Callable[[float], Look]:
    """A look so many seconds from now; suspects are watched for a moment only."""
    looks, began = Looks(tmp_path / "looks.db"), time.time()
    return lambda later: Look(looks, began + later, window_s=120, confirm_s=1)


def until(condition: Callable[[], Any]) -> Any:
    """What the condition says, once it says something."""
    deadline = time.monotonic() + servers.PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


@pytest.fixture
def sleeping(server: str, tmp_path: Path) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """A run of the pipeline in a process of its own, which has beaten once; its id."""
    told = tmp_path / "id"
    variables = {**os.environ, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
    process = subprocess.Popen([sys.executable, "-c", SLEEP, str(told)], env=variables)
    run_id = until(lambda: told.exists() and told.read_text())
    until(lambda: flow_runs.heartbeats(run_id))
    yield run_id, process
    process.kill()
    process.wait()


def test_a_killed_run_is_marked_when_it_was_silent_and_nobody_works_on_it(
    sleeping: tuple[str, "subprocess.Popen[bytes]"], look: Callable[[float], Look]
) -> None:
    """It beat once only, so its interval is not known, and the longest there is counts."""
    run_id, process = sleeping
    process.kill()
    process.wait()
    assert dead_flow_runs(look(0), ()) == []
    assert dead_flow_runs(look(700), ()) == []
    assert dead_flow_runs(look(800), {run_id}) == []
    assert [one["flow_run"] for one in dead_flow_runs(look(900), ())] == [run_id]
    assert run_id in {run["id"] for run in flow_runs.in_state("CRASHED")}


def test_a_run_that_beats_while_it_is_watched_is_not_marked(
    sleeping: tuple[str, "subprocess.Popen[bytes]"], look: Callable[[float], Look]
) -> None:
    """As after a time in which the server was away: what was seen before is old, and it is alive."""
    run_id, _ = sleeping
    dead_flow_runs(look(0), ())
    later = look(900)
    patient = Look(later.looks, later.now, later.window_s, confirm_s=35)
    assert dead_flow_runs(patient, ()) == []
    assert run_id in {run["id"] for run in flow_runs.in_state("RUNNING")}


def test_a_run_that_ended_stays_as_it_is(
    sleeping: tuple[str, "subprocess.Popen[bytes]"], look: Callable[[float], Look]
) -> None:
    run_id, process = sleeping
    process.send_signal(signal.SIGTERM)
    process.wait()
    before = until(lambda: {run["id"]: run for run in flow_runs.in_state(*flow_runs.ENDED)}.get(run_id))
    flow_runs.crash(run_id, "late")
    after = {run["id"]: run for run in flow_runs.in_state(*flow_runs.ENDED)}[run_id]
    assert after["state_id"] == before["state_id"]


def test_a_slot_that_nobody_holds_is_given_back_after_a_window(
    server: str, look: Callable[[float], Look]
) -> None:
    (slot,) = [one for one in flow_runs.slots() if one["deployment"] == "on-demand"]
    flow_runs.free_slots(slot["id"], 1)
    assert leaked_slots(look(0)) == []
    assert leaked_slots(look(100)) == []
    assert [one["id"] for one in leaked_slots(look(130))] == [slot["id"]]
    assert [one["taken"] for one in flow_runs.slots() if one["id"] == slot["id"]] == [0]


def test_a_run_that_its_worker_lost_is_resumed_once_settled_and_ends_well(
    server: str, look: Callable[[float], Look], tmp_path: Path
) -> None:
    """`kill -9` of the run's process: the worker says Crashed; the store keeps what was finished."""
    (tmp_path / "workload.py").write_text(WORKLOAD)
    config = tmp_path / "pipeline.yaml"
    config.write_text(PIPELINE)
    parameters = {"config": str(config), "data_dir": str(tmp_path / "data")}
    with servers.worker(tmp_path):
        run_id = flow_runs.start("pipeline/on-demand", parameters).run_id
        until(lambda: run_id in ids("RUNNING"))
        for process in children(run_id):
            os.kill(process, signal.SIGKILL)
        until(lambda: run_id in ids("CRASHED"))
        assert resumed(look(0)) == []
        time.sleep(10)  # the worker says it a second time, seconds later: what a run is left to settle for
        assert [one["flow_run"] for one in resumed(look(61))] == [run_id]
        assert flow_runs.follow(run_id)["type"] == "COMPLETED"


def test_a_run_that_never_comes_to_running_is_taken_up_three_times(
    server: str, look: Callable[[float], Look]
) -> None:
    """As where its image cannot be had. The server counts no run, and keeps its states."""
    run_id = flow_runs.start("pipeline/on-demand", {"config": "absent.yaml"}).run_id
    attempts = []
    for minutes in range(0, 40, 5):
        if run_id not in ids("CRASHED"):
            flow_runs.crash(run_id, "no such image")
        attempts += [one["attempt"] for one in resumed(look(60.0 * minutes)) if one["flow_run"] == run_id]
    (run,) = [run for run in flow_runs.in_state("CRASHED") if run["id"] == run_id]
    assert (attempts, run["run_count"]) == ([2, 3], 0)


def test_a_run_whose_worker_died_before_it_began_is_taken_up_again(
    server: str, look: Callable[[float], Look]
) -> None:
    """As where a power cut comes between taking it and its first process: it stays Pending for ever."""
    run_id = flow_runs.start("pipeline/on-demand", {"config": "absent.yaml"}).run_id
    flow_runs._set_state(run_id, {"type": "PENDING", "name": "Pending"}, force=False)
    assert never_began(look(0)) == []
    assert never_began(look(1700)) == []
    assert [one["flow_run"] for one in never_began(look(1800))] == [run_id]
    assert run_id in ids("CRASHED")
    resumed(look(1800))
    assert run_id in [one["flow_run"] for one in resumed(look(1900))]
    assert run_id in ids("SCHEDULED")


def ids(state: str) -> set[str]:
    """Our flow runs in a state."""
    return {run["id"] for run in flow_runs.in_state(state)}


def children(run_id: str) -> list[int]:
    """The processes that Prefect's worker started for a run, by their environment."""
    mark, found = f"PREFECT__FLOW_RUN_ID={run_id}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue  # it has just ended, or is another user's
    return found
