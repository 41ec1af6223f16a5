"""Runs of Prefect deployments over its API: started once per key, followed, marked when dead, resumed.

And events that must arrive.
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)

from pareflow.catalog import unknown
from pareflow.errors import InputError, TrackingError, TransientError
from tasks.registries import without_secrets

FLOWS = ("pipeline", "retraining", "promotion", "deployment", "monitoring", "reconcile")
"""Whose runs are ours to judge, where they or their deployments bear the `TAG`: others may use the server,
and these names."""
TAG = "pareflow"
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
HOLDING = ("PENDING", "RUNNING", "CANCELLING", "PAUSED")
"""States in which a run may hold a slot of its deployment."""
PATIENCE_S = 300.0
"""For a server that restarts while a run is followed: the run goes on without it."""
REFUSED = (400, 413, 422)
"""What a server answers to an event that it will not take later either."""
TELL_S = 5.0
"""Who tells of an event waits no longer for the server, and tells it again later."""
_PAGE = 200


@dataclass(frozen=True)
class Started:
    """A flow run of a deployment; `new` is false where its key had one already, made `at_ms` since 1970."""

    run_id: str
    new: bool
    at_ms: float


def server_named() -> bool:
    """Whether there is a server to ask."""
    return bool(PREFECT_API_URL.value())


@contextmanager
def _server(retries: int = 2) -> Iterator[SyncPrefectClient]:
    """A client of the server that PREFECT_API_URL names. Raises: TrackingError, TransientError."""
    url = PREFECT_API_URL.value()
    if not url:
        raise TrackingError(
            "a Prefect server must be there to start deployments on",
            "PREFECT_API_URL is not set",
            "Set it to http://HOST:4200/api",
        )
    shown = without_secrets(url)
    try:
        # Whoever asks is asked again; a webhook's sender waits no longer than 30 s.
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: retries}),
            get_client(sync_client=True) as client,
        ):
            yield client
    except httpx.HTTPStatusError as error:
        if error.response.status_code >= 500 or error.response.status_code == 429:
            raise _away(shown, f"it answered {error.response.status_code}") from error
        raise TrackingError(
            f"Prefect at {shown} must accept what is asked",
            f"it answered {error.response.status_code}: {error.response.text[:300]}",
            "Mend the server or its authentication (PREFECT_API_AUTH_STRING)",
        ) from error
    except (httpx.HTTPError, OSError) as error:
        raise _away(shown, f"it is not ({type(error).__name__})") from error


def _away(url: str, found: str) -> TransientError:
    return TransientError(f"the Prefect server at {url} must be reachable", found, "Start it, then try again")


def start(
    deployment: str, parameters: Mapping[str, Any], key: str | None = None, tags: Sequence[str] = ()
) -> Started:
    """A run of `flow/name`, or with a key the one that was started with it.

    Raises: InputError for an unknown deployment and for parameters against its schema; TransientError.
    """
    with _server() as server:
        found = _deployment(server, deployment)
        _must_be_known(deployment, parameters, found["parameter_openapi_schema"])
        body = {"parameters": dict(parameters), "tags": list(tags), "idempotency_key": key}
        try:
            answer = _post(server, f"/deployments/{found['id']}/create_flow_run", body)
        except httpx.HTTPStatusError as error:
            if error.response.status_code not in (400, 409, 422):
                raise
            raise InputError(
                f"the parameters must be those of the deployment {deployment}",
                error.response.text[:500],
                "Its schema says what it takes",
            ) from error
        run = answer.json()
        at_ms = 1000 * datetime.fromisoformat(run["created"]).timestamp()
        return Started(run["id"], answer.status_code == httpx.codes.CREATED, at_ms)


def follow(run_id: str, every_s: float = 1.0) -> dict[str, Any]:
    """The last state of a run, once it has ended. Waits for as long as that takes.

    Raises: TransientError where the server is away for longer than `PATIENCE_S`.
    """
    answered = time.monotonic()
    while True:
        try:
            with _server() as server:
                state: dict[str, Any] = _get(server, f"/flow_runs/{run_id}").json()["state"]
        except TransientError:
            if time.monotonic() - answered > PATIENCE_S:
                raise
        else:
            answered = time.monotonic()
            if state["type"] in ENDED:
                return state
        time.sleep(every_s)


def claim(flow: object, flow_run: FlowRun, state: object) -> None:
    """A hook of our flows as they begin: a run bears our tag, also where no deployment of ours started it."""
    with _server() as server:
        _ask(server, "PATCH", f"/flow_runs/{flow_run.id}", json={"tags": sorted({*flow_run.tags, TAG})})


def in_state(*types: str, flows: Sequence[str] = FLOWS) -> list[dict[str, Any]]:
    """Our runs of these flows in one of these states; also those that began before their deployment had our
    tag."""
    chosen = {
        "flows": {"name": {"any_": list(flows)}},
        "flow_runs": {"state": {"type": {"any_": list(types)}}},
        "sort": "EXPECTED_START_TIME_DESC",
        "limit": _PAGE,
    }
    with _server() as server:
        ours = {one["id"] for one in _ours(server)}
        found = list[dict[str, Any]]()
        while page := _post(server, "/flow_runs/filter", {**chosen, "offset": len(found)}).json():
            found += page
            if len(page) < _PAGE:
                break
    return [run for run in found if TAG in run["tags"] or run["deployment_id"] in ours]


def states(run_id: str) -> list[dict[str, Any]]:
    """Every state that a run was in, the first one first."""
    with _server() as server:
        found: list[dict[str, Any]] = _ask(
            server, "GET", "/flow_run_states/", params={"flow_run_id": run_id}
        ).json()
    return found


def heartbeats(run_id: str) -> list[dict[str, Any]]:
    """A run's last two heartbeats, newest first; fewer where it did not beat so often."""
    chosen = {
        "event": {"name": ["prefect.flow-run.heartbeat"]},
        "resource": {"id": [f"prefect.flow-run.{run_id}"]},
        "order": "DESC",
    }
    with _server() as server:
        page = _post(server, "/events/filter", {"filter": chosen, "limit": 2}).json()
    return list(page["events"])


def tell(event: Mapping[str, Any]) -> None:
    """Have the server take this event, as of now: automations pass over what comes late. One that is told
    again sets off nothing more.

    Raises: TransientError, TrackingError; InputError where the server never takes this one.
    """
    told = {**event, "occurred": datetime.now(UTC).isoformat()}
    with temporary_settings({PREFECT_API_REQUEST_TIMEOUT: TELL_S}), _server(retries=0) as server:
        try:
            _ask(server, "POST", "/events", json=[told])
        except httpx.HTTPStatusError as error:
            if error.response.status_code not in REFUSED:
                raise
            raise InputError(
                "an event must be one that Prefect takes",
                f"it answered {error.response.status_code}: {error.response.text[:300]}",
                "The registry has recorded what happened",
            ) from error


def crash(run_id: str, message: str) -> None:
    """Mark a run whose owner died; one that has ended stays as it is. Its slot is given back."""
    _set_state(run_id, {"type": "CRASHED", "name": "Crashed", "message": message}, force=False)


def resume(run_id: str, message: str) -> None:
    """Let a worker take up a run of a deployment again."""
    _set_state(run_id, {"type": "SCHEDULED", "name": "AwaitingRetry", "message": message}, force=True)


def slots() -> list[dict[str, Any]]:
    """The concurrency slots of our deployments: `id, deployment, taken, holders`."""
    holding = Counter(run["deployment_id"] for run in in_state(*HOLDING))
    with _server() as server:
        found = _ours(server)
    limits = [(one, limit) for one in found if (limit := one.get("global_concurrency_limit"))]
    return [
        {
            "id": limit["id"],
            "deployment": one["name"],
            "taken": limit["active_slots"],
            "holders": holding[one["id"]],
        }
        for one, limit in limits
    ]


def without_worker() -> dict[str, int]:
    """The pools of our deployments that no worker is online for; how many deployments wait there."""
    online = {"workers": {"status": {"any_": ["ONLINE"]}}, "limit": 1}
    with _server() as server:
        pools = Counter(one["work_pool_name"] for one in _ours(server) if one["work_pool_name"])
        return {
            pool: count
            for pool, count in pools.items()
            if not _post(server, f"/work_pools/{pool}/workers/filter", online).json()
        }


def free_slots(limit_id: str, left: int) -> None:
    """Say how many slots of a limit are taken."""
    with _server() as server:
        _ask(server, "PATCH", f"/v2/concurrency_limits/{limit_id}", json={"active_slots": left})


def _set_state(run_id: str, state: Mapping[str, str], force: bool) -> None:
    with _server() as server:
        _post(server, f"/flow_runs/{run_id}/set_state", {"state": dict(state), "force": force})


def _ours(server: SyncPrefectClient) -> list[dict[str, Any]]:
    """Our deployments."""
    ours = {"flows": {"name": {"any_": list(FLOWS)}}, "deployments": {"tags": {"all_": [TAG]}}}
    found: list[dict[str, Any]] = _post(server, "/deployments/filter", {**ours, "limit": _PAGE}).json()
    return found


def _deployment(server: SyncPrefectClient, name: str) -> dict[str, Any]:
    flow, _, own = name.partition("/")
    try:
        found: dict[str, Any] = _get(server, f"/deployments/name/{flow}/{own}").json()
    except ObjectNotFound as error:
        raise _no_deployment(name) from error
    except httpx.HTTPStatusError as error:
        if error.response.status_code != httpx.codes.NOT_FOUND:
            raise
        raise _no_deployment(name) from error
    return found


def _must_be_known(deployment: str, parameters: Mapping[str, Any], taken: Mapping[str, Any]) -> None:
    """Prefect checks the types of parameters, and lets a run with an unknown one start and fail."""
    known = taken.get("properties", {})
    if problems := [unknown(name, known, "parameter") for name in parameters if name not in known]:
        raise InputError(
            f"the parameters must be those of the deployment {deployment}",
            "; ".join(problems),
            "Mend them",
        )


def _no_deployment(name: str) -> InputError:
    return InputError(
        "a deployment must be one of the Prefect server, as FLOW/NAME",
        f"it has no {name}",
        "See `prefect deployment ls`; `prefect deploy --all` makes those of prefect.yaml",
    )


def _get(server: SyncPrefectClient, path: str) -> httpx.Response:
    return _ask(server, "GET", path)


def _post(server: SyncPrefectClient, path: str, body: Mapping[str, Any]) -> httpx.Response:
    return _ask(server, "POST", path, json=dict(body))


def _ask(server: SyncPrefectClient, method: Any, path: Any, **options: Any) -> httpx.Response:
    """One request, with the client's authentication; Prefect types each path of its own as a literal."""
    return server.request(method, path, **options).raise_for_status()
