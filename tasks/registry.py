"""MLflow's registry, as who follows it asks: a version as it is now, the newest, the aliases, the webhook."""

from collections.abc import Iterator
from typing import Any

from mlflow import MlflowClient
from mlflow.entities.webhook import Webhook
from mlflow.exceptions import MlflowException

from tasks.rules import Registered
from tasks.tracking import ABSENT, Tracker, all_pages

WEBHOOK = "pareflow"
EVENTS = ("model_version.created", "model_version_alias.created", "model_version_tag.set")
"""After which a rule may name a version that it did not name before."""
_PAGE = 200


def registered(tracker: Tracker, name: str, number: str) -> Registered | None:
    """A version as it is in the registry now, or None: there is none."""
    with tracker.reached() as client:
        try:
            found = client.get_model_version(name, number)
        except MlflowException as error:
            if error.error_code in ABSENT:
                return None
            raise
    return Registered(
        found.name,
        str(found.version),
        found.status == "READY",
        int(found.creation_timestamp),
        tuple(found.aliases),
        dict(found.tags),
    )


def newest(tracker: Tracker, since_ms: int) -> Iterator[tuple[str, str]]:
    """Name and number of each version that was made since then, of whatever model, newest first."""
    token = None
    while True:
        with tracker.reached() as client:
            order = ["creation_timestamp DESC"]
            page = client.search_model_versions(order_by=order, max_results=_PAGE, page_token=token)
        for version in page:
            if int(version.creation_timestamp) < since_ms:
                return
            yield version.name, str(version.version)
        if not (token := page.token):
            return


def aliased(tracker: Tracker) -> Iterator[tuple[str, str, str]]:
    """Model, alias and number of the version, of every alias in the registry."""
    with tracker.reached() as client:
        models = all_pages(client.search_registered_models, _PAGE)
    for model in models:
        yield from ((model.name, alias, str(number)) for alias, number in model.aliases.items())


def call(tracker: Tracker, url: str, secret: str) -> dict[str, Any]:
    """The registry's webhook to this URL, made, or given this secret and our events; whether it answers.

    Raises: TrackingError where MLflow refuses the URL: it calls neither http nor private addresses by itself.
    """
    events: list[Any] = list(EVENTS)
    with tracker.reached() as client:
        found = next((hook for hook in client.list_webhooks(1000) if hook.url == url), None)
        if found is None:
            hook = client.create_webhook(WEBHOOK, url, events, secret=secret)
        else:
            hook = client.update_webhook(found.webhook_id, events=events, secret=secret, status="ACTIVE")
        problem = _unheard(client, hook)
    return {
        "id": hook.webhook_id,
        "url": url,
        "events": list(EVENTS),
        "answers": problem is None,
        "problem": problem,
    }


def unheard(tracker: Tracker) -> list[tuple[str, str]]:
    """The URLs of our webhooks where nobody answers MLflow, and what it meets there."""
    with tracker.reached() as client:
        ours = [hook for hook in client.list_webhooks(1000) if hook.name == WEBHOOK]
        tried = [(hook.url, _unheard(client, hook)) for hook in ours]
    return [(url, problem) for url, problem in tried if problem is not None]


def _unheard(client: MlflowClient, hook: Webhook) -> str | None:
    """What MLflow meets when it calls a webhook now; None where it is answered."""
    tested = client.test_webhook(hook.webhook_id)
    if tested.success:
        return None
    return (tested.error_message or f"status {tested.response_status}: {tested.response_body}")[:300]
