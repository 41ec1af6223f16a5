"""The record in MLflow: found again and not doubled, begun by many at once, and told when it is not there."""

import dataclasses
import json
import shutil
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from flows import pipeline
from pareflow.errors import InputError, TrackingError, TransientError
from pareflow.gate import Check, Verdict
from pareflow.search import Ended
from pareflow.serving.model import MISSING, PackagedModel, verified
from pareflow.serving.request_log import Exchange
from pareflow.stages import searching
from pareflow.stages.registration import content_digest
from pareflow.stages.run import Row
from pareflow.variant import Recipe, Step
from tasks import registries, tracking
from tasks.approval import Request
from tasks.collecting import registered
from tasks.copying import copy
from tasks.execution import Plain
from tasks.promotion import as_registered
from tasks.serving import RegistrySource
from tasks.tracking import CONFIG, CONTENT, FORMAT, FORMAT_TAG, KEY, Tracker, verdict_tag_of, where_judged
from tests.orchestration.conftest import CHECKOUT, PATIENCE_SECONDS, Judged

BEGIN = """
import os, sys, traceback
from pathlib import Path
from tasks.approval import Request
from tasks.collecting import registered
from tasks.tracking import Tracker

def begin():
    try:
        Tracker.open(Path(sys.argv[1]))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)

children = [os.fork() or begin() for _ in range(10)]
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""

WRITE = """
import os, sys, traceback
from pathlib import Path
from tasks.tracking import Tracker

def write(writer):
    try:
        tracker = Tracker.open(Path(sys.argv[1]))
        for step in range(5):
            run = tracker.monitored("images", str(writer % 10))
            tracker.observed(run, {f"of_{writer}": step}, 1000 + step, step)
            tracker.note(run, {"step": step}, f"{writer}/{step}.json")
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)

children = [os.fork() or write(writer) for writer in range(20)]
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


@pytest.fixture
def tracker(new_tracker: Callable[[Path], Tracker], tmp_path: Path) -> Tracker:
    return new_tracker(tmp_path)


def test_a_run_begun_again_is_the_same_run(tracker: Tracker, judged: Judged) -> None:
    assert tracker.begin(judged.run) == tracker.begin(judged.run)


def test_a_variant_recorded_again_is_one_run_with_one_history(tracker: Tracker, judged: Judged) -> None:
    parent = tracker.begin(judged.run)
    for _ in range(2):
        tracker.variant(judged.run, parent, judged.int8)
    experiment = tracker.client.get_run(parent).info.experiment_id
    found = tracker.client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert len(found) == 1
    run_id = found[0].info.run_id
    histories = {name: tracker.client.get_metric_history(run_id, name) for name in found[0].data.metrics}
    assert {len(points) for points in histories.values()} == {1}
    assert histories["size_mib"][0].value == judged.int8.size_mib


def test_what_is_measured_again_is_shown_though_it_is_no_finalist_any_more(
    tracker: Tracker, judged: Judged
) -> None:
    parent = tracker.begin(judged.run)
    tracker.variant(judged.run, parent, judged.int8)
    anew = dataclasses.replace(judged.run, remeasure=True)
    assert tracker.begin(anew) == parent
    larger = dataclasses.replace(judged.int8, verdict=None, size_mib=2 * (judged.int8.size_mib or 0))
    assert judged.int8.verdict is not None
    tracker.variant(anew, parent, larger)
    experiment = tracker.client.get_run(parent).info.experiment_id
    (found,) = tracker.client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert found.data.metrics["size_mib"] == larger.size_mib


def test_what_fails_on_one_batch_is_a_run_as_every_row_is(
    tracker: Tracker, judged: Judged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student that the workload does not offer."""
    unknown = Row(Recipe((Step("distillation", {"student": "nobody", "epochs": 1}),), Step("onnxruntime")))

    def asking(*_: object) -> Generator[searching.Asked, Any, Ended]:
        yield searching.Asked("on one batch", (unknown,), preflight=True)
        return Ended("that was all")

    monkeypatch.setattr(searching, "searching", asking)
    data_dir = shutil.copytree(judged.run.data_dir, tmp_path, dirs_exist_ok=True)
    run, parent = dataclasses.replace(judged.run, data_dir=data_dir), tracker.begin(judged.run)
    rows, *_ = pipeline.searched(run, tracker, parent, Plain(), [judged.fp32, judged.eager], None)
    experiment = tracker.client.get_run(parent).info.experiment_id
    found = tracker.client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert [row.status for row in rows] == ["failed"]
    assert [child.data.tags["pareflow.status"] for child in found] == ["failed"]


def test_the_same_content_registered_again_is_one_version(tracker: Tracker, judged: Judged) -> None:
    parent, package = tracker.begin(judged.run), judged.package(judged.int8)
    versions = [tracker.register(judged.run, parent, package, judged.int8).version for _ in range(2)]
    assert versions[0] == versions[1]
    assert len(tracker.versions("images")) == 1


def test_content_that_another_machine_registers_too_keeps_where_it_came_from(
    tracker: Tracker, judged: Judged
) -> None:
    """The pipeline's YAML lies elsewhere there; where it was moved on the same machine it is found again."""
    package = judged.package(judged.int8)

    def registered(**changes: Any) -> dict[str, str]:
        run = dataclasses.replace(judged.run, **changes)
        return tracker.register(run, tracker.begin(run), package, judged.int8).tags

    first, another = registered(), dataclasses.replace(judged.run.environment, processor="another")
    registered(environment=another, config=Path("/there/pipeline.yaml"))
    (version,) = tracker.versions("images")
    told = {tag: value for tag, value in version.tags.items() if tag not in first}
    assert version.tags.items() >= first.items()
    where = verdict_tag_of(where_judged(dataclasses.replace(judged.run, environment=another), "onnxruntime"))
    assert told[where] == "promote"
    assert {tag.split(".")[1] for tag in told} == {"verdict", "sla"}
    registered(config=Path("/moved/pipeline.yaml"))
    assert tracker.version("images", "1").tags[CONFIG] == "/moved/pipeline.yaml"


@pytest.mark.parametrize("number", ["7", "seven"])
def test_a_version_that_is_not_there_is_the_askers_mistake(tracker: Tracker, number: str) -> None:
    tracker.client.create_registered_model("images")
    for name in ("images", "nothing"):
        with pytest.raises(InputError, match=f"models:/{name}/{number} must be registered"):
            tracker.version(name, number)


def test_every_page_of_a_registry_is_listed_with_its_aliases(tracker: Tracker) -> None:
    for name in ("a", "b"):
        tracker.client.create_registered_model(name)
        for number in range(3):
            tracker.client.create_model_version(name, "somewhere", tags={CONTENT: str(number), "theirs": "x"})
    tracker.set_alias("b", "champion", "2")
    tracker.set_alias("b", "challenger", "2")
    assert len(tracking.all_pages(tracker.client.search_model_versions, max_results=2)) == 6
    listed = {(row["name"], row["version"]): row for row in tracker.registered()}
    aliases = ["challenger", "champion"]
    assert listed["b", "2"] == {"name": "b", "version": "2", "aliases": aliases, CONTENT: "1"}
    assert [place for place, row in listed.items() if row["aliases"]] == [("b", "2")]
    assert len(listed) == 6


def test_other_content_is_another_version_and_leaves_the_first_alone(
    tracker: Tracker, judged: Judged, tmp_path: Path
) -> None:
    parent = tracker.begin(judged.run)
    for row in (judged.int8, judged.fp32):
        tracker.register(judged.run, parent, judged.package(row), row)
    for number, row in (("1", judged.int8), ("2", judged.fp32)):
        package = tracker.download("images", number, tmp_path / number)
        assert json.loads((package / "model.json").read_text())["variant"] == row.id


def test_the_same_files_run_by_other_settings_are_another_version(
    tracker: Tracker, packaged: Callable[..., Path], tmp_path: Path
) -> None:
    """Settings stand in `model.json` alone; each version is promoted, served and copied with its own."""
    for threads in (1, 2, 1):
        package = shutil.copytree(packaged("images"), tmp_path / "package", dirs_exist_ok=True)
        document = json.loads((package / "model.json").read_text())
        (package / "model.json").write_text(
            json.dumps({**document, "backend": {"onnxruntime": {"threads": threads}}})
        )
        tags = {CONTENT: content_digest(package, FORMAT), FORMAT_TAG: str(FORMAT)}
        tracker.add("images", package, tags)
    assert sorted(str(version.version) for version in tracker.versions("images")) == ["1", "2"]
    production = Tracker.at(Tracker.open(tmp_path / "production").uri, tmp_path)
    for number, threads in (("1", 1), ("2", 2)):
        served = RegistrySource(f"models:/images/{number}", tmp_path).current()
        copied = copy(tracker, f"models:/images/{number}", production.uri, tmp_path)["version"]
        packages = [
            served.package,
            as_registered(tracker, "images", number, tmp_path / f"here-{number}"),
            as_registered(production, "images", copied, tmp_path / f"there-{number}"),
        ]
        assert [PackagedModel(package).session.ran().threads for package in packages] == [threads] * 3


def test_the_same_files_that_take_missing_values_are_another_version(
    tracker: Tracker, packaged: Callable[..., Path], tmp_path: Path
) -> None:
    """What was registered before that was noted would refuse such requests for ever."""
    for added in ({}, {MISSING: False}, {MISSING: True}, {MISSING: True}):
        package = shutil.copytree(packaged("images"), tmp_path / "package", dirs_exist_ok=True)
        document = json.loads((package / "model.json").read_text())
        (package / "model.json").write_text(json.dumps({**document, **added}))
        tags = {CONTENT: content_digest(package, FORMAT), FORMAT_TAG: str(FORMAT)}
        tracker.add("images", package, tags)
    assert sorted(str(version.version) for version in tracker.versions("images")) == ["1", "2"]
    assert PackagedModel(as_registered(tracker, "images", "2", tmp_path / "second")).takes_missing


@pytest.mark.slow
def test_ten_processes_can_begin_one_new_mlflow(tmp_path: Path) -> None:
    """Forked when all is imported, so that they come at the same moment."""
    command = [sys.executable, "-c", BEGIN, str(tmp_path / "data")]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.stdout.strip() == str([0] * 10), done.stderr
    assert Tracker.open(tmp_path / "data").client.search_experiments()


@pytest.mark.slow
def test_twenty_writers_at_once_lose_nothing_and_double_nothing(tracker: Tracker, tmp_path: Path) -> None:
    """Two of them to each of ten runs, which are made by whoever comes first."""
    command = [sys.executable, "-c", WRITE, str(tmp_path)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.stdout.strip() == str([0] * 20), done.stderr
    runs = {run.data.tags[KEY]: run for run in tracker.client.search_runs([tracker.experiment("images")])}
    assert len(runs) == 10
    for number, run in enumerate(runs[f"monitoring:images:{number}"] for number in range(10)):
        for writer in (number, number + 10):
            history = tracker.client.get_metric_history(run.info.run_id, f"of_{writer}")
            assert [point.value for point in history] == [0, 1, 2, 3, 4]
            assert len(tracker.client.list_artifacts(run.info.run_id, str(writer))) == 5


def test_a_server_that_is_down_is_told_as_transient(
    free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # each waits longer than the one before
    with pytest.raises(TransientError) as caught:
        Tracker.open(tmp_path)
    error = caught.value
    assert error.exit_code == 4
    assert error.must == f"MLflow at http://127.0.0.1:{free_port} must be reachable"
    assert "it is not" in error.found
    assert "MLFLOW_TRACKING_URI" in error.remedy


def test_a_password_in_the_address_is_in_no_traceback(
    free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect's log keeps them."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:horse@127.0.0.1:{free_port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with pytest.raises(TransientError) as caught:
        Tracker.open(tmp_path)
    assert "horse" not in "".join(traceback.format_exception(caught.value))


def test_a_password_in_what_a_server_says_is_not_told() -> None:
    address = "http://ada:horse@mlflow"
    with pytest.raises(TrackingError) as caught, tracking._reaching(address):
        raise MlflowException(f"API request to {address}/api failed\nmore")
    assert "API request to http://mlflow/api failed" in caught.value.found
    assert "horse" not in "".join(traceback.format_exception(caught.value))


def test_a_server_whose_database_is_away_is_told_apart_from_one_that_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(500)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as broken:
        threading.Thread(target=broken.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{broken.server_port}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        with pytest.raises(TransientError) as caught:
            Tracker.open(tmp_path)
        broken.shutdown()
    assert caught.value.found == "it answers with errors (500)"
    assert "database or artifact store" in caught.value.remedy


@pytest.mark.slow
def test_a_run_goes_on_when_its_server_comes_back(
    free_port: int,
    tmp_path: Path,
    judged: Judged,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    server: Callable[[int], "subprocess.Popen[bytes]"],
) -> None:
    """What was recorded before is found again; the artifacts go through the server, and nothing to stdout."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")
    process = server(free_port)
    tracker = Tracker.open(tmp_path)
    parent = tracker.begin(judged.run)
    process.terminate()
    process.wait(PATIENCE_SECONDS)
    with pytest.raises(TransientError):
        tracker.variant(judged.run, parent, judged.int8)
    server(free_port)
    assert tracker.begin(judged.run) == parent
    tracker.variant(judged.run, parent, judged.int8)
    version = tracker.register(judged.run, parent, judged.package(judged.int8), judged.int8)
    package = tracker.download("images", str(version.version), tmp_path / "downloaded")
    assert (package / "model.json").is_file()
    assert capfd.readouterr().out == ""


def test_what_a_registry_holds_is_known_when_the_environment_names_it_no_more(
    judged: Judged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where a database without a server puts its artifacts
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'elsewhere.db'}")
    elsewhere = Tracker.open(tmp_path / "data")
    elsewhere.register(judged.run, elsewhere.begin(judged.run), judged.package(judged.int8), judged.int8)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert registered(tmp_path / "data") == {judged.int8.id: "models:/images/1"}


def test_an_embedded_mlflow_behind_a_link_is_asked_once(judged: Judged, tmp_path: Path) -> None:
    """Its address is the one that the data folder is known by."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mlflow").symlink_to(tmp_path / "elsewhere")
    tracker = Tracker.open(tmp_path / "data")
    tracker.register(judged.run, tracker.begin(judged.run), judged.package(judged.int8), judged.int8)
    assert registries.known(tmp_path / "data") == [tracker.uri]
    assert registered(tmp_path / "data") == {judged.int8.id: "models:/images/1"}


def test_who_changes_what_is_kept_thinks_of_the_pareflow_that_reads_it(judged: Judged) -> None:
    """An older one passes over a key that it does not know: where it must not, raise `FORMAT`. Of a request,
    approved or kept, it knows every key, or refuses it."""

    def keys(kind: type[Any]) -> str:
        return " ".join(field.name for field in dataclasses.fields(kind))

    document = verified(judged.package(judged.int8))
    assert (FORMAT, " ".join(sorted(document))) == (
        3,
        "backend data_digest environment files judged_batch_size pipeline recipe requirements run samples "
        "seed variant verdict workload workload_digest",
    )
    assert keys(Verdict) == "variant environment decision checks"
    assert keys(Check) == "clause limit estimate low high decision reason samples confidence more_samples"
    assert keys(Request) == "environment champion reason verdict asked expires state by why"
    assert keys(Exchange) == "id model version answered_s inputs outputs digests"
