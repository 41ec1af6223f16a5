"""What dies amid a run, on the real set-up: the run goes on by itself, and all three records agree."""

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.production import PATIENCE_SECONDS, SERVERS, SetUp, Story
from tests.servers import answers, free_port, process

pytestmark = [pytest.mark.slow, pytest.mark.production, pytest.mark.timeout(1500)]
DOWN_S = 30
"""How long what was killed stays away."""
LATEST_S = 45
"""So long after its first entry in the store a server is killed at the latest: a run goes on for longer."""
WINDOW_S = 120
"""So long without a heartbeat a run is looked at; three more beats confirm it."""
READ = """
import json, sys
from pathlib import Path
from tasks.tracking import KEY, Tracker

tracker = Tracker.open(Path(sys.argv[1]))
experiment = tracker.client.get_experiment_by_name(sys.argv[2]).experiment_id
runs = [run for run in tracker.client.search_runs([experiment]) if KEY in run.data.tags]
points = [
    (run.info.run_id, name, point.step)
    for run in runs
    for name in run.data.metrics
    for point in tracker.client.get_metric_history(run.info.run_id, name)
]
print(json.dumps({
    "keys": [run.data.tags[KEY] for run in runs],
    "statuses": sorted({run.info.status for run in runs}),
    "points": len(points),
    "distinct": len(set(points)),
    "verdicts": sorted(set(filter(None, (run.data.tags.get("pareflow.verdict") for run in runs)))),
}))
"""


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["postgresql", "s3", "mlflow", "prefect", "worker"])
def test_a_run_goes_on_when_a_server_was_killed_and_away(
    name: str, seed: int, servers: SetUp, digits: Callable[..., Path], tmp_path: Path
) -> None:
    """Killed at a moment that the seed draws, and away for as long as a third of the run or more."""
    data_dir, model = tmp_path / "data", f"digits-without-{name}-{seed}"
    run = servers.begin(digits(["static_int8", "onnxruntime"], model), data_dir)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not list((data_dir / "store" / "entries").glob("*/manifest.json")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(random.Random(f"{name} {seed}").uniform(0, LATEST_S))
    assert servers.state(run)["type"] == "RUNNING"
    servers.kill(name, DOWN_S)
    assert servers.again() == name
    story = Story(servers, data_dir, (run, run), [])
    state = resumed(story, run) if name in ("prefect", "worker") else servers.ended(run)
    assert state["type"] == "COMPLETED", f"{state}\n{(servers.folder / 'worker.log').read_text()}"
    assert list((data_dir / "store" / "making").iterdir()) == []
    versions = story.pareflow("list", "versions", "--json")
    (version,) = [version for version in versions if version["name"] == model]
    assert sorted(version["aliases"]) == ["challenger", "champion"]
    found = story.python(READ, model)
    assert len(found["keys"]) == len(set(found["keys"])) > 2
    assert found["statuses"] == ["FINISHED"]
    assert found["points"] == found["distinct"] > 0
    assert found["verdicts"] == ["promote"]


def test_two_schedulers_schedule_a_night_once(servers: SetUp, tmp_path: Path) -> None:
    """Another server of Prefect's on the same database; both find the nights missing, again and again."""
    database = (servers.folder / "postgresql.url").read_text().removeprefix("postgresql://")
    port = free_port()
    settings = {
        "PREFECT_HOME": str(tmp_path),
        "PREFECT_SERVER_API_AUTH_STRING": servers.client["PREFECT_API_AUTH_STRING"],
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{database}/prefect",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "1",
        "PREFECT_SERVER_SERVICES_SCHEDULER_RECENT_DEPLOYMENTS_LOOP_SECONDS": "1",
    }
    command = [str(SERVERS), "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with process(command, tmp_path / "second.log", tmp_path, **settings):
        answers(f"http://127.0.0.1:{port}/api/health")
        for _ in range(5):
            for run in nights(servers):
                servers.api(f"flow_runs/{run['id']}", method="DELETE")
            deadline = time.monotonic() + PATIENCE_SECONDS
            while len(found := nights(servers)) < 3:
                assert time.monotonic() < deadline
                time.sleep(0.5)
            starts = [run["expected_start_time"] for run in found]
            assert len(starts) == len(set(starts))


def nights(servers: SetUp) -> list[dict[str, Any]]:
    """The runs of the deployment `nightly` that are scheduled."""
    asked = {
        "deployments": {"name": {"any_": ["nightly"]}},
        "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}},
    }
    found: list[dict[str, Any]] = servers.api("flow_runs/filter", asked)
    return found


def resumed(story: Story, run: str) -> dict[str, Any]:
    """The run's state once it has ended well. Its worker, which also ends where Prefect's server is away,
    takes it along: `reconcile` marks it and starts it again, once it was silent for the window."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (state := story.servers.state(run))["type"] != "COMPLETED":
        assert time.monotonic() < deadline, (state, story.reconcile(WINDOW_S))
        story.reconcile(WINDOW_S)
        time.sleep(5)
    return state
