"""`--target`: the plan and the run for a device that is not at hand."""

import dataclasses
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.pipeline import optimize
from pareflow.errors import InputError
from pareflow.spec import read_profile
from tasks.execution import Plain
from tests.orchestration.conftest import refused

DEVICES = Path(__file__).parents[2] / "configs" / "devices"
Command = Callable[..., "subprocess.CompletedProcess[str]"]


def test_the_plan_for_a_device_refuses_what_it_does_not_run(
    pipeline_file: Callable[..., Path], tmp_path: Path
) -> None:
    config = pipeline_file("planned", candidates=[["openvino"], ["fp16", "onnxruntime"]])
    words = ["plan", config, "--target", DEVICES / "android_phone.yaml", "--data-dir", tmp_path, "--json"]
    result = CliRunner().invoke(app, [*map(str, words)])
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["accelerator"]["name"].startswith("Cortex-X4")
    runs, refused = plan["candidates"]
    assert (runs["recipe"], runs["level"], runs["unavailable"]) == ("fp16 → onnxruntime", "model", None)
    assert refused["unavailable"].startswith("the device does not run it: Google Pixel 9")
    here = CliRunner().invoke(app, ["plan", str(config), "--data-dir", str(tmp_path), "--json"])
    assert json.loads(here.stdout)["run_id"] != plan["run_id"]  # it is another run


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("name: x\nmemory_mb: 4\n", "unknown key 'memory_mb'; did you mean 'memory_mib'?"),
        ("[1, 2]\n", "the top must be a mapping of keys"),
    ],
)
def test_a_bad_profile_is_bad_input(
    pipeline_file: Callable[..., Path], tmp_path: Path, text: str, found: str
) -> None:
    path = tmp_path / "device.yaml"
    path.write_text(text)
    error = refused(InputError, "optimize", pipeline_file(), "--target", path, "--no-orchestrator")
    assert error.exit_code == 2
    assert found in str(error)


def test_a_profile_that_is_not_there_is_bad_input(
    pareflow_command: Command, pipeline_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "device.yaml"
    done = pareflow_command("optimize", pipeline_file(), "--target", path, "--no-orchestrator")
    assert done.returncode == 2
    assert "device.yaml: No such file or directory" in " ".join(done.stderr.split())


@pytest.mark.slow
def test_a_student_is_taught_when_nothing_else_fits(trained: Any) -> None:
    """The storage holds nine tenths of the network's file: its student fits, and the row over it says so."""
    profile = read_profile(DEVICES / "pi5.yaml")
    small = profile.model_copy(update={"storage_mib": 0.9 * trained.strong.size_mib})
    target = trained.run.spec.target.model_copy(update={"profile": small})
    run = dataclasses.replace(trained.run, spec=trained.run.spec.model_copy(update={"target": target}))
    document = optimize(run, None, Plain())
    over = next(v for v in document["variants"] if v["recipe"] == "onnxruntime(graph_level=basic)")
    assert over["status"] == "failed"
    assert "MiB of storage" in over["reason"]
    assert "; the nearest that fits is " in over["reason"]
    assert any(label.startswith("distillation(student=narrow)") for label in document["target"]["fitting"])
    winner = next((v for v in document["variants"] if v["id"] == document["winner"]), None)
    assert winner is None or winner["fit"]["decision"] == "fits"
