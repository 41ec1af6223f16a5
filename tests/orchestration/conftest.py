"""One finished `pareflow optimize` of the tiny images, and rows of it to test the registry with."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from typer.testing import CliRunner

from flows.cli import app
from pareflow import spec as specs
from pareflow.errors import PareflowError
from pareflow.stages import building, registration, validation
from pareflow.stages.baseline import baseline
from pareflow.stages.run import Row, Run
from pareflow.variant import Recipe
from tests import servers
from tests.conftest import Once

if TYPE_CHECKING:
    from tasks.tracking import Tracker

CHECKOUT = Path(__file__).parents[2]
PATIENCE_SECONDS = 180.0
"""How long a test waits for what must come: a bound for a busy machine, not a measurement."""
INT8: list[Any] = [{"static_int8": {"samples": 8}}, "onnxruntime"]
PIPELINE: Mapping[str, Any] = {
    "name": "images",
    "workload": "images.py",
    "target": {"device": "cpu", "threads": [1]},
    "objective": "size",  # has no noise: the int8 file is the smaller one, so it wins wherever this runs
    "sla": {"quality": {"metric": "accuracy", "max_drop": 0.2}, "size": {"max_mib": 100}},
    "budget": {"minutes": 60, "variant_minutes": 10, "quiet_minutes": 30},
    "promotion": "automatic",
    "candidates": [INT8],
}


@pytest.fixture(scope="session")
def command() -> Callable[..., list[str]]:
    """The command line of `pareflow` with these arguments."""

    def build(*arguments: object) -> list[str]:
        return [sys.executable, "-m", "flows.cli", *map(str, arguments)]

    return build


@pytest.fixture(scope="session")
def pareflow_command(command: Callable[..., list[str]]) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """Run `pareflow` in a process of its own, to its end."""

    def run(
        *arguments: object, folder: Path = CHECKOUT, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        variables = {**os.environ, "PYTHONPATH": str(CHECKOUT), **environment}
        return subprocess.run(
            command(*arguments), cwd=folder, env=variables, capture_output=True, text=True, timeout=540
        )

    return run


def refused(error: type[PareflowError], *words: object) -> PareflowError:
    """The error that a command ends with, which prints nothing; `main` tells it and exits with its code."""
    result = CliRunner().invoke(app, [*map(str, words)])
    assert isinstance(result.exception, error), result.output
    assert result.stdout == ""
    return result.exception


@pytest.fixture(scope="session")
def pipeline_file(workloads: Path) -> Callable[..., Path]:
    """The tiny pipeline as a file beside its workload, with some keys changed."""

    def write(name: str = "pipeline", **changes: Any) -> Path:
        path = workloads / f"{name}.yaml"
        path.write_text(json.dumps({**PIPELINE, **changes}))  # JSON is YAML
        return path

    return write


@pytest.fixture(scope="session")
def entries() -> Callable[[Path], dict[str, tuple[int, int]]]:
    """What tells an entry of a data folder's store from one made anew: its inode, and when it was filled.

    The manifest's own time will not do: it says when the entry was last used.
    """

    def found(data_dir: Path) -> dict[str, tuple[int, int]]:
        manifests = (data_dir / "store" / "entries").glob("*/manifest.json")
        return {path.parent.name: (path.stat().st_ino, path.parent.stat().st_mtime_ns) for path in manifests}

    return found


@pytest.fixture(scope="session")
def blank_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with an MLflow that knows nothing yet, its migrations done; not to be changed."""
    from tasks.tracking import Tracker

    data_dir = tmp_path_factory.mktemp("blank") / "data"
    Tracker.open(data_dir)
    return data_dir


@pytest.fixture(scope="session")
def new_tracker(blank_mlflow: Path) -> "Callable[[Path], Tracker]":
    """The tracker of this data folder, whose MLflow knows nothing yet."""
    from tasks.tracking import Tracker

    return lambda folder: Tracker.open(shutil.copytree(blank_mlflow, folder, dirs_exist_ok=True))


@dataclass(frozen=True)
class Finished:
    """A run to its end: its pipeline, its data folder, and what the command printed."""

    config: Path
    data_dir: Path
    done: "subprocess.CompletedProcess[str]"

    @property
    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.done.stdout)
        return document


@pytest.fixture(scope="session")
def finished(
    pipeline_file: Callable[..., Path],
    pareflow_command: Callable[..., "subprocess.CompletedProcess[str]"],
    rated: Path,
    shared_folder: Path,
    once: Once,
) -> Finished:
    """The tiny pipeline, optimized under Prefect's embedded server; not to be changed."""
    data_dir = shared_folder / "finished"

    def finish() -> Finished:
        config = pipeline_file()
        shutil.copytree(rated, data_dir, dirs_exist_ok=True)
        return Finished(
            config, data_dir, pareflow_command("optimize", config, "--data-dir", data_dir, "--json")
        )

    found: Finished = once("finished", finish)
    return found


@pytest.fixture
def measured_already(finished: Finished, tmp_path: Path) -> Path:
    """A data folder that holds the finished run's store, and nothing of MLflow's or Prefect's."""
    data_dir = tmp_path / "data"
    shutil.copytree(finished.data_dir / "store", data_dir / "store")
    return data_dir


@dataclass(frozen=True)
class Judged:
    """A run whose rows are judged: what may become model versions, packaged."""

    run: Run
    fp32: Row
    int8: Row
    eager: Row

    def package(self, row: Row) -> Path:
        return registration.package(self.run, row)

    def with_objective(self, objective: str) -> Run:
        """The run with another objective: ids of variants and measurements stay."""
        spec = self.run.spec.model_copy(update={"objective": objective})
        return dataclasses.replace(self.run, spec=spec)


@pytest.fixture(scope="session")
def judged(finished: Finished, shared_folder: Path, once: Once) -> Judged:
    """The finished run's rows, from a copy of its store."""
    data_dir = shared_folder / "judged"

    def made() -> Judged:
        shutil.copytree(finished.data_dir / "store", data_dir / "store")
        return judge(Run.open(specs.read(finished.config), finished.config, data_dir))

    found: Judged = once("judged versions", made)
    return found


def judge(run: Run) -> Judged:
    """The baselines and the int8 row, judged side by side."""
    strong, eager = baseline(run)
    recipe = (run.spec.recipes() or ())[0]
    int8 = building.make(run, Row(Recipe(recipe.techniques, strong.recipe.backend)))
    rows = {row.label: row for row in validation.validate(run, [strong, eager, int8])}
    return Judged(run, rows[strong.label], rows[int8.label], rows[eager.label])


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What Prefect's server would be told now, as events that it has received."""
    from prefect.server.events.schemas.events import ReceivedEvent
    from prefect.settings import PREFECT_API_URL, temporary_settings

    found: list[ReceivedEvent] = []

    def received(event: str, resource: dict[str, str], payload: dict[str, Any]) -> ReceivedEvent:
        told = {"event": event, "resource": resource, "payload": payload, "id": uuid.uuid4()}
        found.append(ReceivedEvent.model_validate({**told, "occurred": datetime.now(UTC)}))
        return found[-1]

    monkeypatch.setattr("tasks.events.emit_event", received)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        yield found


def trigger_of(deployment: str) -> Any:
    """The trigger of this deployment of prefect.yaml, as Prefect's server evaluates it."""
    from prefect.server.events.schemas.automations import EventTrigger

    deployed = yaml.safe_load((CHECKOUT / "prefect.yaml").read_text())["deployments"]
    (found,) = [one["triggers"] for one in deployed if one["name"] == deployment]
    (trigger,) = found
    return EventTrigger.model_validate({k: v for k, v in trigger.items() if k in EventTrigger.model_fields})


@pytest.fixture
def free_port() -> int:
    """A port of loopback where nothing answers."""
    return servers.free_port()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Callable[[int], "subprocess.Popen[bytes]"]]:
    """Start a real MLflow server on a port of loopback, and wait until it answers."""
    started: list[subprocess.Popen[bytes]] = []

    def start(port: int) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
                *("--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}", "--workers", "1"),
                *("--artifacts-destination", str(tmp_path / "served")),
            ],
            cwd=tmp_path,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_TRACKING_URI": ""},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        started.append(process)
        servers.answers(f"http://127.0.0.1:{port}/health", PATIENCE_SECONDS)
        return process

    yield start
    for process in started:
        process.terminate()
        process.wait(PATIENCE_SECONDS)
