"""From a new version in MLflow's registry to its running flow: webhook, listener, Prefect, a process worker.

All are real processes on loopback. A round ends when the flow is RUNNING, which is when its process has
imported it; the pipeline that is named has no data, so that the run ends there.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from claims import Claim, main

sys.path.insert(0, str(Path(__file__).parents[1]))  # for `tests/servers.py`, which no package holds

from flows.environment import set_environment

set_environment()  # before prefect and mlflow are imported

from mlflow import MlflowClient  # noqa: E402

from flows.local_server import local_server  # noqa: E402
from flows.triggers import SECRET, webhook  # noqa: E402
from pareflow.errors import EnvironmentUnfitError  # noqa: E402
from tasks import flow_runs  # noqa: E402
from tasks.listener import PATH  # noqa: E402
from tests import servers  # noqa: E402

PIPELINE = """
name: nothing
workload: workload.py
sla: {size: {max_mib: 1}}
"""
MODEL = "original"
ROUNDS, QUICK_ROUNDS = 20, 5
PATIENCE_S = 120.0


def measure(quick: bool) -> Sequence[Claim]:
    """One version after another; a worker that looks for runs every second, and one as Prefect has it."""
    with tempfile.TemporaryDirectory() as folder, triggers(Path(folder)) as url:
        rounds = QUICK_ROUNDS if quick else ROUNDS
        found = [claim("worker looks every 1 s", Path(folder), url, rounds, PREFECT_WORKER_QUERY_SECONDS="1")]
        if not quick:
            default = {"PREFECT_WORKER_QUERY_SECONDS": "10"}
            found.append(claim("worker looks every 10 s", Path(folder), url, rounds, **default))
    return found


@contextmanager
def triggers(folder: Path) -> Iterator[str]:
    """The servers and the listener, with MLflow's webhook made; MLflow's URL."""
    (folder / "workload.py").write_text("raise SystemExit('a benchmark of triggers has no data')\n")
    (folder / "pipeline.yaml").write_text(PIPELINE)
    parameters = {"config": str(folder / "pipeline.yaml"), "data_dir": str(folder / "data")}
    (folder / "rules.yaml").write_text(json.dumps({"rules": [{"model": MODEL, "parameters": parameters}]}))
    os.environ[SECRET] = servers.SECRET
    port = servers.free_port()
    with (
        local_server(folder / "server", linger_seconds=1),
        servers.mlflow_server(folder, servers.free_port()) as url,
    ):
        os.environ["MLFLOW_TRACKING_URI"] = url
        servers.deploy()
        with servers.listener(folder / "rules.yaml", folder / "listener", port):
            made = webhook(f"http://127.0.0.1:{port}{PATH}", folder / "listener")
            if not made["answers"]:
                raise EnvironmentUnfitError("MLflow must reach the listener", made["problem"], "See its log")
            MlflowClient(url).create_registered_model(MODEL)
            yield url


def claim(name: str, folder: Path, url: str, rounds: int, **worker: str) -> Claim:
    with servers.worker(folder, **worker):
        seconds = [one_round(MlflowClient(url)) for _ in range(rounds)]
    return Claim(
        f"from the registry to a running flow, {name}",
        10,
        max(seconds),
        "s",
        rounds,
        "at most",
        note=f"the slowest; median {statistics.median(seconds):.1f} s",
    )


def one_round(client: MlflowClient) -> float:
    """Seconds from the call that makes a version until its run is RUNNING."""
    run = client.create_run("0")
    source = f"{run.info.artifact_uri}/model"
    began = time.time()
    version = client.create_model_version(MODEL, source, run.info.run_id).version
    started = _run_of(f"models:/{MODEL}/{version}")
    flow_runs.follow(started["id"], every_s=0.5)  # the next one has the slot
    return datetime.fromisoformat(started["start_time"]).timestamp() - began


def _run_of(tag: str) -> dict[str, Any]:
    """The flow run with a tag, once it has begun."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for run in flow_runs.in_state("RUNNING", *flow_runs.ENDED):
            if tag in run["tags"] and run["start_time"]:
                return run
        time.sleep(0.2)
    raise EnvironmentUnfitError(
        "a version must start its flow", f"{tag} had none", "See the logs of its servers"
    )


if __name__ == "__main__":
    main("triggers", measure)
