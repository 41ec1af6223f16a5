"""What the commands around triggers do: listen, the registry's webhook, runs of deployments."""

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pareflow import spec
from pareflow.errors import InputError, PareflowError, TransientError

SECRET = "PAREFLOW_WEBHOOK_SECRET"
"""The variable of the secret that MLflow signs with; several, separated by spaces, while it is changed."""
RULES = Path("mlflow/triggers.yaml")


def listen(rules_file: Path, data_dir: Path, host: str, port: int, listening: Callable[[str], None]) -> None:
    """Receive the registry's webhooks until SIGTERM or SIGINT. `listening` is told the URL.

    Raises: InputError without a secret, or with rules that cannot be followed; MissingExtraError.
    """
    from pareflow.serving.server import bound, check_extra

    check_extra()
    secrets = _secrets()
    from tasks import rules
    from tasks.deliveries import Memory
    from tasks.listener import PATH, Listener
    from tasks.tracking import Tracker
    from tasks.triggering import handle

    found = rules.read(rules_file)
    found.check()
    tracker = Tracker.open(data_dir)
    application = Listener(
        secrets, Memory(data_dir / "deliveries.db"), lambda name, number: handle(tracker, found, name, number)
    ).asgi()
    import uvicorn

    with bound(host, port) as socket:
        socket.listen()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)  # uvicorn's own come first, and hand on once it has ended
        listening(f"http://{host}:{socket.getsockname()[1]}{PATH}")
        config = uvicorn.Config(application, log_config=None, access_log=False, server_header=False)
        uvicorn.Server(config).run([socket])


def webhook(url: str, data_dir: Path) -> dict[str, Any]:
    """The registry told to call this URL, with the secret of the environment; whether it answers."""
    from tasks import registry
    from tasks.tracking import Tracker

    (secret, *_) = _secrets()
    return registry.call(Tracker.open(data_dir), url, secret)


def optimize_deployed(
    config: Path, target: Path | None, deployment: str, data_dir: Path, *, wait: bool, remeasure: bool
) -> dict[str, Any]:
    """A run of a deployment, started, and with `wait` followed to its end, as a document.

    Its `outcome` is the document of the run as MLflow holds it. Raises: SpecError before anything is started.
    """
    from tasks import flow_runs, owners
    from tasks.tracking import Tracker

    spec.read(config, target)
    given = {"remeasure": remeasure or None, "target": None if target is None else str(target)}
    parameters = {"config": str(config), **{name: value for name, value in given.items() if value}}
    full = deployment if "/" in deployment else f"pipeline/{deployment}"
    started = flow_runs.start(full, parameters)
    document: dict[str, Any] = {"deployment": full, "run_id": started.run_id, "state": None, "outcome": None}
    if not wait:
        return document
    state = flow_runs.follow(started.run_id)
    if state["type"] != "COMPLETED":
        raise _ended_badly(started.run_id, state)
    outcome = owners.outcome_of(Tracker.open(data_dir), started.run_id)
    return {**document, "state": state["type"], "outcome": outcome}


def named(deployment: str | None, here: Sequence[str]) -> str:
    """The deployment. Raises: InputError where there is none, or options that it cannot follow."""
    if deployment is None:
        raise InputError("`--wait` is for the run of a deployment", "none is named", "Add --deployment NAME")
    if here:
        raise InputError(
            "a deployment's run is as its worker is set up",
            f"{', '.join(here)} was given, too",
            "Leave one of them out; PAREFLOW_STORE is set where the worker starts",
        )
    return deployment


def _ended_badly(run_id: str, state: Mapping[str, Any]) -> PareflowError:
    kind = TransientError if state["type"] == "CRASHED" else PareflowError
    return kind(
        f"the run {run_id} must end well",
        f"it is {state['name']}: {state['message']}",
        f"See `prefect flow-run logs {run_id}`; what is finished is kept",
    )


def _secrets() -> list[str]:
    found = os.environ.get(SECRET, "").split()
    if not found:
        raise InputError(
            "deliveries must be signed: MLflow and pareflow share a secret",
            f"{SECRET} is not set",
            "Set it, for instance to what `openssl rand -hex 32` prints; it is read from nowhere else",
        )
    return found


def started(document: Mapping[str, Any], console: Console) -> None:
    """A deployment's run, as a line."""
    state = document["state"] or "scheduled"
    line = f"{document['deployment']}: run {document['run_id']} {state}"
    console.print(line, soft_wrap=True, highlight=False)


def hooked(document: Mapping[str, Any], console: Console) -> None:
    """The registry's webhook, as a line."""
    answers = "answers" if document["answers"] else f"does not answer: {document['problem']}"
    line = f"webhook {document['id']} calls {document['url']}, which {answers}"
    console.print(line, soft_wrap=True, highlight=False, markup=False)
