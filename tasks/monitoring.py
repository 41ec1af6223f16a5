"""What monitoring finds, recorded in MLflow and acted on: events, the way back, and a wish to train again.

A rollback lets `champion` and `previous` change places, so that a second one would bring back what the first
removed. So a version that broke a rule of that kind carries the tag `pareflow.breach` from before it is left,
and is never gone back to: each version is rolled back from once, and nothing can flap.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pareflow.errors import InputError, TrackingError, TransientError
from pareflow.monitoring.watch import Breach
from tasks.events import emit
from tasks.promotion import roll_back
from tasks.tracking import Tracker

log = logging.getLogger("pareflow.monitoring")

BREACH = "pareflow.breach"
MOST_PENDING = 10_000


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
        except (TransientError, TrackingError) as error:
            log.warning("%d rows wait for MLflow: %s", len(self.pending), error)

    def breach(self, document: Mapping[str, Any], step: int) -> None:
        """The record of a breach, beside the rows."""
        try:
            run = self.tracker.monitored(self.name, self.version)
            self.tracker.note(run, document, f"breaches/{step:08d}-{document['rule']}.json")
        except (TransientError, TrackingError) as error:
            log.warning("a breach is not recorded in MLflow: %s", error)


def act(tracker: Tracker, name: str, breach: Breach, config: str | None) -> dict[str, Any]:
    """Do what the rule says, and tell it: the breach with what was done; `again` where the registry is away.

    The event is `pareflow.monitoring.breach`; its label `pareflow.model.retrain` is `yes` where the rule asks
    for a retraining, which a deployment with a trigger on that follows, by the payload's `config`.
    """
    rolled_back_to, refused, again = None, None, False
    if "rollback" in breach.then:
        try:
            rolled_back_to, refused = _back(tracker, name, breach)
        except (InputError, TransientError, TrackingError) as error:
            refused, again = str(error), not isinstance(error, InputError)
    retrain = "yes" if "retrain" in breach.then else "no"
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
    told = emit("monitoring.breach", name, breach.version, document, rule=breach.rule, retrain=retrain)
    return {**document, "event": told}


def _back(tracker: Tracker, name: str, breach: Breach) -> tuple[str | None, str | None]:
    """The version that is champion after the rollback; or None, and why there was none.

    Raises: InputError, TransientError, TrackingError.
    """
    tracker.tag_version(name, breach.version, BREACH, f"{breach.reason} ({_now()})"[:5000])
    champion, previous = tracker.alias(name, "champion"), tracker.alias(name, "previous")
    if champion is None or str(champion.version) != breach.version:
        return None, f"the champion is not version {breach.version}"
    if previous is None:
        return None, "there is no previous version"
    if BREACH in previous.tags:
        return None, f"version {previous.version} broke a rule itself"
    moved = roll_back(tracker, name, by="monitoring", reason=breach.reason)
    return str(moved["version"]), None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
