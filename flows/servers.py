"""Whether the servers that the environment names can be used: reached, of our version, and by our clock."""

import json
import os
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

from pareflow.catalog import installed_version
from pareflow.errors import PareflowError
from tasks import locking, registries

ANSWER_S = 10.0
CLOCKS_APART_S = 5.0
"""Heartbeats (30 s), leases (30 s) and webhooks' signatures go by clocks: so much is told before it hurts."""


@dataclass(frozen=True)
class Server:
    """One server: how to ask for its version, and what a client of it must set."""

    name: str
    url: str
    version_path: str
    installed: str | None
    variables: str
    headers: Mapping[str, str] = field(repr=False)


def named() -> Iterator[Server]:
    """Those that the environment, or Prefect's profile, names; the embedded ones are none."""
    tracking = os.environ.get("MLFLOW_TRACKING_URI", "")
    if tracking.startswith(("http://", "https://")):
        url, headers = _without_password(tracking)
        user, password = (os.environ.get(f"MLFLOW_TRACKING_{part}") for part in ("USERNAME", "PASSWORD"))
        token = os.environ.get("MLFLOW_TRACKING_TOKEN")
        if user and password:
            headers = {"Authorization": _basic(f"{user}:{password}")}
        elif token:
            headers = {"Authorization": f"Bearer {token}"}
        variables = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        yield Server("MLflow", url, "/version", installed_version("mlflow"), variables, headers)
    if installed_version("prefect"):
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

        if PREFECT_API_URL.value():
            url, headers = _without_password(PREFECT_API_URL.value())
            if secret := PREFECT_API_AUTH_STRING.value():  # itself, though the setting hides it
                headers = {"Authorization": _basic(secret)}
            installed, variable = installed_version("prefect"), "PREFECT_API_AUTH_STRING"
            yield Server("Prefect", url, "/admin/version", installed, variable, headers)


def check(server: Server) -> dict[str, Any]:
    """Its version, how far its clock is from ours, and what to fix."""
    found: dict[str, Any] = {"name": server.name, "url": server.url, "version": None, "clock_s": None}
    request = urllib.request.Request(server.url + server.version_path, headers=dict(server.headers))
    asked = time.time()
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            said, date = answer.read().decode().strip(), answer.headers["Date"]
    except urllib.error.HTTPError as error:
        return {**found, "problems": [_refused(server, error.code)]}
    except (OSError, ValueError) as error:
        must, reason = f"{server.name} at {server.url} must be reachable", getattr(error, "reason", error)
        return {**found, "problems": [f"{must}, but it is not ({reason}). Start it"]}
    found["version"] = json.loads(said) if said.startswith('"') else said
    if date:
        # The header's seconds are whole: half of one is lost on average.
        found["clock_s"] = parsedate_to_datetime(date).timestamp() + 0.5 - (asked + time.time()) / 2
    return {**found, "problems": list(_differences(server, found))}


def set_up_problems(data_dir: Path) -> list[str]:
    """What keeps a set-up from working though its servers answer.

    The lock of promotions, MLflow's artifacts and webhooks, pools without workers, tags that cannot be read.
    """
    asked: list[Callable[[], list[str]]] = [_lock]
    names = {server.name for server in named()}
    if "MLflow" in names:
        asked.append(partial(_mlflow, data_dir))
    if "Prefect" in names:
        asked.append(_workers)
    asked.append(partial(tag_problems, data_dir))
    return [problem for ask in asked for problem in _told(ask)]


def promotions_meet_in() -> Literal["database", "data folder"]:
    """Where those who promote exclude each other: a data folder's lock does so on one host alone."""
    return "database" if os.environ.get(locking.VARIABLE) else "data folder"


def _told(ask: Callable[[], list[str]]) -> list[str]:
    """What it finds; what keeps it from looking is a problem itself."""
    try:
        return ask()
    except PareflowError as error:
        return [str(error)]


def _lock() -> list[str]:
    """Raises: TransientError, TrackingError where the database of locks is named, and lends none."""
    if os.environ.get(locking.VARIABLE):
        with tempfile.TemporaryDirectory() as folder, locking.exclusive(Path(folder), "doctor"):
            pass
    return []


def _mlflow(data_dir: Path) -> list[str]:
    """Webhooks that reach nobody. Raises: TransientError, TrackingError where no artifact is kept."""
    from tasks import registry
    from tasks.tracking import Tracker

    tracker = Tracker.open(data_dir)
    tracker.keeps_artifacts()
    return [
        f"MLflow must reach `pareflow listen` at {url}, but it does not ({problem}). "
        "Start it there, or remove the webhook"
        for url, problem in registry.unheard(tracker)
    ]


def _workers() -> list[str]:
    from tasks import flow_runs

    return [
        f"the pool {pool}, which {count} deployments use, must have a worker online, but it has none. "
        f"`prefect worker start --pool {pool}`"
        for pool, count in flow_runs.without_worker().items()
    ]


def tag_problems(data_dir: Path) -> list[str]:
    """What keeps the tags of registered versions from being read here; nothing where there is no registry.

    Raises: TransientError, TrackingError.
    """
    if not installed_version("mlflow") or not registries.known(data_dir):
        return []
    from tasks.tracking import FORMAT, FORMAT_TAG, Tracker

    rows = Tracker.open(data_dir).registered()
    newer = [f"{row['name']}/{row['version']}" for row in rows if int(row.get(FORMAT_TAG, FORMAT)) > FORMAT]
    if not newer:
        return []
    must = f"the tags of registered versions must be of format {FORMAT} or older"
    found = f"{len(newer)} versions have newer ones ({newer[0]})"
    return [f"{must}, but {found}. Install the pareflow that wrote them"]


def _differences(server: Server, found: Mapping[str, Any]) -> Iterator[str]:
    """Where the server's version or clock is not ours."""
    installed, version, apart = server.installed or "", str(found["version"]), found["clock_s"]
    if installed and installed.split(".")[:2] != version.split(".")[:2]:
        yield (
            f"{server.name}'s server and client must be of one version, but the server is {version[:40]} and "
            f"this is {installed}. Install what requirements.lock says on both"
        )
    if apart is not None and abs(apart) > CLOCKS_APART_S:
        side = "ahead" if apart > 0 else "behind"
        yield (
            f"the clocks must agree within {CLOCKS_APART_S:g} s, but {server.name}'s is {abs(apart):.0f} s "
            f"{side}. Let NTP set both"
        )


def _refused(server: Server, code: int) -> str:
    """What an answer that is an error says."""
    where = f"{server.name} at {server.url}"
    if code in (401, 403):
        remedy = f"Set {server.variables} to what the server has"
        return f"{where} must let this user in, but it says {code}. {remedy}"
    return f"{where} must say its version, but it says {code}. Is that address a {server.name} server's?"


def _without_password(url: str) -> tuple[str, dict[str, str]]:
    """The address as it may be shown, and the header for what it held."""
    parts = urlsplit(url)
    shown = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")
    if parts.username and parts.password:
        return shown, {"Authorization": _basic(f"{parts.username}:{parts.password}")}
    return shown, {}


def _basic(user_and_password: str) -> str:
    return f"Basic {b64encode(user_and_password.encode()).decode()}"
