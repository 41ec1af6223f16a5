"""The command line: what it reads, prints and exits with. Exit codes are in docs/reference/errors.md."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from flows.cli import app
from flows.tables import operating
from pareflow import spec
from pareflow.errors import BusyMachineError, InputError, StoreError, TrackingError
from pareflow.intervals import paired_share_drop
from pareflow.stages import instruments
from pareflow.workload import load
from tests.orchestration.conftest import CHECKOUT, PIPELINE, Finished, refused
from tests.terminal import rendered

Completed = subprocess.CompletedProcess[str]
Run = Callable[..., Completed]
LIGHT = """
import sys
from typer.testing import CliRunner
from flows.cli import app
for words in (["--help"], ["optimize", "--help"]):
    assert CliRunner().invoke(app, words).exit_code == 0
print(sorted({"torch", "mlflow", "prefect", "onnxruntime", "pandas"} & set(sys.modules)))
"""
COMMANDS = (
    *("init", "check", "plan", "optimize", "report", "list", "export", "split"),
    *("retrain", "promote", "rollback", "monitor", "store", "collect", "doctor"),
    *("serve", "tune", "calibrate", "pack"),
)


def printed(*words: object) -> Any:
    """The one JSON document that a command prints, which must succeed."""
    result = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_help_names_every_command() -> None:
    shown = CliRunner().invoke(app, ["--help"]).output
    assert [name for name in COMMANDS if name not in shown] == []


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_init_writes_a_folder_that_check_accepts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["init", "flowers"]).exit_code == 0
    assert {path.name for path in (tmp_path / "flowers").iterdir()} == {"pipeline.yaml", "workload.py"}
    assert printed("check", "flowers/pipeline.yaml")["name"] == "flowers"


def test_what_init_writes_can_be_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(app, ["init", "flowers"])
    plan = printed("plan", "flowers/pipeline.yaml")
    assert plan["pipeline"] == "flowers"
    assert len(plan["candidates"]) > 5
    assert not any(candidate["made"] for candidate in plan["candidates"])


def test_what_init_asks_for_can_be_shown_on_its_verdict_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing is lost, at the error that all baselines and finalists share."""
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(app, ["init", "flowers"])
    found = spec.read(tmp_path / "flowers" / "pipeline.yaml")
    samples = len(load(found.workload, tmp_path / "flowers").splits.verdict)
    judged = found.finalists + 2 * len(found.target.threads)
    drop = paired_share_drop(0, 0, samples, 1 - (1 - found.sla.confidence) / judged)
    assert drop.high is not None
    assert drop.high <= found.sla.clauses()["quality.max_drop"]


@pytest.mark.parametrize("command", ["check", "plan"])
def test_a_verdict_split_that_is_too_small_for_the_drop_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """It is no error: a candidate may be better than the original."""
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(app, ["init", "flowers"])
    config = tmp_path / "flowers" / "pipeline.yaml"
    config.write_text(config.read_text().replace("max_drop: 0.02", "max_drop: 0.001"))
    result = CliRunner().invoke(app, [command, str(config), "--json"])
    assert result.exit_code == 0, result.output
    assert "takes 2995 samples in the verdict split at least, and it has 600" in result.stderr


def test_init_leaves_an_existing_folder_alone(pareflow_command: Run, tmp_path: Path) -> None:
    (tmp_path / "flowers").mkdir()
    done = pareflow_command("init", "flowers", folder=tmp_path)
    assert done.returncode == 2
    assert "flowers is there already. Choose another name" in " ".join(done.stderr.split())
    assert list((tmp_path / "flowers").iterdir()) == []


def test_check_tells_every_problem_at_once(pareflow_command: Run, tmp_path: Path) -> None:
    document = {
        "name": "Not a name",
        "workload": "workload.py",
        "sla": {"latency": {"p99_mss": 3}},
        "candidates": [["static_int9", "onnxruntime"]],
        "objectiv": "size",
    }
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(document))
    done = pareflow_command("check", tmp_path / "bad.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    for problem in ("name", "p99_ms", "static_int8", "objective"):
        assert problem in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("sound", "broken", "found"),
    [
        ("workload.py", "nothing.py", "there is no"),
        ("metric: accuracy", "metric: acuracy", "there is no `acuracy`"),
    ],
)
def test_check_finds_what_the_yaml_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sound: str, broken: str, found: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["init", "flowers"]).exit_code == 0
    config = tmp_path / "flowers" / "pipeline.yaml"
    config.write_text(config.read_text().replace(sound, broken))
    assert found in str(refused(InputError, "check", config))


@pytest.mark.parametrize("name", ["check", "plan", "optimize", "report", "promote", "retrain"])
def test_a_missing_pipeline_is_bad_input(tmp_path: Path, name: str) -> None:
    assert "`pareflow init NAME` writes one" in str(refused(InputError, name, tmp_path / "absent.yaml"))


@pytest.mark.parametrize(
    ("family", "member"), [("techniques", "static_int8"), ("backends", "onnxruntime"), ("workloads", None)]
)
def test_list_shows_the_members_of_a_family(family: str, member: str | None, tmp_path: Path) -> None:
    rows = printed("list", family, "--data-dir", tmp_path)
    assert all(set(row) == {"name", "what", "settings", "unavailable"} for row in rows)
    assert member is None or member in {row["name"] for row in rows}


def test_list_knows_what_it_can_list() -> None:
    assert "techniques" in str(refused(InputError, "list", "technique"))


def test_list_shows_finished_runs_and_registered_versions(finished: Finished) -> None:
    (run,) = printed("list", "runs", "--data-dir", finished.data_dir)
    assert (run["run_id"], run["winner"]) == (finished.document["run_id"], finished.document["winner"])
    (version,) = printed("list", "versions", "--data-dir", finished.data_dir)
    assert (version["name"], version["version"]) == ("images", "1")
    assert set(version["aliases"]) == {"champion", "challenger"}
    assert version["pareflow.variant"] == finished.document["winner"]


def test_list_shows_no_runs_where_none_ran(tmp_path: Path) -> None:
    assert printed("list", "runs", "--data-dir", tmp_path) == []


def test_doctor_tells_of_this_machine(rated: Path, tmp_path: Path) -> None:
    data_dir = shutil.copytree(rated, tmp_path / "data")
    document = printed("doctor", "--data-dir", data_dir)
    assert document["problems"] == []
    assert document["environment"]["cores"] >= 1
    assert "onnxruntime" in {row["name"] for row in document["backends"]}
    machine = document["machine"]
    assert machine["devices"]["openvino"]["CPU"]
    assert machine["rates"]["matrix_gflops"] > 0
    assert machine["no_rates"] is None
    assert set(machine) >= {"caches", "memory_nodes", "huge_pages", "allocators", "graphics"}
    told = rendered(operating.doctor, document)
    assert (document["environment"]["processor"] in told, "to fix: " in told) == (True, False)


def test_doctor_says_why_a_busy_machine_has_no_rates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It does not wait."""

    def busy(patience_s: float) -> None:
        assert patience_s == 0
        raise BusyMachineError("the machine must be quiet", "others keep 2.0 of 2 cores busy", "")

    monkeypatch.setattr(instruments, "await_quiet", busy)
    machine = printed("doctor", "--data-dir", tmp_path)["machine"]
    assert (machine["rates"], machine["no_rates"]) == (None, "others keep 2.0 of 2 cores busy")


def test_plan_knows_what_is_made(finished: Finished) -> None:
    plan = printed("plan", finished.config, "--data-dir", finished.data_dir)
    assert plan["run_id"] == finished.document["run_id"]
    assert [(c["id"], c["made"]) for c in plan["candidates"]] == [(finished.document["winner"], True)]


def test_report_tells_where_it_lies(finished: Finished) -> None:
    result = CliRunner().invoke(app, ["report", str(finished.config), "--data-dir", str(finished.data_dir)])
    assert result.stdout.strip() == finished.document["report"]


def test_there_is_no_report_before_a_run(pipeline_file: Callable[..., Path], tmp_path: Path) -> None:
    error = refused(InputError, "report", pipeline_file(), "--data-dir", tmp_path)
    assert "a report is written by a finished run" in str(error)


def test_where_nothing_meets_the_sla_the_failed_clause_is_named(
    pareflow_command: Run, pipeline_file: Callable[..., Path], measured_already: Path
) -> None:
    strict = pipeline_file("strict", sla={"size": {"max_mib": 0.0001}})
    words = ("optimize", strict, "--data-dir", measured_already, "--no-orchestrator", "--json")
    done = pareflow_command(*words)
    document = json.loads(done.stdout)
    assert done.returncode == 3
    assert (document["winner"], document["registered"]) == (None, None)
    assert "size.max_mib" in document["verdict"]["reason"]
    assert Path(document["report"]).is_file()


def test_a_data_folder_that_cannot_be_written_is_an_unfit_environment(
    pipeline_file: Callable[..., Path], tmp_path: Path
) -> None:
    """A file stands where the folder should be: that stops root, too."""
    (tmp_path / "data").write_text("in the way")
    for words in (["optimize"], ["optimize", "--no-orchestrator"], ["plan"]):
        error = refused(StoreError, *words, pipeline_file(), "--data-dir", tmp_path / "data")
        assert "data" in str(error)


@pytest.mark.parametrize(
    "words",
    [["list", "versions"], ["rollback", "images"], ["check", "models:/images@champion"]],
    ids=" ".join,
)
def test_a_registry_that_cannot_be_opened_is_an_unfit_environment(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    refused(StoreError, *words, "--data-dir", tmp_path / "file" / "data")


WITHOUT = """
import importlib.machinery, sys
class Folder:  # as the checkout's `mlflow/` is one
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, None, is_package=True) if name == "mlflow" else None
absent = sys.argv.pop(1)
if absent == "folder":
    sys.meta_path.insert(0, Folder())
else:
    sys.modules.update(dict.fromkeys(absent.split(",")))
from flows.cli import main
main()
"""


@pytest.mark.parametrize(
    ("absent", "words"),
    [
        ("mlflow", "list versions"),
        ("folder", "list versions"),
        ("prefect,mlflow", "list versions"),
        ("prefect,mlflow", "rollback images"),
        ("prefect,mlflow", "check models:/images@champion"),
        ("prefect,mlflow", "serve models:/images@champion"),
        ("prefect,mlflow", "optimize PIPELINE"),
        ("prefect,mlflow", "optimize PIPELINE --no-orchestrator"),
    ],
)
def test_without_prefect_or_mlflow_it_is_said_how_to_install_them(
    absent: str, words: str, pipeline_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Both are of an extra, which no option makes up for."""
    told = [str(pipeline_file()) if word == "PIPELINE" else word for word in words.split()]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, absent, *told, "--data-dir", str(tmp_path / "data")],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 4, done.stderr
    assert "pareflow[orchestration]" in done.stderr
    assert "--no-orchestrator" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "options",
    [
        pytest.param([], id="prefect", marks=pytest.mark.slow),
        pytest.param(["--no-orchestrator"], id="plain"),
    ],
)
def test_ctrl_c_says_that_what_is_finished_is_kept(
    command: Callable[..., list[str]], pipeline_file: Callable[..., Path], tmp_path: Path, options: list[str]
) -> None:
    words = command("optimize", pipeline_file(), "--data-dir", tmp_path / "data", *options)
    process = subprocess.Popen(
        words,
        cwd=CHECKOUT,
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # else it ignores what we ignore
    )
    deadline = time.monotonic() + 300
    while not list((tmp_path / "data" / "store" / "entries").glob("*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130, said
    assert "interrupted; run it again: what is finished is kept" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("outcome", "code"),
    [
        pytest.param({"winner": "w", "registered": {}, "serving": {"kept": None}}, 0, id="met"),
        pytest.param({"winner": "w", "registered": {}, "serving": {"kept": True}}, 0, id="load kept"),
        pytest.param({"winner": "w", "registered": {}, "serving": {"kept": False}}, 3, id="load not kept"),
        pytest.param({"winner": "w", "registered": None, "serving": {"kept": None}}, 3, id="not registered"),
        pytest.param({"winner": None, "registered": None, "serving": {"kept": None}}, 3, id="no winner"),
        pytest.param(None, 4, id="not recorded here"),
    ],
)
def test_a_run_that_was_waited_for_ends_as_one_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outcome: dict[str, Any] | None, code: int
) -> None:
    """Whether it ran here, or a deployment's worker ran it."""
    told = {"deployment": "pipeline/d", "run_id": "r", "state": "COMPLETED", "outcome": outcome}
    monkeypatch.setattr("flows.triggers.optimize_deployed", lambda *_, **__: told)
    monkeypatch.setattr("flows.commands.optimize", lambda *_, **__: outcome)
    words = ["optimize", "a.yaml", "--data-dir", str(tmp_path), "--json"]
    deployed = CliRunner().invoke(app, [*words, "--deployment", "d", "--wait"])
    if outcome is None:
        assert isinstance(deployed.exception, TrackingError)
        assert deployed.exception.exit_code == code
        return
    assert deployed.exit_code == CliRunner().invoke(app, words).exit_code == code


OF_A_MODEL = (
    ["promote"],
    ["promote", "--approve", "--by", "ada", "--reason", "seen"],
    ["promote", "--reject", "--by", "ada", "--reason", "seen"],
    ["rollback"],
    ["deploy", "--no-orchestrator"],
    ["list", "audit"],
    ["monitor", "--url", "http://127.0.0.1:9"],
)
FORMS = ("models:/images", "models:/images@champion", "own.yaml")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline of the name `images`, whose registry is empty."""
    folder = tmp_path_factory.mktemp("empty")
    (folder / "own.yaml").write_text(yaml.safe_dump(dict(PIPELINE)))
    return folder


@pytest.mark.parametrize("words", OF_A_MODEL, ids=" ".join)
def test_a_model_is_found_by_each_form_of_its_name(
    words: list[str], empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is told of `images`, which is not there, is told of each."""
    monkeypatch.chdir(empty)

    def told(target: str) -> str:
        result = CliRunner().invoke(app, [*words, target, "--data-dir", str(empty / "data")])
        return result.output + str(result.exception)

    forms = FORMS[:-1] if words == ["promote"] else FORMS  # a YAML's workload is opened first
    assert {form: told(form) for form in forms} == dict.fromkeys(forms, told("images"))


@pytest.mark.parametrize(
    ("target", "uri"),
    [("own.yaml", "models:/images@champion"), ("models:/images/3", "models:/images/3")],
)
def test_a_copy_is_of_the_champion_or_of_what_is_named(
    target: str, uri: str, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(empty)
    words = ["promote", target, "--to", f"sqlite:///{empty}/other.db", "--data-dir", str(empty / "data")]
    error = CliRunner().invoke(app, words).exception
    assert isinstance(error, InputError)
    assert str(error).startswith(f"{uri} must be registered")


@pytest.mark.parametrize("words", OF_A_MODEL, ids=" ".join)
@pytest.mark.parametrize("target", ["Images", "models:/../images", "models:/images/3", "two words"])
def test_what_names_no_model_is_told_before_anything_is_opened(
    words: list[str], target: str, tmp_path: Path
) -> None:
    error = CliRunner().invoke(app, [*words, target, "--data-dir", str(tmp_path / "data")]).exception
    assert isinstance(error, InputError), error
    assert target in str(error)
    assert list(tmp_path.iterdir()) == []


def test_a_tolerated_share_of_other_answers_is_no_percentage(tmp_path: Path) -> None:
    words = ["deploy", "digits", "--max-disagreement", "5", "--data-dir", str(tmp_path)]
    told = CliRunner().invoke(app, words)
    assert (told.exit_code, list(tmp_path.iterdir())) == (2, [])


def test_a_run_that_is_not_waited_for_ends_well(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = {"deployment": "pipeline/d", "run_id": "r", "state": None, "outcome": None}
    monkeypatch.setattr("flows.triggers.optimize_deployed", lambda *_, **__: told)
    words = ["optimize", "a.yaml", "--data-dir", str(tmp_path), "--deployment", "d"]
    assert CliRunner().invoke(app, words).exit_code == 0


def test_one_name_is_served_once(packaged: Callable[..., Path], tmp_path: Path) -> None:
    words = ["serve", packaged("images"), packaged("images"), "--port", 0, "--data-dir", tmp_path]
    assert refused(InputError, *words).exit_code == 2
