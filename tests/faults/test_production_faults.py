"""Servers that die amid a run, on the real set-up: the run goes on by itself, and all three records agree."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.production import PATIENCE_SECONDS, SetUp, Story

pytestmark = [pytest.mark.slow, pytest.mark.production, pytest.mark.timeout(1500)]
DOWN_S = 30
"""How long what was killed stays away."""
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


@pytest.mark.parametrize("name", ["postgresql", "s3", "mlflow", "prefect"])
def test_a_run_goes_on_when_a_server_was_killed_and_away(
    name: str, servers: SetUp, digits: Callable[..., Path], tmp_path: Path
) -> None:
    """Killed when the first variant is made, so that results are to be recorded while it is away."""
    data_dir, model = tmp_path / "data", f"digits-without-{name}"
    run = servers.begin(digits(["static_int8", "onnxruntime"], model), data_dir)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(list((data_dir / "store" / "entries").glob("*/manifest.json"))) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    servers.kill(name, DOWN_S)
    assert servers.again() == name
    story = Story(servers, data_dir, (run, run), [])
    state = resumed(story, run) if name == "prefect" else servers.ended(run)
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


def resumed(story: Story, run: str) -> dict[str, Any]:
    """The run's state once it has ended well. Prefect's worker ends where its server is away, and its runs
    with it: `reconcile` marks them and starts them again, once they were silent for its window."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (state := story.servers.state(run))["type"] != "COMPLETED":
        assert time.monotonic() < deadline, (state, story.reconcile(WINDOW_S))
        story.reconcile(WINDOW_S)
        time.sleep(5)
    return state
