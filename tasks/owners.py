"""The owners of runs, as tags of their records in MLflow; `tasks/ownership.py` says what they mean."""

import json
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run, RunTag

from tasks.ownership import DEAD, FLOW_RUN, OWNED, OWNER, Owned, Owner, beats
from tasks.tracking import Tracker, all_pages

PAGE = 1000
GIVEN_UP = ("KILLED", "FAILED")


def take(tracker: Tracker, run: str, owner: Owner) -> None:
    """Make it an owner of a run, which goes on if it had been given up."""
    tags = {OWNED: "yes", OWNER + owner.name: "0"}
    if owner.flow_run is not None:
        tags[FLOW_RUN + owner.flow_run] = str(time.time_ns())
    with tracker.reached() as client, tracker.locked("mlflow"):
        client.log_batch(run, tags=[RunTag(name, value) for name, value in tags.items()])
        if client.get_run(run).info.status in GIVEN_UP:
            client.update_run(run, "RUNNING")


def beat(tracker: Tracker, run: str, owner: Owner, number: int) -> bool:
    """Whether the owner is still taken for alive; then it has just said so."""
    with tracker.reached() as client:
        if DEAD + owner.name in client.get_run(run).data.tags:
            return False
        tags = [RunTag(OWNER + owner.name, str(number)), RunTag(OWNED, "yes")]
        client.log_batch(run, tags=tags)
        return True


def leave(tracker: Tracker, run: str, owner: Owner) -> None:
    """Make it no owner any more. The last one leaves a run that is finished, or KILLED."""
    with tracker.reached() as client, tracker.locked("mlflow"):
        _without(client, run, owner)


def declare_dead(tracker: Tracker, run: str, owner: Owner) -> None:
    """Keep an owner that gave no sign of life from recording ever again; waits for no lock of its."""
    with tracker.reached() as client:
        client.set_tag(run, DEAD + owner.name, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        _without(client, run, owner)


def owned_runs(tracker: Tracker) -> list[Owned]:
    """Every run that has owners."""
    with tracker.reached() as client:
        found = _tagged(client, OWNED)
    return [Owned(run.info.run_id, run.info.run_name, beats(run.data.tags)) for run in found]


def outcome_of(tracker: Tracker, flow_run: str) -> dict[str, Any] | None:
    """The document of what a flow run of Prefect's did, or None: it is not recorded here.

    Of the runs that it worked on, on one machine and then on another, the one that was taken up last.
    """
    tag = FLOW_RUN + flow_run
    with tracker.reached() as client, tempfile.TemporaryDirectory() as folder:
        found = _tagged(client, tag)
        if not found:
            return None
        last = max(found, key=lambda run: str(run.data.tags[tag]))
        path = client.download_artifacts(last.info.run_id, "run.json", folder)
        document: dict[str, Any] = json.loads(Path(path).read_text())
        return document


def _without(client: MlflowClient, run: str, owner: Owner) -> None:
    """What is left is looked at when the owner is gone: another may have taken it up meanwhile."""
    if OWNER + owner.name in client.get_run(run).data.tags:
        client.delete_tag(run, OWNER + owner.name)
    found = client.get_run(run)
    if not beats(found.data.tags):
        if OWNED in found.data.tags:
            client.delete_tag(run, OWNED)
        if found.info.status == "RUNNING":
            client.set_terminated(run, "KILLED")


def _tagged(client: MlflowClient, tag: str) -> Sequence[Run]:
    """The runs of all experiments with this tag."""
    experiments = [one.experiment_id for one in all_pages(client.search_experiments, PAGE)]
    asked = partial(client.search_runs, experiments, f"tags.`{tag}` LIKE '%'")
    return all_pages(asked, PAGE) if experiments else []
