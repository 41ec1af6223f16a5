"""Plans are simulated, served for real, and taken only where LoadGen tells, by `tune` and `optimize`."""

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pareflow.serving.plan import ServingPlan, read
from tasks import steps
from tasks.promotion import promote, promote_challenger
from tasks.serving import RegistrySource, plan_tag
from tasks.tracking import Tracker
from tests.orchestration.conftest import PIPELINE, Judged, trigger_of

Done = subprocess.CompletedProcess[str]


@pytest.mark.slow
def test_a_promise_that_is_easily_kept_gives_a_plan_to_serve_with(
    pareflow_command: Callable[..., Done], packaged: Callable[..., Path], tmp_path: Path
) -> None:
    """Alone on the machine: beside other tests requests wait in spells, which prove little of a p99."""
    to = tmp_path / "plan.yaml"
    promise = ("--per-s", 400, "--p99-ms", 5000, "--queries", 300)
    options = (*promise, "--to", to, "--data-dir", tmp_path, "--json")
    done = pareflow_command("tune", packaged("images"), *options)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    best, *others = document["tried"]
    assert best["decision"] == "promote"
    assert best["p99"]["high"] <= 5000
    assert {row["decision"] for row in others} >= {"left out"}
    assert yaml.safe_load(to.read_text()) == document["plan"]
    assert read(to).sessions == best["plan"]["sessions"]


@pytest.mark.slow
def test_a_promise_that_nothing_keeps_gives_none(
    pareflow_command: Callable[..., Done], packaged: Callable[..., Path], tmp_path: Path
) -> None:
    options = ["--per-s", 100, "--p99-ms", 0.01, "--queries", 300, "--to", tmp_path / "plan.yaml"]
    done = pareflow_command("tune", packaged("images"), *options, "--data-dir", tmp_path)
    assert done.returncode == 3, done.stderr
    assert "no plan keeps it" in done.stdout
    assert not (tmp_path / "plan.yaml").exists()


SERVING: dict[str, Any] = {
    "decision": "promote",
    "reason": "a plan keeps it",
    "kept": True,
    "plan": {"sessions": 1},
}


def test_the_plan_that_keeps_the_load_is_registered_with_the_winner(
    judged: Judged, new_tracker: Callable[[Path], Tracker], tmp_path: Path
) -> None:
    """For this environment; `serve` takes it where no other is named."""
    tracker = new_tracker(tmp_path)
    parent = tracker.begin(judged.run)
    found = steps.register.fn(judged.run, tracker, parent, judged.int8, SERVING)
    assert found is not None
    assert found["alias"] == "champion"
    release = RegistrySource("models:/images@champion", tmp_path).current()
    assert release.plan == ServingPlan(sessions=1)


def test_what_no_plan_keeps_is_no_champion_by_itself(
    judged: Judged, new_tracker: Callable[[Path], Tracker], tmp_path: Path
) -> None:
    tracker = new_tracker(tmp_path)
    parent = tracker.begin(judged.run)
    unkept = {**SERVING, "decision": "reject", "reason": "no plan keeps it", "kept": False, "plan": None}
    found = steps.register.fn(judged.run, tracker, parent, judged.int8, unkept)
    assert found is not None
    assert (found["alias"], found["reason"]) == ("challenger", "no plan keeps it")
    assert tracker.alias("images", "champion") is None
    assert plan_tag("onnxruntime") not in tracker.versions("images")[0].tags
    promote_challenger(tracker, judged.run)  # by hand it can be
    assert tracker.alias("images", "champion") is not None


def test_what_its_own_run_refused_starts_no_rollout_and_no_run_promotes_it(
    judged: Judged, new_tracker: Callable[[Path], Tracker], tmp_path: Path, sent: list[Any]
) -> None:
    """Until a run in this environment refuses it no more."""
    tracker = new_tracker(tmp_path)
    parent = tracker.begin(judged.run)
    manual = replace(judged.run, spec=judged.run.spec.model_copy(update={"promotion": "manual"}))
    unkept = {**SERVING, "reason": "no plan keeps it", "kept": False, "plan": None}
    found = steps.register.fn(manual, tracker, parent, judged.int8, unkept)
    assert found is not None
    assert (found["alias"], found["reason"]) == ("challenger", "no plan keeps it")
    assert not any(trigger_of("rollout").covers(event) for event in sent)
    moved = promote(tracker, judged.run, found["version"], judged.int8)
    assert (moved.alias, "refused it (no plan keeps it)" in moved.reason) == ("challenger", True)
    steps.register.fn(manual, tracker, parent, judged.int8)
    assert promote(tracker, judged.run, found["version"], judged.int8).alias == "champion"


@pytest.mark.slow
@pytest.mark.parametrize("orchestrator", ["--no-orchestrator", "--orchestrator"])
def test_optimize_tunes_for_the_load_of_the_sla(
    pipeline_file: Callable[..., Path],
    pareflow_command: Callable[..., Done],
    entries: Callable[[Path], dict[str, tuple[int, int]]],
    measured_already: Path,
    orchestrator: str,
) -> None:
    """From a store that holds all else; the second time nothing is measured, and the same is found."""
    sla = {**PIPELINE["sla"], "load": {"per_s": 400, "p99_ms": 5000}}
    config = pipeline_file("loaded", sla=sla)
    command = ("optimize", config, "--data-dir", measured_already, "--json", orchestrator)
    done = pareflow_command(*command)
    assert done.returncode == 0, done.stderr
    stages = [line.split(" at ")[0] for line in done.stderr.splitlines() if not line.startswith(" ")]
    assert stages[-4:] == ["validate", "serve", "register", "explain"]
    document = json.loads(done.stdout)
    serving = document["serving"]
    assert (serving["kept"], document["registered"]["alias"]) == (True, "champion")
    assert serving["optimized"]["variant"] == document["winner"]
    assert serving["original"]["variant"] == document["variants"][0]["id"]
    assert serving["speedup"]["p99"]["low"] <= serving["speedup"]["p99"]["high"]
    assert 'id="serving"' in Path(document["report"]).read_text()
    release = RegistrySource("models:/images@champion", measured_already).current()
    assert release.plan == ServingPlan(**serving["plan"])
    before = entries(measured_already)
    again = json.loads(pareflow_command(*command).stdout)
    assert again["serving"] == serving
    assert entries(measured_already) == before
