"""`pareflow calibrate`: a plan's thresholds, for a registered version, a package, or a pipeline's winner."""

import json
import subprocess
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows import calibration
from pareflow.errors import InputError
from pareflow.runtime.complexity_routing import ComplexityRouting
from pareflow.serving.plan import read
from pareflow.variant import Step
from tasks.serving import plan_of
from tasks.tracking import Tracker
from tests.orchestration.conftest import refused
from tests.orchestration.test_serve import Server

Done = subprocess.CompletedProcess[str]
MANY: Mapping[str, Any] = {"file": {"path": "many_images.py", "settings": {"steps": 20}}}
CASCADE: list[Any] = [{"confidence_cascade": {}}]


@pytest.fixture(scope="module")
def package(
    workloads: Path, make_package: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    step = Step("onnxruntime", {"threads": 1})
    return make_package(MANY, workloads, tmp_path_factory.mktemp("store"), step, "many")


@pytest.fixture(scope="module")
def pipeline(pipeline_file: Callable[..., Path]) -> Path:
    return pipeline_file("many", workload=MANY)


def test_a_plan_gets_thresholds_to_serve_with(
    pareflow_command: Callable[..., Done], package: Path, pipeline: Path, tmp_path: Path
) -> None:
    """The tier is the model itself, which loses nothing: it is trusted with every sample."""
    plan, to = tmp_path / "plan.yaml", tmp_path / "calibrated.yaml"
    plan.write_text(json.dumps({"tiers": {"small": str(package)}, "policies": [{"confidence_cascade": {}}]}))
    options = ["--plan", plan, "--config", pipeline, "--to", to, "--data-dir", tmp_path / "data"]
    done = pareflow_command("calibrate", package, *options, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    (record,) = document["calibrated"]
    assert (document["samples"], record["drop"], record["answered"]) == (1200, 0.0, {"small": 1.0})
    assert (document["may_lose"], document["left_by_sla"]) == (0.01, 0.0)  # no verdict: nothing is sure
    assert read(to).to_json() == document["plan"]
    console = Console(record=True, width=200)
    calibration.show(document, console)
    assert "small answers 100.0%; 0.00% lost here: at most 1.00%" in console.export_text()
    calibration.show({**document, "left_by_sla": 0.002}, console)
    assert "may lose 0.01 of the metric, and the SLA leaves it 0.002" in console.export_text()


@pytest.mark.parametrize(
    ("policies", "said"),
    [
        ([{"dynamic_batching": {}}], "the plan must have a policy with a threshold"),
        (CASCADE, "needs tiers to choose from"),
    ],
)
def test_what_cannot_be_calibrated_is_told(
    package: Path, pipeline: Path, tmp_path: Path, policies: list[Any], said: str
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(json.dumps({"policies": policies}))
    options = ["--plan", plan, "--config", pipeline, "--data-dir", tmp_path / "data"]
    error = refused(InputError, "calibrate", package, *options)
    assert (error.exit_code, said in str(error)) == (2, True), error


def test_the_pipeline_of_a_package_must_be_named(
    pareflow_command: Callable[..., Done], package: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(json.dumps({"policies": CASCADE}))
    done = pareflow_command("calibrate", package, "--plan", plan, "--data-dir", tmp_path / "data")
    said = "must be named: it holds the data"
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


@pytest.mark.slow
def test_thresholds_are_kept_with_their_version_and_served(
    pareflow_command: Callable[..., Done],
    command: Callable[..., list[str]],
    pipeline_file: Callable[..., Path],
    pipeline: Path,
    tmp_path: Path,
) -> None:
    """From `optimize` to `serve`: the champion's plan comes with its tiers, where no other is named; and to
    the next version, which is calibrated by itself."""
    data = ["--data-dir", tmp_path / "data"]
    made = pareflow_command("optimize", pipeline, *data, "--no-orchestrator")
    assert made.returncode == 0, made.stderr
    plan = tmp_path / "plan.yaml"
    routing = [{"complexity_routing": {"input": "images"}}]
    plan.write_text(json.dumps({"tiers": {"small": "models:/images/1"}, "policies": routing}))
    for target in ("models:/images@champion", str(pipeline)):
        options = ["--register"] if target.startswith("models:") else []
        asked = ["calibrate", target, "--plan", plan, "--learn-scores", *options, *data, "--json"]
        done = pareflow_command(*asked)
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        assert (document["registered"], document["samples"]) == (bool(options), 1200)
    server = Server(command("serve", "models:/images@champion", *data, "--port", 0))
    samples = {"inputs": [[[0.5] * 8] * 8]}
    request = urllib.request.Request(f"{server.url}/invocations", json.dumps(samples).encode())
    request.add_header("content-type", "application/json")
    with urllib.request.urlopen(request) as answer:
        assert len(json.loads(answer.read())["predictions"]) == 1
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        told = answer.read().decode().splitlines()
    routed = 'model="images",policy="complexity_routing"'
    counted = [
        f'pareflow_policy_total{{figure="answered_{name}",{routed}}} 1.0' for name in ("small", "full")
    ]
    assert len(set(counted).intersection(told)) == 1, told  # simple enough, by what was learned, or not
    assert server.end()[0] == 0

    of_first = "the thresholds of version 1's plan were"
    document = _retrained(pareflow_command, pipeline_file("longer", workload=_many(steps=21)), *data)
    assert (document["version"], document["thresholds"]) == (
        "2",
        f"{of_first} calibrated again, on 1200 samples",
    )
    kept = plan_of(Tracker.open(tmp_path / "data").version("images", "2"), "onnxruntime")
    assert kept is not None
    (policy,) = kept.chosen()
    assert isinstance(policy, ComplexityRouting)
    assert policy.calibration is not None
    assert policy.calibration.score.startswith("learned ")
    assert policy.calibration.variants["full"].startswith("images/2 ")
    assert policy.calibration.variants["small"].startswith("images/1 ")
    assert (policy.calibration.max_drop, policy.calibration.samples) == (0.01, 800)

    document = _retrained(pareflow_command, pipeline_file("other", workload=_many(seed=9)), *data)
    assert "not calibrated again: version 1 of images must have been made with" in document["thresholds"]


def _many(**settings: int) -> dict[str, Any]:
    return {"file": {**MANY["file"], "settings": {"steps": 20, **settings}}}


def _retrained(run: Callable[..., Done], pipeline: Path, *data: object) -> dict[str, Any]:
    """What became of the new version in the registry."""
    done = run("optimize", pipeline, *data, "--no-orchestrator", "--json")
    assert done.returncode == 0, done.stderr
    registered: dict[str, Any] = json.loads(done.stdout)["registered"]
    return registered


@pytest.mark.slow
def test_a_language_model_is_packed_and_served(
    pareflow_command: Callable[..., Done], command: Callable[..., list[str]], tmp_path: Path
) -> None:
    """By the commands that the documentation shows."""
    from tests.unit.test_serving_language_models import checkpoint

    source, package = checkpoint(tmp_path / "checkpoint"), tmp_path / "words"
    done = pareflow_command("pack", source, "--name", "words", "--to", package, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pipeline"] == "words"
    again = pareflow_command("pack", source, "--name", "words", "--to", package)
    assert (again.returncode, "is there already" in again.stderr) == (2, True)
    server = Server(command("serve", package, "--port", 0))
    body = {"text_input": "w1 w5", "parameters": {"max_new_tokens": 3}}
    request = urllib.request.Request(f"{server.url}/v2/models/words/generate", json.dumps(body).encode())
    with urllib.request.urlopen(request) as answer:
        assert len(json.loads(answer.read())["text_output"].split()) == 3
    assert server.end()[0] == 0  # torch's libraries have things to say on stderr
