"""`pareflow calibrate`: a plan's thresholds, for a registered version, a package, or a pipeline's winner."""

import json
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from pareflow.serving.plan import read
from pareflow.variant import Step

Done = subprocess.CompletedProcess[str]
MANY: Mapping[str, Any] = {"file": {"path": "many_images.py", "settings": {"steps": 20}}}


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
    assert read(to).model_dump(mode="json", exclude_defaults=True) == document["plan"]
    shown = pareflow_command("calibrate", package, *options)
    assert "small answers 100.0%; 0.00% lost here: at most 1.00%" in " ".join(shown.stdout.split())


@pytest.mark.parametrize(
    ("policies", "named", "said"),
    [
        ([{"confidence_cascade": {}}], False, "must be named: it holds the data"),
        ([{"dynamic_batching": {}}], True, "the plan must have a policy with a threshold"),
        ([{"confidence_cascade": {}}], True, "needs tiers to choose from"),
    ],
)
def test_what_cannot_be_calibrated_is_told(
    pareflow_command: Callable[..., Done],
    package: Path,
    pipeline: Path,
    tmp_path: Path,
    policies: list[Any],
    named: bool,
    said: str,
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(json.dumps({"policies": policies}))
    config = ["--config", pipeline] if named else []
    done = pareflow_command("calibrate", package, "--plan", plan, *config, "--data-dir", tmp_path / "data")
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
