"""What a flow run is called when it has ended: Prefect shows the name, and automations match it."""

from collections.abc import Mapping
from typing import Any, cast

from prefect import State
from prefect.states import Completed

AWAITING = "AwaitingApproval"
NOTHING_NEW = "NothingNew"


def ended(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a flow returns for this outcome: its document, in a state of its own name where it has one.

    Whoever calls the flow gets the document either way, hence the type. A run that awaits approval has ended:
    a paused one would hold a worker's slot until somebody decides.
    """
    document = dict(document)
    registered, retrained = document.get("registered"), document.get("retraining")
    state: State[dict[str, Any]]
    if registered is not None and registered["awaiting"] is not None:
        state = Completed(name=AWAITING, message=registered["reason"], data=document)
    elif retrained is not None and retrained["new"] is None:
        state = Completed(name=NOTHING_NEW, message=retrained["why"], data=document)
    else:
        return document
    return cast("dict[str, Any]", state)
