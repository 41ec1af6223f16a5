"""`pareflow export`: from the registry and from the store to a bundle that runs by itself."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import commands
from flows.tables import serving
from pareflow.errors import InputError
from pareflow.serving.plan import ServingPlan
from tasks.serving import keep_plan
from tasks.tracking import Tracker
from tests.orchestration.conftest import Finished, Judged, refused
from tests.terminal import lines, rendered

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def archive(finished: Finished, pareflow_command: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The champion's bundle."""
    path = tmp_path_factory.mktemp("export") / "images.tar.gz"
    words = ("export", "models:/images@champion", "--to", path, "--data-dir", finished.data_dir, "--json")
    done = pareflow_command(*words)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["name"], document["version"], document["archive"]) == ("images", "1", str(path))
    assert document["variant"] == finished.document["winner"]
    return path


def test_the_winner_in_the_store_is_the_champion_of_the_registry(
    archive: Path, finished: Finished, pareflow_command: Run, tmp_path: Path
) -> None:
    """The same model by either way, file for file."""
    path = tmp_path / "images.zip"
    done = pareflow_command("export", finished.config, "--to", path, "--data-dir", finished.data_dir)
    assert done.returncode == 0, done.stderr
    assert f"wrote {path}" in done.stdout
    with tarfile.open(archive) as registered, zipfile.ZipFile(path) as stored:
        names = stored.namelist()
        assert registered.getnames() == names
        for name in names:
            member = registered.extractfile(name)
            assert member is not None
            assert member.read() == stored.read(name), name
        about = json.loads(stored.read("images/package/model.json"))
        assert about["judged_batch_size"] is None  # its answers do not depend on those beside them


def test_a_versions_own_plan_goes_with_it_where_no_other_is_named(
    new_tracker: Callable[[Path], Tracker], judged: Judged, tmp_path: Path
) -> None:
    tracker = new_tracker(tmp_path)
    parent = tracker.begin(judged.run)
    version = str(tracker.register(judged.run, parent, judged.package(judged.fp32), judged.fp32).version)
    plan = ServingPlan(sessions=3, policies=({"exact_cache": {}},))
    keep_plan(tracker, "images", version, "onnxruntime", plan)
    other = tmp_path / "plan.yaml"
    other.write_text("sessions: 2")
    for named, sessions, cached in ((None, 3, True), (other, 2, False)):
        to = tmp_path / f"repository{sessions}"
        told = commands.export_served(f"models:/images/{version}", to, tmp_path, "triton", named)
        config = (to / "images" / "config.pbtxt").read_text()
        assert told["plan"]["sessions"] == sessions
        assert (f"count: {sessions}" in config, "response_cache" in config) == (True, cached)
        written = [f"wrote {to}/{file}" for file in told["files"]]
        assert lines(rendered(serving.exported_for_a_server, told)) == [*written, *told["left_out"]]


@pytest.mark.parametrize(
    ("target", "to", "said"),
    [
        ("models:/images@absent", "a.zip", "must be registered"),
        ("models:/other@champion", "a.zip", "must be registered"),
        ("models:images", "a.zip", "must be named models:/NAME"),
        ("models:/images@champion", "a.rar", "must end in"),
        ("models:/images@champion", "absent/a.zip", "must be written"),
        ("absent.yaml", "a.zip", "absent.yaml"),
    ],
)
def test_bad_input_exits_2_and_writes_nothing(
    finished: Finished, tmp_path: Path, target: str, to: str, said: str
) -> None:
    error = refused(InputError, "export", target, "--to", tmp_path / to, "--data-dir", finished.data_dir)
    assert error.exit_code == 2
    assert said in str(error)
    assert list(tmp_path.iterdir()) == []


def test_without_a_run_there_is_nothing_to_export(pipeline_file: Callable[..., Path], tmp_path: Path) -> None:
    words = ("--to", tmp_path / "a.zip", "--data-dir", tmp_path / "data")
    error = refused(InputError, "export", pipeline_file("never-run"), *words)
    assert error.exit_code == 2
    assert "an export needs a finished run" in str(error)


def test_without_a_winner_there_is_nothing_to_export(
    finished: Finished, pareflow_command: Run, tmp_path: Path
) -> None:
    """The finished run, as if no variant had met the SLA; told by a process, with its exit code."""
    run_id = finished.document["run_id"]
    data_dir = tmp_path / "data"
    (data_dir / "runs" / run_id).mkdir(parents=True)
    document = {**finished.document, "winner": None, "verdict": {"reason": "nothing met the SLA"}}
    (data_dir / "runs" / run_id / "run.json").write_text(json.dumps(document))
    done = pareflow_command("export", finished.config, "--to", tmp_path / "a.zip", "--data-dir", data_dir)
    assert done.returncode == 2
    assert "needs a winner, but nothing met the SLA" in " ".join(done.stderr.split())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_runs_in_an_environment_that_holds_its_requirements_alone(archive: Path, tmp_path: Path) -> None:
    """Made as README.txt says, away from this checkout."""
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    folder = tmp_path / "images"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "-r", str(folder / "requirements.txt")], check=True)
    samples: list[Any] = json.loads((folder / "package" / "golden.json").read_text())["samples"]
    (tmp_path / "images.json").write_text(json.dumps(samples))
    kept = {name: os.environ[name] for name in ("HOME", "LD_LIBRARY_PATH") if name in os.environ}
    for words in (["--self-test"], [str(tmp_path / "images.json")]):
        done = subprocess.run(
            [python, str(folder / "run.py"), *words], cwd="/", env=kept, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    golden = json.loads((folder / "package" / "golden.json").read_text())
    assert json.loads(done.stdout) == {"predictions": golden["predictions"]}
