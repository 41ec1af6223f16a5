"""Triggers between real servers: duplicates, forgeries, replays, restarts, and what was not heard of.

MLflow's server calls `pareflow listen`, which starts runs on a Prefect server; all are processes on loopback.
"""

import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from flows.cli import app
from flows.local_server import local_server
from flows.reconcile import run_reconcile
from flows.servers import set_up_problems
from tasks import flow_runs, registry, triggering
from tasks.deliveries import DELIVERY, SIGNATURE, TIMESTAMP, sign
from tasks.listener import PATH
from tasks.tracking import Tracker
from tests import servers

pytestmark = [
    pytest.mark.slow,
]
CONFIG = servers.ROOT / "configs" / "digits" / "pipeline.yaml"


@dataclass
class Stack:
    """The servers, and what a test asks of them."""

    folder: Path
    mlflow: str
    port: int
    rules: Path

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.mlflow)

    def register(self, model: str, **tags: str) -> str:
        """A new version of a model; its number."""
        if not self.client.search_registered_models(f"name = '{model}'"):
            self.client.create_registered_model(model)
        experiment = self.client.get_experiment_by_name("Default")
        assert experiment is not None
        run = self.client.create_run(experiment.experiment_id)
        source = f"{run.info.artifact_uri}/model"
        version = self.client.create_model_version(model, source, run.info.run_id, tags=tags)
        return str(version.version)

    def runs(self, key: str) -> list[dict[str, Any]]:
        """The flow runs of `name:version`, whatever became of them."""
        types = ("SCHEDULED", "PENDING", "RUNNING", *flow_runs.ENDED)
        whole = f"{self.mlflow} pipeline/on-demand {key}"
        return [run for run in flow_runs.in_state(*types) if run["idempotency_key"] == whole]

    def run_of(self, key: str) -> dict[str, Any]:
        """The one flow run of `name:version`, waited for."""
        deadline = time.monotonic() + servers.PATIENCE_S
        while not (found := self.runs(key)) and time.monotonic() < deadline:
            time.sleep(0.2)
        (run,) = found
        return run

    def send(
        self, model: str, version: str, name: str = "", secret: str = servers.SECRET, stamp: str = ""
    ) -> tuple[int, dict[str, Any]]:
        """A delivery as MLflow would send it: status and answer."""
        document = {"entity": "model_version", "data": {"name": model, "version": version}}
        body, stamp = json.dumps(document).encode(), stamp or str(int(time.time()))
        name = name or str(uuid.uuid4())
        headers = {SIGNATURE: sign(secret, name, stamp, body), TIMESTAMP: stamp, DELIVERY: name}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{PATH}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Prefect with the deployments, and MLflow."""
    folder = tmp_path_factory.mktemp("stack")
    rules = folder / "rules.yaml"
    rules.write_text(json.dumps({"rules": [{"model": "orig*", "parameters": {"config": str(CONFIG)}}]}))
    with local_server(folder / "prefect", linger_seconds=1):
        servers.deploy()
        with servers.mlflow_server(folder, servers.free_port()) as url:
            yield Stack(folder, url, servers.free_port(), rules)


@pytest.fixture
def data_dir(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stack.mlflow)
    return tmp_path / "data"


@pytest.fixture
def listening(stack: Stack, data_dir: Path) -> Iterator[None]:
    with servers.listener(stack.rules, data_dir, stack.port):
        yield


def test_mlflow_s_own_deliveries_start_one_run_per_version(
    stack: Stack, listening: None, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version, its alias and its tag are three deliveries, in whatever order."""
    from flows.triggers import SECRET

    monkeypatch.setenv(SECRET, servers.SECRET)
    told = ["webhook", f"http://127.0.0.1:{stack.port}{PATH}", "--data-dir", str(data_dir), "--json"]
    first, again = (CliRunner().invoke(app, told) for _ in range(2))
    assert (first.exit_code, again.exit_code) == (0, 0), first.output + again.output
    assert json.loads(first.stdout)["id"] == json.loads(again.stdout)["id"]
    version = stack.register("orig")
    stack.client.set_registered_model_alias("orig", "next", version)
    stack.client.set_model_version_tag("orig", version, "reviewed", "yes")
    run = stack.run_of(f"orig:{version}")
    assert run["parameters"]["config"] == str(CONFIG)
    assert f"models:/orig/{version}" in run["tags"]
    time.sleep(3)  # the other two
    assert len(stack.runs(f"orig:{version}")) == 1


def test_duplicates_start_one_run(stack: Stack, listening: None) -> None:
    """20 times the same delivery and 20 others about the same version, ten at a time."""
    version, same = stack.register("orig-twice"), str(uuid.uuid4())
    names = [same] * 20 + [str(uuid.uuid4()) for _ in range(20)]
    stamp = str(int(time.time()))
    with ThreadPoolExecutor(10) as pool:
        sent = list(pool.map(lambda name: stack.send("orig-twice", version, name, stamp=stamp), names))
    assert {status for status, _ in sent} == {200}
    assert len({answer["run_id"] for _, answer in sent}) == 1
    assert len(stack.runs(f"orig-twice:{version}")) == 1


def test_a_forgery_starts_nothing(stack: Stack, listening: None) -> None:
    version = stack.register("orig-forged")
    assert stack.send("orig-forged", version, secret="guessed")[0] == 401
    assert stack.send("orig-forged", version, stamp=str(int(time.time()) - 3600))[0] == 401
    assert stack.runs(f"orig-forged:{version}") == []


def test_a_signed_lie_about_the_registry_starts_nothing(stack: Stack, listening: None) -> None:
    """Whatever a delivery says: what counts is what the registry says when it is asked."""
    status, answer = stack.send("orig-nowhere", "1")
    assert (status, answer["run_id"]) == (200, None)
    own = stack.register("orig-own", **{"pareflow.run": "0123"})
    assert stack.send("orig-own", own)[1]["run_id"] is None
    other = stack.register("another")
    assert stack.send("another", other)[1]["reason"] == "no rule names it"


def test_a_replay_after_the_listener_was_killed_starts_nothing(stack: Stack, data_dir: Path) -> None:
    version, name, stamp = stack.register("orig-replayed"), str(uuid.uuid4()), str(int(time.time()))
    with servers.listener(stack.rules, data_dir, stack.port) as process:
        _, first = stack.send("orig-replayed", version, name, stamp=stamp)
        process.send_signal(signal.SIGKILL)
        process.wait()
    with servers.listener(stack.rules, data_dir, stack.port):
        status, again = stack.send("orig-replayed", version, name, stamp=stamp)
        assert (status, again["run_id"], again["new"]) == (200, first["run_id"], False)
        assert stack.send("orig-other", version, name, stamp=stamp)[0] == 409
    assert len(stack.runs(f"orig-replayed:{version}")) == 1


def test_a_delivery_while_prefect_is_away_is_handled_when_it_comes_again(
    stack: Stack, data_dir: Path
) -> None:
    version, name, stamp = stack.register("orig-away"), str(uuid.uuid4()), str(int(time.time()))
    nowhere = f"http://127.0.0.1:{servers.free_port()}/api"
    with servers.listener(stack.rules, data_dir, stack.port, PREFECT_API_URL=nowhere):
        assert stack.send("orig-away", version, name, stamp=stamp)[0] == 503
    with servers.listener(stack.rules, data_dir, stack.port):
        assert stack.send("orig-away", version, name, stamp=stamp)[1]["new"]
    stack.run_of(f"orig-away:{version}")


def test_a_model_that_is_registered_anew_has_a_run_of_its_own(
    stack: Stack, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers begin at 1 again: the run of that key was its namesake's, which is deleted."""
    monkeypatch.setattr(triggering, "SKEW_MS", 0)

    def started() -> list[str]:
        told = run_reconcile(stack.rules, data_dir)["started"]
        return [one["version"] for one in told if one["name"] == "orig-anew"]

    assert stack.register("orig-anew") == "1"
    assert started() == ["1"]
    stack.client.delete_registered_model("orig-anew")
    assert started() == []
    assert stack.register("orig-anew") == "1"
    assert [started(), started()] == [["1"], []]
    assert len(stack.runs("orig-anew:1")) == 1


def test_what_nobody_heard_of_is_found_by_reconcile(stack: Stack, data_dir: Path) -> None:
    version = stack.register("orig-missed")
    found = run_reconcile(stack.rules, data_dir)
    assert found["problems"] == []
    assert ("orig-missed", version) in {(one["name"], one["version"]) for one in found["started"]}
    assert len(stack.runs(f"orig-missed:{version}")) == 1
    assert run_reconcile(stack.rules, data_dir)["started"] == []


def test_an_event_reaches_the_server_before_its_process_ends(stack: Stack, tmp_path: Path) -> None:
    code = "from tasks.events import emit; assert emit('model.registered', 'm', '7', role='optimized')"
    with servers.process([sys.executable, "-c", code], tmp_path / "log", servers.ROOT) as process:
        assert process.wait(servers.PATIENCE_S) == 0
    chosen = {"event": {"name": ["pareflow.model.registered"]}, "resource": {"id": ["pareflow.model.m"]}}
    deadline = time.monotonic() + servers.PATIENCE_S
    while not (found := events(chosen)) and time.monotonic() < deadline:
        time.sleep(0.2)
    (event,) = found
    assert event["resource"]["pareflow.model.role"] == "optimized"
    assert event["payload"]["version"] == "7"


def test_doctor_tells_what_servers_that_answer_lack(stack: Stack, data_dir: Path) -> None:
    """A worker, whoever listens to the webhook, a place for artifacts; other tests may have left more."""
    before = set_up_problems(data_dir)
    assert any("must have a worker online" in problem for problem in before)
    hook = registry.call(Tracker.open(data_dir), "http://127.0.0.1:9/webhooks/mlflow", servers.SECRET)
    artifacts, aside = stack.folder / "artifacts", stack.folder / "aside"
    try:
        (unheard,) = set(set_up_problems(data_dir)) - set(before)
        assert unheard.startswith(
            "MLflow must reach `pareflow listen` at http://127.0.0.1:9/webhooks/mlflow, but"
        )
        artifacts.rename(aside)
        artifacts.write_text("in the way")
        assert any(f"MLflow at {stack.mlflow} must" in problem for problem in set_up_problems(data_dir))
    finally:
        stack.client.delete_webhook(hook["id"])
        artifacts.unlink(missing_ok=True)
        aside.rename(artifacts)


def events(chosen: dict[str, Any]) -> list[dict[str, Any]]:
    """The server's events."""
    body = json.dumps({"filter": chosen}).encode()
    url = f"{os.environ['PREFECT_API_URL']}/events/filter"
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: list[dict[str, Any]] = json.load(answer)["events"]
    return found
