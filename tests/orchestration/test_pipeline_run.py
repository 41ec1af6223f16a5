"""One real `pareflow optimize` under Prefect: what it prints, what MLflow holds, what a second one does."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from pareflow.compiler.onnxruntime import OnnxRuntime
from pareflow.measuring.environment import environment, of_verdict
from tasks.tracking import KEY, Tracker
from tests.orchestration.conftest import Finished

DOCUMENT = {
    *("pipeline", "run_id", "environment", "baseline", "variants", "winner", "verdict"),
    *("registered", "report"),
}
VARIANT = {
    *("id", "recipe", "status", "reason", "quality", "latency_ms", "throughput", "size_mib"),
    *("peak_memory_mib", "load_s", "speedup"),
}
PREDICT = """
import json, sys, mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
print(json.dumps(model.predict(np.asarray(json.load(sys.stdin), dtype=np.float32)).tolist()))
"""


@pytest.fixture(scope="module")
def document(finished: Finished) -> dict[str, Any]:
    assert finished.done.returncode == 0, finished.done.stderr
    return finished.document


@pytest.fixture(scope="module")
def tracker(finished: Finished) -> Tracker:
    return Tracker.open(finished.data_dir)


@pytest.fixture(scope="module")
def recorded(tracker: Tracker) -> list[Any]:
    """Every MLflow run of the pipeline, the parent last."""
    return runs(tracker.client)


def runs(client: MlflowClient) -> list[Any]:
    experiment = client.get_experiment_by_name("images")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"]))


def artifacts(client: MlflowClient, run: Any, folder: str | None = None) -> set[str]:
    return {file.path for file in client.list_artifacts(run.info.run_id, folder)}


def test_the_document_has_its_promised_keys(document: dict[str, Any]) -> None:
    assert set(document) >= DOCUMENT
    for variant in document["variants"]:
        assert set(variant) >= VARIANT
        assert set(variant["latency_ms"]) == {"p50", "p99", "low", "high"}
        assert set(variant["speedup"]) == {"estimate", "low", "high"}


def test_the_verdict_has_its_promised_keys(document: dict[str, Any]) -> None:
    assert document["verdict"]["decision"] == "promote"
    clauses = {check["clause"] for check in document["verdict"]["checks"]}
    assert {"quality.max_drop", "size.max_mib"} <= clauses
    for check in document["verdict"]["checks"]:
        assert set(check) >= {"clause", "limit", "estimate", "low", "high", "decision", "reason"}


def test_row_0_is_the_strong_baseline(document: dict[str, Any]) -> None:
    first = document["variants"][0]
    assert first == document["baseline"]
    assert first["role"] == "baseline"
    assert first["steps"] == [OnnxRuntime(threads=1).step.to_json()]


def test_the_smallest_that_meets_the_sla_wins(document: dict[str, Any]) -> None:
    sizes = {variant["id"]: variant["size_mib"] for variant in document["variants"]}
    assert document["winner"] == min(sizes, key=sizes.__getitem__)


def test_a_clean_run_prints_nothing_foreign(finished: Finished) -> None:
    said = finished.done.stderr
    for word in ("Traceback", "WARNING", "Warning", "Error", "Downloading", "it/s", "prefect", "mlflow"):
        assert word not in said
    stages = [line.split(" at ")[0] for line in said.splitlines() if not line.startswith(" ")]
    assert stages == ["baseline", "profile", "optimize", "validate", "register", "explain"]


def test_the_report_and_the_document_lie_beside_the_run(finished: Finished, document: dict[str, Any]) -> None:
    report = Path(document["report"])
    assert report == finished.data_dir / "runs" / document["run_id"] / "report.html"
    assert "</html>" in report.read_text()
    assert json.loads(report.with_name("run.json").read_text()) == document


def test_mlflow_holds_a_parent_and_a_run_per_variant(document: dict[str, Any], recorded: list[Any]) -> None:
    *children, parent = recorded
    assert parent.data.tags[KEY] == document["run_id"]
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {parent.info.run_id}
    ids = sorted(child.data.tags["pareflow.variant"] for child in children)
    assert ids == sorted(variant["id"] for variant in document["variants"])
    assert {run.info.status for run in recorded} == {"FINISHED"}


def test_the_parent_holds_the_outcome(
    document: dict[str, Any], recorded: list[Any], tracker: Tracker
) -> None:
    parent = recorded[-1]
    assert parent.data.tags["pareflow.environment"] == document["environment"]["fingerprint"]
    assert parent.data.tags["pareflow.verdict"] == "promote"
    assert {"run.json", "report", "model"} <= artifacts(tracker.client, parent)
    assert {"report/report.html", "report/traces"} <= artifacts(tracker.client, parent, "report")


def test_a_variant_holds_its_recipe_numbers_and_samples(
    document: dict[str, Any], recorded: list[Any], tracker: Tracker
) -> None:
    """The numbers are the final ones, on the verdict split."""
    for child in recorded[:-1]:
        tags = child.data.tags
        (row,) = [v for v in document["variants"] if v["id"] == tags["pareflow.variant"]]
        assert child.data.params == {
            f"{i}.{name}": json.dumps(settings)
            for i, step in enumerate(row["steps"])
            for name, settings in step.items()
        }
        metrics = child.data.metrics
        assert metrics["latency_ms.p50"] == row["latency_ms"]["p50"]
        assert metrics["accuracy"] == row["quality"]["value"]
        assert metrics["size_mib"] == row["size_mib"]
        assert artifacts(tracker.client, child) == {"variant.json", "samples.json"}
        kept = tracker.client.download_artifacts(child.info.run_id, "variant.json")
        assert json.loads(Path(kept).read_text()) == row


def test_the_winner_is_a_ready_version_with_its_lineage(document: dict[str, Any], tracker: Tracker) -> None:
    (version,) = tracker.versions("images")
    assert version.status == "READY"
    (listed,) = tracker.registered()
    assert listed["aliases"] == ["challenger", "champion"]
    judged_in = of_verdict(environment(), "onnxruntime").fingerprint
    expected = {
        "pareflow.run": document["run_id"],
        "pareflow.variant": document["winner"],
        "pareflow.data": document["data_digest"],
        "pareflow.seed": str(document["seed"]),
        "pareflow.environment": document["environment"]["fingerprint"],
        f"pareflow.verdict.{judged_in[:12]}": "promote",
    }
    assert expected.items() <= version.tags.items()
    assert (document["registered"]["version"], document["registered"]["alias"]) == ("1", "champion")


def test_the_champion_predicts_what_it_predicted(tracker: Tracker, tmp_path: Path) -> None:
    golden = json.loads((tracker.download("images", "1", tmp_path) / "golden.json").read_text())
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, tracker.uri, "models:/images@champion"],
        input=json.dumps(golden["samples"]),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == golden["predictions"]
    assert len(set(golden["predictions"])) > 1


@pytest.mark.parametrize(
    "options",
    [pytest.param([], id="prefect", marks=pytest.mark.slow), pytest.param(["--no-orchestrator"], id="plain")],
)
def test_the_same_command_again_redoes_nothing(
    options: list[str],
    finished: Finished,
    document: dict[str, Any],
    entries: Callable[[Path], dict[str, tuple[int, int]]],
    pareflow_command: Callable[..., "subprocess.CompletedProcess[str]"],
    tmp_path: Path,
) -> None:
    """In a copy of its data folder: others look at this one meanwhile. Without an orchestrator, too."""
    data_dir = tmp_path / "data"
    shutil.copytree(finished.data_dir, data_dir, ignore=shutil.ignore_patterns("prefect"))
    tracker = Tracker.open(data_dir)
    before, histories = entries(data_dir), metric_histories(tracker.client)
    done = pareflow_command("optimize", finished.config, "--data-dir", data_dir, "--json", *options)
    again = json.loads(done.stdout)
    assert (data_dir / "prefect").exists() == (not options)
    assert entries(data_dir) == before
    assert (again["run_id"], again["winner"]) == (document["run_id"], document["winner"])
    assert again["variants"] == document["variants"]
    assert metric_histories(tracker.client) == histories
    assert len(tracker.versions("images")) == 1


def metric_histories(client: MlflowClient) -> dict[tuple[str, str], int]:
    """How many points each metric of each run has."""
    return {
        (run.info.run_id, name): len(client.get_metric_history(run.info.run_id, name))
        for run in runs(client)
        for name in run.data.metrics
    }
