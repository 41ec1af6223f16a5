"""The audit record: who moved what of a registered model, from where to where, why, and on which verdict.

Each move is an MLflow run of its own in the experiment `pareflow-audit`: writers at the same time cannot lose
each other's record, as they would in one artifact or under one tag, and a model with years of moves is read
no slower. The run begins before the move and ends after it, so that nothing moves without a record, and one
that was killed in between is seen as unfinished. What is done is told to Prefect, too
(`pareflow.model.ACTION`).
"""

import getpass
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pareflow.errors import PareflowError
from tasks.registries import without_secrets
from tasks.tracking import Tracker

EXPERIMENT = "pareflow-audit"
Action = Literal[
    "challenged", "promoted", "rejected", "awaiting_approval", "approved", "declined", "expired", "copied",
    "rolled_back",
]  # fmt: skip
"""What happened. Its own name ends the event's: `pareflow.model.promoted`."""
MOVES: tuple[Action, ...] = ("promoted", "rolled_back")
"""What changes who is champion."""
_TAG = "pareflow.audit."
_LONGEST = 4000
_STATES = {"FINISHED": "done", "FAILED": "failed", "KILLED": "failed"}


@dataclass(frozen=True)
class Move:
    """One move of a version of a model. What does not apply is None.

    `before` and `after` are where the alias (or the copy) was and is; `environment` is the fingerprint of the
    machine that the verdict belongs to.
    """

    model: str
    action: Action
    version: str
    by: str
    reason: str
    before: str | None = None
    after: str | None = None
    verdict: str | None = None
    environment: str | None = None


@contextmanager
def recorded(tracker: Tracker, move: Move, **labels: str) -> Iterator[None]:
    """Write the record, make the move in the body, and say how that ended; then tell Prefect, with `labels`.

    Raises: TransientError, TrackingError before the body where MLflow takes no record: then nothing moves.
    """
    record = _begun(tracker, move)
    try:
        yield
    except BaseException:
        # What went wrong is the news, not that MLflow cannot be told of it: then the record stays unfinished.
        with suppress(PareflowError), tracker.reached() as client:
            client.set_terminated(record, "FAILED")
        raise
    with tracker.reached() as client:
        client.set_terminated(record, "FINISHED")
    _tell(move, labels)


def note(tracker: Tracker, move: Move) -> None:
    """The record of what moves nothing: a decision."""
    with recorded(tracker, move):
        pass


def history(tracker: Tracker, name: str) -> list[dict[str, Any]]:
    """Every move of a model, the first one first."""
    rows: list[dict[str, Any]] = []
    with tracker.reached() as client:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        token: str | None = None
        while experiment is not None:
            page = client.search_runs(
                [experiment.experiment_id],
                f"tags.`{_TAG}model` = '{name}'",
                order_by=["attributes.start_time ASC"],
                page_token=token,
            )
            rows += [_row(run) for run in page]
            token = page.token
            if not token:
                break
    return rows


def way_back(tracker: Tracker, name: str, champion: str, previous: str | None) -> tuple[str, str | None]:
    """From which version to which a rollback leads: from `champion` to `previous`.

    A rollback that was cut off is ended, wherever that was. Where a promotion was, and both aliases are one
    version, it leads to whom the champion had followed. Else there is no way: None.
    """
    last = _last_move(tracker, name)
    cut_off = last is not None and last["state"] != "done"
    if last and cut_off and last["action"] == "rolled_back" and champion in (last["before"], last["after"]):
        return last["before"], last["after"]
    if champion != previous:
        return champion, previous
    if last and cut_off and last["before"] == champion:
        moves = [row for row in history(tracker, name) if row["action"] in MOVES]
        followed = [row["before"] for row in moves if (row["state"], row["after"]) == ("done", champion)]
        return champion, followed[-1] if followed else None
    return champion, None


def _last_move(tracker: Tracker, name: str) -> dict[str, Any] | None:
    """The last one that was to change the champion; no more of the history is read, which may be long."""
    with tracker.reached() as client:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            return None
        found = [
            _row(run)
            for action in MOVES
            for run in client.search_runs(
                [experiment.experiment_id],
                f"tags.`{_TAG}model` = '{name}' AND tags.`{_TAG}action` = '{action}'",
                order_by=["attributes.start_time DESC"],
                max_results=1,
            )
        ]
    return max(found, key=lambda row: str(row["at"]), default=None)


def who() -> str:
    """The user of this process, and its machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def _begun(tracker: Tracker, move: Move) -> str:
    now = datetime.now(UTC)
    told = {key: value for key, value in asdict(move).items() if value is not None}
    told |= {"registry": without_secrets(tracker.registry_uri), "at": now.isoformat(timespec="milliseconds")}
    flow_run = _flow_run()
    if flow_run is not None:
        told["flow_run"] = flow_run
    with tracker.reached() as client:
        run = client.create_run(
            tracker.experiment(EXPERIMENT),
            start_time=int(now.timestamp() * 1000),
            tags={f"{_TAG}{key}": value[:_LONGEST] for key, value in told.items()},
            run_name=f"{move.action} {move.model} {move.version}",
        )
    return str(run.info.run_id)


def _row(run: Any) -> dict[str, Any]:
    tags = {key.removeprefix(_TAG): value for key, value in run.data.tags.items() if key.startswith(_TAG)}
    state = _STATES.get(run.info.status, "unfinished")
    keys = ("at", "action", "version", "before", "after", "by", "reason", "verdict", "environment")
    return {**{key: tags.get(key) for key in keys}, "state": state, "flow_run": tags.get("flow_run")}


def _flow_run() -> str | None:
    """The id of the Prefect run that this happens in; None outside of one."""
    if "prefect" not in sys.modules:
        return None
    from prefect.runtime import flow_run

    found: str | None = flow_run.id
    return found


def _tell(move: Move, labels: Mapping[str, str]) -> None:
    """Tell Prefect, where there is a server: a command that has none need not wait for its import."""
    if "prefect" not in sys.modules and not os.environ.get("PREFECT_API_URL"):
        return
    from tasks.events import emit

    emit(f"model.{move.action}", move.model, move.version, asdict(move), role="optimized", **labels)
