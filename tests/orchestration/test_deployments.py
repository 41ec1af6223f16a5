"""`prefect.yaml` deploys the pipeline three ways, and a worker runs it, on a real server on loopback."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import environment
from flows.local_server import local_server
from flows.monitoring import monitoring
from flows.servers import set_up_problems
from flows.tables import operating
from flows.triggers import optimize_deployed
from pareflow.errors import InputError, SpecError
from pareflow.monitoring.exposition import Reading
from pareflow.monitoring.rules import Rules
from pareflow.monitoring.state import State
from pareflow.serving.metrics import Metrics
from tasks import flow_runs
from tasks.looks import Looks
from tasks.reconciling import PENDING_S, Look, never_began, resumed
from tasks.tracking import Tracker
from tasks.watching import Asked, Monitored, Session
from tests import servers
from tests.orchestration.test_monitor import fail
from tests.replies import replying
from tests.terminal import rendered, rows

ROOT = Path(__file__).parents[2]
PATIENCE_SECONDS = 300.0
"""How long a test waits for what must come: a bound for a busy machine, not a measurement."""

WORKLOAD = '''
"""Is the mean of four numbers above a half? The smallest model that can be optimized."""

from typing import ClassVar

import numpy as np

from pareflow.workload import Arrays, Samples, Split, Splits, Workload


class Mean(Workload):
    metric: ClassVar[str] = "accuracy"

    def data(self) -> Splits:
        samples = np.random.default_rng(self.seed).random((700, 4), dtype=np.float32)
        targets = (samples.mean(axis=1) > 0.5).astype(np.int64)
        return Splits.cut(Split(samples, targets), calibration=100, search=200, verdict=300, seed=self.seed)

    def network(self):
        import torch

        linear = torch.nn.Linear(4, 2)
        linear.weight.data = torch.tensor([[-1.0] * 4, [1.0] * 4])
        linear.bias.data = torch.tensor([2.0, -2.0])
        return linear

    def preprocess(self, samples: Samples) -> Arrays:
        return {"numbers": np.asarray(samples, dtype=np.float32)}

    def postprocess(self, outputs: Arrays) -> np.ndarray:
        return outputs["output"].argmax(axis=1)
'''
PIPELINE = """
name: mean
workload: workload.py
target: {device: cpu, threads: [1]}
sla:
  quality: {metric: accuracy, max_drop: 0.2}
budget: {minutes: 1}
candidates:
  - [onnxruntime]
"""


class Api:
    """Prefect's REST API, without its client: that one warns, and keeps threads."""

    def __init__(self, url: str) -> None:
        self.url = url

    def post(self, path: str, body: object, method: str = "POST") -> Any:
        request = urllib.request.Request(
            f"{self.url}/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
            method=method,
        )
        return self._answer(request)

    def get(self, path: str) -> Any:
        return self._answer(urllib.request.Request(f"{self.url}/{path}"))

    def deployment(self, name: str, flow: str = "pipeline") -> dict[str, Any]:
        """The flow's deployment of this name."""
        found: dict[str, Any] = self.get(f"deployments/name/{flow}/{name}")
        return found

    def runs(self, deployment: str) -> list[dict[str, Any]]:
        """The deployment's flow runs."""
        chosen = {"deployments": {"name": {"any_": [deployment]}}}
        found: list[dict[str, Any]] = self.post("flow_runs/filter", chosen)
        return found

    def _answer(self, request: urllib.request.Request) -> Any:
        with urllib.request.urlopen(request, timeout=60) as answer:
            content = answer.read()
        return json.loads(content) if content else None


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A server that everything of prefect.yaml is deployed to."""
    with local_server(tmp_path_factory.mktemp("server"), linger_seconds=1) as url:
        servers.deploy()
        yield Api(url)


@pytest.fixture
def shared_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One MLflow for commands, and for the workers that begin after it."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'shared.db'}")


@pytest.fixture
def worker(api: Api, tmp_path: Path) -> Iterator[Path]:
    """A process worker of the pool; the path of its log."""
    log = tmp_path / "worker.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "worker", "start", "--pool", "pareflow", "--type", "process"],
            cwd=tmp_path,
            env={**os.environ, "PREFECT_WORKER_QUERY_SECONDS": "1"},
            stdout=output,
            stderr=output,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which it sends itself to end
        )
        yield log
        process.terminate()  # the worker ends its runs before itself
        process.wait(60)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A pipeline that takes seconds."""
    folder = tmp_path / "mean"
    folder.mkdir()
    (folder / "workload.py").write_text(WORKLOAD)
    (folder / "pipeline.yaml").write_text(PIPELINE)
    return folder / "pipeline.yaml"


def test_nightly_runs_at_two_by_utc(api: Api) -> None:
    (schedule,) = api.deployment("nightly")["schedules"]
    assert schedule["active"]
    assert schedule["schedule"] == {"cron": "0 2 * * *", "timezone": "UTC", "day_or": True}


def test_the_scheduler_makes_the_nights(api: Api) -> None:
    """By what Prefect's scheduler does, asked for once: with another SQLAlchemy than the lock's it raises."""
    api.post(f"deployments/{api.deployment('nightly')['id']}/schedule", {"min_runs": 3})
    nights = api.runs("nightly")
    assert len(nights) >= 3
    assert {run["expected_start_time"].rpartition("T")[2] for run in nights} == {"02:00:00Z"}
    assert len({run["expected_start_time"] for run in nights}) == len(nights)


def test_on_demand_runs_one_at_a_time_and_the_next_one_waits(api: Api) -> None:
    deployment = api.deployment("on-demand")
    assert deployment["global_concurrency_limit"]["limit"] == 1
    assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"


def test_retraining_runs_daily_and_a_slow_one_is_not_overtaken(api: Api) -> None:
    deployment = api.deployment("daily", "retraining")
    (schedule,) = deployment["schedules"]
    assert schedule["active"]
    assert schedule["schedule"] == {"cron": "0 3 * * *", "timezone": "UTC", "day_or": True}
    assert deployment["global_concurrency_limit"]["limit"] == 1


@pytest.mark.parametrize(
    "changed",
    [{"decision": "maybe"}, {"by": ""}, {"reason": None}, {}],
    ids=["unknown word", "nobody", "no reason", "good"],
)
def test_a_decision_that_says_too_little_starts_no_run(api: Api, changed: dict[str, Any]) -> None:
    good = {"model": "digits", "decision": "approve", "by": "Ada", "reason": "it is better"}
    path = f"deployments/{api.deployment('decision', 'promotion')['id']}/create_flow_run"
    if not changed:
        run = api.post(path, {"parameters": good, "state": {"type": "CANCELLED"}})  # no worker is to take it
        assert run["parameters"]["by"] == "Ada"
        return
    with pytest.raises(HTTPError) as refused:
        api.post(path, {"parameters": {**good, **changed}})
    assert refused.value.code in (409, 422)
    refused.value.close()


@pytest.mark.parametrize(
    ("deployment", "name", "others", "ours"),
    [
        ("on-event", "pareflow.model.registered", {"role": "optimized"}, {"role": "original"}),
        ("on-breach", "pareflow.monitoring.breach", {"retrain": "no"}, {"retrain": "yes"}),
    ],
    ids=["a registered original, not what the pipeline registers", "a rule that asks for a retraining"],
)
def test_an_event_starts_a_run_where_it_asks_for_one(
    deployment: str, name: str, others: dict[str, str], ours: dict[str, str], api: Api
) -> None:
    """The event that asks for none comes first: it had its chance when the other's run is there."""
    found = begun(
        api, deployment, lambda: [event(name, "none.yaml", **others), event(name, "some.yaml", **ours)]
    )
    assert found == [{"config": "some.yaml"}] * len(found)


def test_a_rollout_starts_by_itself_once_that_is_switched_on(api: Api) -> None:
    deployment = api.deployment("rollout", "deployment")
    (automation,) = api.get(f"automations/related-to/prefect.deployment.{deployment['id']}")
    assert not automation["enabled"]
    api.post(f"automations/{automation['id']}", {"enabled": True}, "PATCH")
    name = "pareflow.model.challenged"
    found = begun(
        api,
        "rollout",
        lambda: [event(name, "", "other", promotion="automatic"), event(name, "", promotion="manual")],
    )
    assert found == [{"name": "m", "urls": ["http://127.0.0.1:8000"]}] * len(found)


def begun(api: Api, deployment: str, events: Callable[[], list[dict[str, Any]]]) -> list[Any]:
    """The parameters of the deployment's runs, once there is one. The events happen again and again: the
    server takes a while to know of an automation, and none that happened before sets it off."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (runs := api.runs(deployment)) and time.monotonic() < deadline:
        api.post("events", events())
        time.sleep(2)
    assert runs
    return [run["parameters"] for run in runs]


def event(name: str, config: str, model: str = "m", **labels: str) -> dict[str, Any]:
    """What happened to a model, as the REST API takes it."""
    resource = {f"pareflow.model.{label}": value for label, value in labels.items()}
    return {
        "id": str(uuid.uuid4()),
        "occurred": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "event": name,
        "resource": {"prefect.resource.id": f"pareflow.model.{model}", **resource},
        "payload": {"name": model, "config": config},
    }


def test_a_pool_without_a_worker_is_told(api: Api) -> None:
    (problem,) = set_up_problems(Path("nowhere"))
    assert problem.startswith("the pool pareflow, which 8 deployments use, must have a worker online")


def test_another_team_s_flow_of_our_name_is_left_alone(api: Api, tmp_path: Path) -> None:
    """On a shared server: its run that waits or has crashed, its slots, and its pool without a worker."""
    flow = api.post("flows/", {"name": "pipeline"})["id"]
    api.post("work_pools/", {"name": "theirs", "type": "process"})
    about = {"name": "theirs", "flow_id": flow, "work_pool_name": "theirs", "concurrency_limit": 1}
    deployment = api.post("deployments/", about)["id"]
    run = api.post(f"deployments/{deployment}/create_flow_run", {})["id"]
    looks, began = Looks(tmp_path / "looks.db"), time.time()
    for state, look_at in (("PENDING", never_began), ("CRASHED", resumed)):
        api.post(f"flow_runs/{run}/set_state", {"state": {"type": state}, "force": True})
        for later in (0, PENDING_S):
            assert run not in [one["flow_run"] for one in look_at(Look(looks, began + later, 120, 1))]
    assert "theirs" not in [slot["deployment"] for slot in flow_runs.slots()]
    assert list(flow_runs.without_worker()) == ["pareflow"]
    assert api.get(f"flow_runs/{run}")["state_type"] == "CRASHED"


def test_a_run_that_began_before_its_deployment_had_our_tag_holds_its_slot(api: Api) -> None:
    """Else an upgrade would let a second one begin beside it."""
    flow = api.post("flows/", {"name": "pipeline"})["id"]
    about = {"name": "upgraded", "flow_id": flow, "concurrency_limit": 1}
    deployment = api.post("deployments/", about)["id"]
    run = api.post(f"deployments/{deployment}/create_flow_run", {})["id"]
    api.post(f"flow_runs/{run}/set_state", {"state": {"type": "RUNNING"}, "force": True})
    api.post("deployments/", {**about, "tags": [flow_runs.TAG]})
    try:
        (slot,) = [one for one in flow_runs.slots() if one["deployment"] == "upgraded"]
        assert slot["holders"] == 1
        assert run in [one["id"] for one in flow_runs.in_state("RUNNING")]
    finally:
        api.post(f"flow_runs/{run}", None, "DELETE")
        api.post(f"deployments/{deployment}", None, "DELETE")


def test_monitoring_runs_as_a_flow(api: Api, new_tracker: Callable[[Path], Tracker], tmp_path: Path) -> None:
    new_tracker(tmp_path)
    metrics, rules = Metrics(), tmp_path / "rules.yaml"
    metrics.serves("images", "local", {}, "here")
    rules.write_text("every_s: 0.1\nerrors: {}\n")
    told = metrics.text()
    reply = f"HTTP/1.1 200 OK\r\nContent-Length: {len(told)}\r\n\r\n".encode() + told
    with replying(reply) as url:
        found = monitoring("images", url, str(rules), str(tmp_path), seconds=0.5)
    assert (found["name"], found["breaches"]) == ("images", [])
    assert found["looks"] > 1
    assert len(rows(rendered(operating.monitored, found))) == len(found["figures"])
    (run,) = api.post("flow_runs/filter", {"flows": {"name": {"any_": ["monitoring"]}}})
    assert (run["state_type"], run["tags"]) == ("COMPLETED", ["pareflow"])  # by which reconcile knows it


def test_a_breach_that_came_while_prefect_was_away_is_told_once_it_is_back(
    api: Api, new_tracker: Callable[[Path], Tracker], tmp_path: Path
) -> None:
    """Once, and though another version serves by then."""
    told, watched = list[str](), Rules.model_validate({"every_s": 5, "errors": {"then": ["retrain"]}})
    asked = Asked("late", "http://127.0.0.1:9", tmp_path)
    session = Session(asked, new_tracker(tmp_path), watched, Path("some.yaml"), told.append)
    reading = Reading(0.0, "late", "3", {"200": 0.0, "500": 0.0}, {}, {}, None, None, None)
    with ExitStack() as stack, temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        served = Monitored(session, reading, stack, State("3"))
        fail(served, session, reading)
        served.look(None)
    assert [one["event"] for one in session.breaches] == [False]
    assert [words for words in told if "Prefect" in words] == told[1:]
    with ExitStack() as stack:
        state = State.read(session.state_path).for_version("2")
        served = Monitored(session, replace(reading, version="2"), stack, state)
        for _ in range(2):
            served.look(None)
    assert State.read(session.state_path).untold == ()
    chosen = {"event": {"name": ["pareflow.monitoring.breach"]}, "resource": {"id": ["pareflow.model.late"]}}
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (events := api.post("events/filter", {"filter": chosen})["events"]):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    (event,) = events
    assert event["resource"]["pareflow.model.retrain"] == "yes"
    assert event["payload"]["version"] == "3"


def test_workers_runs_send_no_telemetry_and_beat_as_commands_do(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What prefect.yaml says is what `set_environment` sets, but for the logs: a worker's are wanted."""
    variables = api.deployment("on-demand")["job_variables"]["env"]
    for name in variables:
        monkeypatch.delenv(name, raising=False)
    environment.set_environment(verbose=True)
    assert variables == {name: os.environ.get(name) for name in variables}


def test_reconcile_looks_every_five_minutes_and_takes_no_slot(api: Api) -> None:
    """One that died would keep it: what gives slots back would never begin again."""
    deployment = api.get("deployments/name/reconcile/every-five-minutes")
    (schedule,) = deployment["schedules"]
    assert schedule["schedule"]["interval"] == 300
    assert deployment["global_concurrency_limit"] is None


def test_rest_tells_what_the_deployment_takes_and_refuses_the_rest(api: Api) -> None:
    deployment = api.deployment("on-demand")
    assert set(deployment["parameter_openapi_schema"]["properties"]) >= {"config", "data_dir", "target"}
    with pytest.raises(urllib.error.HTTPError) as caught:
        api.post(f"deployments/{deployment['id']}/create_flow_run", {"parameters": {"config": 3}})
    assert caught.value.code == 409
    caught.value.close()


def test_the_command_starts_one_run_with_what_it_was_given(api: Api, config: Path, tmp_path: Path) -> None:
    before = {run["id"] for run in api.runs("on-demand")}
    document = optimize_deployed(config, None, "on-demand", tmp_path, wait=False, remeasure=True)
    (run,) = [run for run in api.runs("on-demand") if run["id"] not in before]
    assert (document["run_id"], document["deployment"]) == (run["id"], "pipeline/on-demand")
    assert run["parameters"] == {"config": str(config), "remeasure": True}
    api.post(f"flow_runs/{run['id']}/set_state", {"state": {"type": "CANCELLED"}, "force": True})


def test_a_pipeline_with_a_problem_and_an_unknown_deployment_start_nothing(
    api: Api, config: Path, tmp_path: Path
) -> None:
    before = api.runs("on-demand")
    with pytest.raises(InputError, match="no pipeline/on-demnad"):
        optimize_deployed(config, None, "on-demnad", tmp_path, wait=False, remeasure=False)
    config.write_text(PIPELINE.replace("accuracy", "acuracy").replace("max_drop", "max_dorp"))
    with pytest.raises(SpecError, match="max_drop"):
        optimize_deployed(config, None, "on-demand", tmp_path, wait=False, remeasure=False)
    assert len(api.runs("on-demand")) == len(before)


@pytest.mark.slow
def test_the_command_waits_for_the_outcome_of_a_worker_s_run(
    api: Api, shared_mlflow: None, worker: Path, config: Path, tmp_path: Path
) -> None:
    """Command and worker share MLflow, so that the command's document is the run's."""
    document = optimize_deployed(config, None, "on-demand", tmp_path, wait=True, remeasure=False)
    assert document["state"] == "COMPLETED", worker.read_text()
    assert document["outcome"]["pipeline"] == "mean"


@pytest.mark.slow
def test_a_worker_runs_the_pipeline_on_demand(api: Api, worker: Path, config: Path, tmp_path: Path) -> None:
    parameters = {"config": str(config), "data_dir": str(tmp_path / "data")}
    deployment = api.deployment("on-demand")
    run = api.post(f"deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})

    deadline = time.monotonic() + PATIENCE_SECONDS
    while not ended(state := api.get(f"flow_runs/{run['id']}")["state"]) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert state["type"] == "COMPLETED", f"{state}\n{worker.read_text()}"


def ended(state: dict[str, Any]) -> bool:
    """Whether a run in this state will change no more."""
    return state["type"] in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}
