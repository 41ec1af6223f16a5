"""A packaged model, served by a plan in a process of its own, and asked as LoadGen has requests arrive."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pareflow import store
from pareflow.errors import StepFailedError, TimedOutError
from pareflow.isolation import Child, Limits
from pareflow.measuring.load import Load
from pareflow.serving.load import Post, under_load
from pareflow.serving.plan import ServingPlan
from pareflow.serving.server import serve
from pareflow.serving.settings import Settings
from pareflow.serving.slot import FolderSource

LOOK_S = 0.05
"""How often it is looked whether the server listens."""


def answer(
    folder: str,
    plan: Mapping[str, Any],
    load: Mapping[str, Any],
    requests: Sequence[Any],
    service_s: float,
    limits: Mapping[str, Any],
    log: str,
) -> dict[str, Any]:
    """For a process of its own, which asks: the ms of every query, what LoadGen says of the run, and how
    many of the requests are `distinct`.

    `requests` are the tensors of each, in the protocol's form; `limits` are the server's.
    Raises: MissingExtraError; StepFailedError where an answer is no success; what the server died of.
    """
    name = str(json.loads((Path(folder) / "model.json").read_text())["pipeline"])
    with _running(folder, plan, Limits(**limits), Path(log)) as address:
        url = f"{address}/v2/models/{name}/infer"
        bodies = [json.dumps({"inputs": tensors}).encode() for tensors in requests]
        posts = [Post(url, body, {"Content-Type": "application/json"}) for body in bodies]
        found = under_load(posts, Load(**load), service_s=service_s)
    return {"ms": found.latencies_ms, "said": asdict(found.said), "distinct": len(set(bodies))}


def listen(folder: str, plan: Mapping[str, Any], told: str) -> None:
    """For a process of its own, which serves until it is ended; the file `told` gets its address."""
    serve(
        [FolderSource(Path(folder))],
        ServingPlan.model_validate(plan),
        Settings(port=0, poll_s=None),
        lambda tier: FolderSource(Path(tier)),
        partial(store.replace, Path(told)),
    )


@contextmanager
def _running(folder: str, plan: Mapping[str, Any], limits: Limits, log: Path) -> Iterator[str]:
    """The address of the server, once it listens; it dies with this process. Raises: what it died of."""
    with TemporaryDirectory() as scratch:
        told = Path(scratch) / "address"
        arguments = {"folder": folder, "plan": dict(plan), "told": str(told)}
        with Child("pareflow.serving.plan_under_load:listen", arguments, limits, log) as server:
            while not told.exists():
                with suppress(TimedOutError):  # it still runs
                    server.result(LOOK_S)
                    must, found = "a server must go on until it is ended", "it ended by itself"
                    raise StepFailedError(must, found, f"Look at {log}")
            yield told.read_text()
