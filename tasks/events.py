"""What happened to a registered model, as an event of Prefect's, which automations and people follow."""

from typing import Any

from prefect.events import emit_event
from prefect.settings import PREFECT_API_URL


def emit(event: str, name: str, version: str, payload: dict[str, Any] | None = None, **labels: str) -> bool:
    """Tell the Prefect server that `pareflow.<event>` happened to a version; false where there is no server.

    `labels` are what automations match by (`pareflow.model.<label>`); `payload` is what they hand on to
    the run that they start. It is sent in the background: what happened does not wait for it.
    """
    if not PREFECT_API_URL.value():
        return False
    resource = {"prefect.resource.id": f"pareflow.model.{name}", "prefect.resource.name": name}
    resource |= {f"pareflow.model.{label}": value for label, value in labels.items()}
    told = {"name": name, "version": version, **(payload or {})}
    return (
        emit_event(f"pareflow.{event}", resource | {"pareflow.model.version": version}, payload=told)
        is not None
    )
