"""What monitoring finds, recorded in MLflow and acted on: events, the way back, and a wish to train again.

A rollback lets `champion` and `previous` change places, so that a second one would bring back what the first
removed. So a version that broke a rule of that kind carries the tag `pareflow.breach` from before it is left:
it is never gone back to, and no run promotes it again by itself. Nothing can flap.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pareflow.errors import InputError, StoreError, TrackingError, TransientError
from pareflow.monitoring.state import Breach
from tasks import flow_runs
from tasks.events import described
from tasks.promotion import roll_back
from tasks.tracking import BREACH, Tracker

log = logging.getLogger("pareflow.monitoring")

MOST_PENDING = 10_000
AWAY = (TransientError, TrackingError, StoreError)
"""MLflow, or the disk of its locks and files, takes nothing for a while: a monitor goes on."""


@dataclass
class Record:
    """Rows of figures in one MLflow run per served version; kept here while MLflow is away."""

    tracker: Tracker
    name: str
    version: str
    pending: list[tuple[int, int, Mapping[str, float]]] = field(default_factory=list)

    def add(self, figures: Mapping[str, float], step: int) -> None:
        """One more row, written with those that wait. The oldest are dropped where MLflow stays away."""
        self.pending = [*self.pending, (int(time.time() * 1000), step, dict(figures))][-MOST_PENDING:]
        try:
            run = self.tracker.monitored(self.name, self.version)
            while self.pending:
                at_ms, position, row = self.pending[0]
                self.tracker.observed(run, row, at_ms, position)
                self.pending = self.pending[1:]
        except AWAY as error:
            log.warning("%d rows wait for MLflow: %s", len(self.pending), error)

    def breach(self, document: Mapping[str, Any], step: int) -> None:
        """The record of a breach, beside the rows."""
        self.note(document, f"breaches/{step:08d}-{document['rule']}.json")

    def note(self, document: Mapping[str, Any], path: str) -> None:
        """A document beside the rows, where MLflow is there."""
        try:
            run = self.tracker.monitored(self.name, self.version)
            self.tracker.note(run, document, path)
        except AWAY as error:
            log.warning("%s is not recorded in MLflow: %s", path, error)


def act(
    tracker: Tracker, name: str, breach: Breach, config: str | None, *, retried: bool = False
) -> dict[str, Any]:
    """Do what the rule says: the breach with what was done; `again` where the registry is away.

    Its `event` is what Prefect is to be told, or None. Where it is `retried`, that was told before: what is
    new is told, and no other retraining is asked for.

    The event is `pareflow.monitoring.breach`; its label `pareflow.model.retrain` is `yes` where the rule asks
    for a retraining, which a deployment with a trigger on that follows, by the payload's `config`.
    """
    rolled_back_to, refused, again = None, None, False
    if "rollback" in breach.then:
        try:
            rolled_back_to = _back(tracker, name, breach)
        except InputError as error:
            refused = error.found
        except AWAY as error:
            refused, again = str(error), True
    document = {
        "name": name,
        "at": _now(),
        **breach.to_json(),
        "then": list(breach.then),
        "rolled_back_to": rolled_back_to,
        "not_rolled_back": refused,
        "again": again,
        "config": config,
    }
    if (retried and again) or not flow_runs.server_named():
        return {**document, "event": None}
    retrain = "yes" if "retrain" in breach.then and not retried else "no"
    event = described("monitoring.breach", name, breach.version, document, rule=breach.rule, retrain=retrain)
    return {**document, "event": event}


def _back(tracker: Tracker, name: str, breach: Breach) -> str:
    """The version that is champion after the rollback.

    Raises: InputError, as `roll_back`; TransientError, TrackingError, StoreError.
    """
    tracker.tag_version(name, breach.version, BREACH, f"{breach.reason} ({_now()})"[:5000])
    moved = roll_back(tracker, name, leaving=breach.version, by="monitoring", reason=breach.reason)
    return str(moved["version"])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
