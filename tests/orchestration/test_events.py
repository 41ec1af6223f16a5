"""What the Prefect server is told, and what of prefect.yaml and infra/automations.yaml follows it."""

import json
import sqlite3
import time
import uuid
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.events.schemas.automations import AutomationCore
from prefect.server.events.schemas.automations import EventTrigger
from prefect.server.events.schemas.events import ReceivedEvent

from pareflow.monitoring.state import Breach
from tasks import flow_runs
from tasks.events import emit
from tasks.monitoring import act
from tasks.tracking import Tracker
from tests.orchestration.conftest import CHECKOUT, Finished, trigger_of

NOT_ASKED = Tracker("sqlite://", None, Path("nowhere"))


def test_the_server_has_recorded_that_a_version_was_registered(finished: Finished) -> None:
    """Read from the database of the server, which has ended with its last user or soon will."""
    registered = finished.document["registered"]
    ((resource, payload),) = _recorded(finished.data_dir / "prefect" / "prefect.db")
    assert json.loads(resource)["pareflow.model.role"] == "optimized"
    told = json.loads(payload)
    assert (told["name"], told["version"]) == (registered["name"], registered["version"])
    assert told["config"] == str(finished.config)


def _recorded(path: Path) -> list[tuple[str, str]]:
    """The event's rows: a server writes down within seconds what it was told."""
    query = "SELECT resource, payload FROM events WHERE event = 'pareflow.model.registered'"
    deadline = time.monotonic() + 30
    with closing(sqlite3.connect(path)) as database:
        while not (rows := database.execute(query).fetchall()) and time.monotonic() < deadline:
            time.sleep(0.2)
    return rows


@pytest.mark.usefixtures("sent")
def test_a_breach_starts_a_retraining_where_its_rule_says_so() -> None:
    """The one whose pipeline the event names."""
    breaches = [Breach("errors", "3", 0.5, 0.01, "errors: half of them", then) for then in ((), ("retrain",))]
    told = [received(act(NOT_ASKED, "digits", one, "digits.yaml")["event"]) for one in breaches]
    assert [trigger_of("on-breach").covers(event) for event in told] == [False, True]
    assert told[-1].payload["config"] == "digits.yaml"


def test_who_is_to_be_told_is_told_of_breaches_silent_monitors_and_runs_that_end_badly(
    sent: list[ReceivedEvent],
) -> None:
    models, runs = automations()
    half = Breach("errors", "3", 0.5, 0.01, "errors: half of them", ())
    sent.append(received(act(NOT_ASKED, "digits", half, None)["event"]))
    emit("monitoring.silent", "digits", "3", {"reason": "no row"})
    emit("model.promoted", "digits", "3")
    sent += [
        ended(flow, state, flow_runs.TAG)
        for flow in (*flow_runs.FLOWS, "another")
        for state in ("Crashed", "Completed")
    ]
    sent.append(ended("pipeline", "Crashed", "theirs"))
    told = [event for event in sent if models.covers(event) and models.expects(event.event)]
    assert [event.event for event in told] == ["pareflow.monitoring.breach", "pareflow.monitoring.silent"]
    assert all({"name", "version", "reason"} <= event.payload.keys() for event in told)
    told = [event for event in sent if runs.covers(event) and runs.expects(event.event)]
    assert [event.related[0]["prefect.resource.name"] for event in told] == list(flow_runs.FLOWS)


def received(event: Mapping[str, Any]) -> ReceivedEvent:
    """An event as the server has it."""
    return ReceivedEvent.model_validate({**event, "occurred": datetime.now(UTC)})


def automations() -> tuple[EventTrigger, EventTrigger]:
    """The triggers of infra/automations.yaml, whose whole Prefect takes."""
    text = (CHECKOUT / "infra" / "automations.yaml").read_text().replace("BLOCK_ID", str(uuid.uuid4()))
    models, runs = yaml.safe_load(text)["automations"]
    for one in (models, runs):
        AutomationCore.model_validate(one)
    return EventTrigger.model_validate(models["trigger"]), EventTrigger.model_validate(runs["trigger"])


def ended(flow: str, state: str, tag: str) -> ReceivedEvent:
    """What Prefect's server itself tells of a flow run."""
    related = {"prefect.resource.id": f"prefect.flow.{uuid.uuid4()}", "prefect.resource.role": "flow"}
    return ReceivedEvent.model_validate(
        {
            "id": uuid.uuid4(),
            "occurred": datetime.now(UTC),
            "event": f"prefect.flow-run.{state}",
            "resource": {"prefect.resource.id": f"prefect.flow-run.{uuid.uuid4()}"},
            "related": [
                {**related, "prefect.resource.name": flow},
                {"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"},
            ],
        }
    )
