"""What happened to a registered model, as an event of Prefect's, which automations and people follow."""

import uuid
from typing import Any

from prefect.events import emit_event

from tasks import flow_runs


def emit(event: str, name: str, version: str, payload: dict[str, Any] | None = None, **labels: str) -> bool:
    """Tell the Prefect server that `pareflow.<event>` happened to a version; false where there is no server.

    It is sent in the background: what happened does not wait for it, and it is lost where the server is away.
    """
    if not flow_runs.server_named():
        return False
    told = described(event, name, version, payload, **labels)
    return emit_event(told["event"], told["resource"], payload=told["payload"]) is not None


def described(
    event: str, name: str, version: str, payload: dict[str, Any] | None = None, **labels: str
) -> dict[str, Any]:
    """The event as `flow_runs.tell` takes it, with an id that tells it from another one like it.

    `labels` are what automations match by (`pareflow.model.<label>`); `payload` is what they hand on to
    the run that they start.
    """
    resource = {"prefect.resource.id": f"pareflow.model.{name}", "prefect.resource.name": name}
    labels = {**labels, "version": version}
    resource |= {f"pareflow.model.{label}": value for label, value in labels.items()}
    told = {"name": name, "version": version, **(payload or {})}
    return {"id": str(uuid.uuid4()), "event": f"pareflow.{event}", "resource": resource, "payload": told}
