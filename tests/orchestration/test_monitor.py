"""Breaches acted on in a real registry; `pareflow monitor` beside a real server, from breach to rollback."""

import errno
import json
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.monitoring import monitor
from pareflow.collection import Holder, holders
from pareflow.compiler.onnxruntime import OnnxRuntime
from pareflow.errors import InputError, PareflowError, StoreError, TrackingError, TransientError
from pareflow.monitoring.comparing import REFERENCE
from pareflow.monitoring.exposition import Reading
from pareflow.monitoring.labels import Answers, Place
from pareflow.monitoring.rules import Rules
from pareflow.monitoring.state import Breach, State
from pareflow.serving.metrics import Metrics
from pareflow.serving.model import PackagedModel, as_json, write_manifest
from pareflow.stages import monitoring as stage
from pareflow.stages.registration import content_digest
from pareflow.store import Store
from tasks import flow_runs, watching
from tasks.late_labels import LateLabels
from tasks.looks import Looks
from tasks.monitoring import Record, act
from tasks.promotion import promote
from tasks.reconciling import SILENT_S, Look, silent_monitors
from tasks.tracking import BREACH, CONFIG, CONTENT, FORMAT, FORMAT_TAG, Tracker
from tasks.watching import Asked, Monitored, Session
from tests.orchestration.conftest import Judged
from tests.orchestration.test_serve import Server, ask
from tests.replies import replying


def breach(version: str, then: Any = ("rollback", "retrain")) -> Breach:
    return Breach("errors", version, 0.5, 0.01, "errors: half of them", then)


@pytest.fixture(scope="module")
def tracker(new_tracker: Callable[[Path], Tracker], tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    return new_tracker(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def name(tracker: Tracker, request: pytest.FixtureRequest) -> str:
    """A model of three versions: the second was champion before the third."""
    model = request.node.name
    tracker.client.create_registered_model(model)
    for _ in range(3):
        tracker.client.create_model_version(model, "file:///nothing")
    tracker.set_alias(model, "previous", "2")
    tracker.set_alias(model, "champion", "3")
    return str(model)


def champion(tracker: Tracker, name: str) -> str:
    found = tracker.alias(name, "champion")
    assert found is not None
    return str(found.version)


def test_a_breach_moves_the_alias_back_where_its_rule_says_so(tracker: Tracker, name: str) -> None:
    document = act(tracker, name, breach("3", then=("retrain",)), None)
    assert (document["rolled_back_to"], champion(tracker, name)) == (None, "3")
    assert BREACH not in tracker.version(name, "3").tags
    document = act(tracker, name, breach("3"), "pipeline.yaml")
    assert (document["rolled_back_to"], champion(tracker, name)) == ("2", "2")
    assert (document["config"], document["event"]) == ("pipeline.yaml", None)  # no Prefect server here


def test_nothing_flaps(tracker: Tracker, name: str) -> None:
    """Where the version that was gone back to breaks a rule as well, that stays: the other one did before."""
    act(tracker, name, breach("3"), None)
    document = act(tracker, name, breach("2"), None)
    assert (document["rolled_back_to"], champion(tracker, name)) == (None, "2")
    assert "version 3 broke a rule itself: errors: half of them" in document["not_rolled_back"]


def test_what_serves_no_more_moves_nothing(tracker: Tracker, name: str) -> None:
    document = act(tracker, name, breach("1"), None)
    assert (document["not_rolled_back"], champion(tracker, name)) == ("the champion is not version 1", "3")


def test_without_a_previous_version_there_is_no_way_back(tracker: Tracker, name: str) -> None:
    tracker.client.delete_registered_model_alias(name, "previous")
    document = act(tracker, name, breach("3"), None)
    assert (document["not_rolled_back"], champion(tracker, name)) == ("there is no previous version", "3")


def test_a_rollback_waits_for_a_registry_that_is_away(
    tracker: Tracker, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    document = act(Tracker("http://127.0.0.1:9", None, tracker.locks), name, breach("3"), None)
    assert (document["again"], document["rolled_back_to"]) == (True, None)
    document = act(tracker, name, breach("3"), None, retried=True)
    assert (document["again"], document["rolled_back_to"]) == (False, "2")


def test_what_waits_is_told_once_and_asks_for_one_retraining(
    tracker: Tracker, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = Tracker("http://127.0.0.1:9", None, tracker.locks)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        found = [act(away, name, breach("3"), None, retried=retried) for retried in (False, True, True)]
        found.append(act(tracker, name, breach("3"), None, retried=True))
    told = [one["event"]["resource"]["pareflow.model.retrain"] for one in found if one["event"]]
    assert told == ["yes", "no"]


def fail(served: Monitored, session: Session, reading: Reading) -> None:
    """Every request fails, for as long as it takes to be a breach."""
    while not session.breaches:
        failed = reading.statuses["500"] + 100
        reading = replace(reading, at_s=reading.at_s + 5, statuses={"200": 0.0, "500": failed})
        served.look(reading)


def test_events_are_told_when_all_is_followed_and_one_that_is_refused_holds_up_none(
    tracker: Tracker, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def followed(_: Tracker, __: str, found: Breach, *___: Any, **____: Any) -> dict[str, Any]:
        done.append(f"followed {found.rule}")
        nothing = {"rolled_back_to": None, "not_rolled_back": None, "again": False}
        return {"version": "3", "event": {"id": found.rule}, **found.to_json(), **nothing}

    def take(event: Mapping[str, Any]) -> None:
        done.append(f"told of {event['id']}")
        if event["id"] == "errors":
            raise InputError("an event must be one that Prefect takes", "it answered 422", "")

    monkeypatch.setattr(watching, "act", followed)
    monkeypatch.setattr(flow_runs, "tell", take)
    watched = Rules.model_validate({"every_s": 5, "errors": {}})
    session = Session(Asked(name, "http://127.0.0.1:9", tmp_path), tracker, watched, None, print)
    reading = Reading(0.0, name, "3", {"200": 0.0, "500": 0.0}, {}, {}, None, None, None)
    waiting = (breach("3"), replace(breach("3"), rule="latency_p99"))
    with ExitStack() as stack:
        served = Monitored(session, reading, stack, State("3", waiting=waiting))
        served.look(None)
    assert done == ["followed errors", "followed latency_p99", "told of errors", "told of latency_p99"]
    assert served.watch.state.untold == ()
    assert [one["event"] for one in session.breaches] == [False, True]


@pytest.mark.parametrize(
    ("status", "expected"),
    [(422, InputError), (413, InputError), (403, TrackingError), (503, TransientError)],
)
def test_an_event_that_is_refused_for_good_is_told_from_a_server_that_refuses_all(
    status: int, expected: type[PareflowError]
) -> None:
    reply = f"HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
    with (
        replying(reply) as url,
        temporary_settings({PREFECT_API_URL: f"{url}/api"}),
        pytest.raises(expected, match=str(status)),
    ):
        flow_runs.tell({"id": "1", "event": "pareflow.monitoring.breach"})


def test_what_waits_is_followed_by_the_next_monitor(
    tracker: Tracker, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It broke a rule while the registry was away, and the monitor was killed before that came back."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    watched = Rules.model_validate({"every_s": 5, "errors": {"then": ["rollback"]}})
    asked = Asked(name, "http://127.0.0.1:9", tmp_path)
    away = Session(asked, Tracker("http://127.0.0.1:9", None, tracker.locks), watched, None, print)
    reading = Reading(0.0, name, "3", {"200": 0.0, "500": 0.0}, {}, {}, None, None, None)
    with ExitStack() as stack:
        served = Monitored(away, reading, stack, State("3"))
        fail(served, away, reading)
    assert champion(tracker, name) == "3"
    again = Session(asked, tracker, watched, None, print)
    with ExitStack() as stack:
        Monitored(again, reading, stack, State.read(again.state_path).for_version("3")).look(None)
    assert champion(tracker, name) == "2"
    assert [one["rolled_back_to"] for one in again.breaches] == ["2"]
    assert State.read(again.state_path).waiting == ()


def test_what_fails_is_followed_before_anything_is_compared(
    tracker: Tracker, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bringing a package and an original takes longer than a rollback may."""

    def takes_for_ever(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tasks.watching.RegistrySource.copy", takes_for_ever)
    watched = Rules.model_validate({"errors": {"then": ["rollback"]}, "variant_drift": {}})
    config = tmp_path / "pipeline.yaml"
    session = Session(Asked(name, "http://127.0.0.1:9", tmp_path), tracker, watched, config, print)
    reading = Reading(0.0, name, "3", {}, {}, {}, None, None, None)
    with ExitStack() as stack:
        served = Monitored(session, reading, stack, State("3", waiting=(breach("3", then=("rollback",)),)))
        with pytest.raises(KeyboardInterrupt):
            served.look(reading)
    assert champion(tracker, name) == "2"


def test_a_version_is_compared_with_its_own_original_or_with_none(judged: Judged, tmp_path: Path) -> None:
    """Of another one nothing is taken, and the monitor trains none."""
    run = judged.run
    with pytest.raises(InputError, match="others by now"):
        stage.made(run, "another")
    with pytest.raises(InputError, match="the monitor trains nothing"):
        stage.made(replace(run, data_dir=tmp_path), run.facts.digest)
    made = stage.made(run, run.facts.digest)
    assert stage.stored(run.store, run.facts.digest) == made
    assert stage.stored(run.store, "another") is None


def test_a_version_is_compared_after_an_upgrade_though_its_data_are_gone(
    judged: Judged, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ONNX Runtime opened it opens in its next version; it could not be made of other data."""
    made = stage.made(judged.run, judged.run.facts.digest)
    monkeypatch.setattr(OnnxRuntime, "code_version", classmethod(lambda _: "another"))
    assert stage.stored(judged.run.store, judged.run.facts.digest) == made


def test_what_has_no_original_is_told_once_and_its_errors_are_watched(
    judged: Judged, tmp_path: Path, new_tracker: Callable[[Path], Tracker]
) -> None:
    tracker, told = new_tracker(tmp_path), list[str]()
    tracker.register(judged.run, tracker.begin(judged.run), judged.package(judged.fp32), judged.fp32)
    watched = Rules.model_validate({"variant_drift": {"max_disagreement": 0.1}, "errors": {}})
    session = Session(
        Asked("images", "http://127.0.0.1:9", tmp_path), tracker, watched, tmp_path / "gone.yaml", told.append
    )
    reading = Reading(0.0, "images", "1", {"200": 0.0, "500": 0.0}, {}, {}, None, None, None)
    with ExitStack() as stack:
        served = Monitored(session, reading, stack, State("1"))
        until = time.monotonic() + 120
        while not told:
            assert time.monotonic() < until
            time.sleep(0.1)
            served.look(None)
        assert "version 1 is not compared" in told[0]
        served._again = 0.0  # an hour later
        served.look(None)
        while served._comparer is not None:
            time.sleep(0.1)
            served.look(None)
        fail(served, session, reading)
    assert [one["rule"] for one in session.breaches] == ["errors"]
    assert len(told) == 2
    run = tracker.monitored("images", "1")
    assert "not-compared.json" in [found.path for found in tracker.client.list_artifacts(run)]


def test_labels_come_to_the_version_that_answered(tracker: Tracker, name: str, tmp_path: Path) -> None:
    """Those of the second are a row of its own while the third serves; a row that is none is told once."""
    for version, identity in (("2", "a"), ("3", "b")):
        (tmp_path / version).mkdir()
        columns = {"row": 0, "original": 1, "served": int(version)}
        rows = {key: np.array([value]) for key, value in columns.items()}
        Answers(tmp_path / version).add({"id": np.array([identity]), **rows}, "1")
    file, told = tmp_path / "labels.csv", list[str]()
    late = LateLabels(file, Record(tracker, name, "3"), told.append)
    place = Place()
    assert late.since(place, tmp_path / "3", 1) == (None, place)
    file.write_text("request_id,label\na,2\nb,2\nc\n")
    joined, place = late.since(place, tmp_path / "3", 1)
    assert joined is not None
    assert joined.served.tolist() == [False]
    assert late.since(place, tmp_path / "3", 2) == (None, place)
    assert len(told) == 1
    assert "1 rows of" in told[0]
    late.record(3)
    metrics = tracker.client.get_run(tracker.monitored(name, "2")).data.metrics
    assert metrics == {"late.labels": 1, "late.served_right": 1, "late.original_right": 0}
    file.write_text("request\n")
    for step in (4, 5):
        assert late.since(place, tmp_path / "3", step) == (None, place)
    assert len(told) == 2


@pytest.mark.parametrize("step", ["_follow", "keep"])
def test_labels_of_a_monitor_that_was_killed_as_it_acted_on_them_count_for_the_next_one(
    tracker: Tracker, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Before it went back, or before what it knew by then was written down."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    folder, count = tmp_path / "3", 1000
    folder.mkdir()
    columns = {"row": np.zeros(count, int), "original": np.ones(count, int), "served": np.full(count, 2)}
    ids = np.arange(count).astype(str)
    Answers(folder).add({"id": ids, **columns}, "1")
    (tmp_path / "labels.csv").write_text("request_id,label\n" + "".join(f"{one},1\n" for one in ids))
    watched = Rules.model_validate({"quality": {"min": 0.9, "then": ["rollback"]}})
    asked = Asked(name, "http://127.0.0.1:9", tmp_path, labels=tmp_path / "labels.csv")
    reading = Reading(0.0, name, "3", {}, {}, {}, None, None, None)

    def monitored(stack: ExitStack) -> Monitored:
        session = Session(asked, tracker, watched, None, print)
        served = Monitored(session, reading, stack, State.read(session.state_path).for_version("3"))
        comparer: Any = SimpleNamespace(folder=folder, news=lambda last: ({}, last))
        served._comparer, served._knows = comparer, True
        return served

    with ExitStack() as stack, monkeypatch.context() as patch:
        patch.setattr(Monitored if step == "_follow" else Session, step, killed)
        with pytest.raises(KeyboardInterrupt):
            monitored(stack).look(None)
    for _ in range(2):
        with ExitStack() as stack:
            served = monitored(stack)
            served.look(None)
        assert served.watch.state.of("quality_min").seen == count
    assert champion(tracker, name) == "2"


def test_a_full_disk_keeps_no_monitor_from_going_back(
    tracker: Tracker, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has seen is in memory, and decides; that it is not kept is said once."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pareflow.store.replace", full)
    told = list[str]()
    watched = Rules.model_validate({"every_s": 5, "errors": {"then": ["rollback"]}})
    session = Session(Asked(name, "http://127.0.0.1:9", tmp_path), tracker, watched, None, told.append)
    reading = Reading(0.0, name, "3", {"200": 0.0, "500": 0.0}, {}, {}, None, None, None)
    with ExitStack() as stack:
        served = Monitored(session, reading, stack, State("3"))
        fail(served, session, reading)
    assert champion(tracker, name) == "2"
    assert [words for words in told if "No space left" in words] == told[:1]


def test_a_disk_that_takes_no_lock_holds_up_a_rollback_until_it_does(
    tracker: Tracker, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that trouble made read-only: the monitor goes on, and goes back once that is mended."""

    def refuses(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "aliases.lock")

    watched = Rules.model_validate({"every_s": 5, "errors": {"then": ["rollback"]}})
    session = Session(Asked(name, "http://127.0.0.1:9", tmp_path), tracker, watched, None, print)
    reading = Reading(0.0, name, "3", {"200": 0.0, "500": 0.0}, {}, {}, None, None, None)
    with ExitStack() as stack:
        served = Monitored(session, reading, stack, State("3"))
        with monkeypatch.context() as patch:
            patch.setattr("tasks.locking.lock_file", refuses)
            fail(served, session, reading)
            served.look(None)
            served.record()
        assert champion(tracker, name) == "3"
        served.look(None)
    assert champion(tracker, name) == "2"
    assert [one["rolled_back_to"] for one in session.breaches] == [None, "2"]


def test_a_breach_that_no_artifact_can_be_kept_of_is_followed(
    tracker: Tracker, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The embedded MLflow's folder is full, which whoever must record there is told."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    run = tracker.monitored(name, "3")
    monkeypatch.setattr("mlflow.MlflowClient.log_dict", full)
    with pytest.raises(StoreError, match="No space left on device") as caught:
        tracker.note(run, {}, "note.json")
    assert caught.value.exit_code == 4
    watched = Rules.model_validate({"every_s": 5, "errors": {"then": ["rollback"]}})
    session = Session(Asked(name, "http://127.0.0.1:9", tmp_path), tracker, watched, None, print)
    reading = Reading(0.0, name, "3", {"200": 0.0, "500": 0.0}, {}, {}, None, None, None)
    with ExitStack() as stack:
        fail(Monitored(session, reading, stack, State("3")), session, reading)
    assert champion(tracker, name) == "2"


def test_without_a_free_descriptor_nothing_is_compared_and_the_rest_is_watched(
    tracker: Tracker, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where the disk is full: it is tried again, as what a comparing process died of."""

    def exhausted(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("tasks.watching.RegistrySource.copy", exhausted)
    watched = Rules.model_validate({"variant_drift": {"max_disagreement": 0.1}})
    told = list[str]()
    asked, config = Asked(name, "http://127.0.0.1:9", tmp_path), tmp_path / "pipeline.yaml"
    session = Session(asked, tracker, watched, config, told.append)
    reading = Reading(0.0, name, "3", {}, {}, {}, None, None, None)
    with ExitStack() as stack:
        Monitored(session, reading, stack, State("3")).look(reading)
    assert "Too many open files" in told[0]
    assert holders(Store(tmp_path / "store")) == []


def test_what_cannot_be_read_is_not_compared_and_ends_no_monitor(
    tracker: Tracker, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reference that another version of the monitor wrote, of objects."""

    def unreadable(*_: object) -> None:
        raise ValueError("Object arrays cannot be loaded when allow_pickle=False")

    monkeypatch.setattr("tasks.watching.RegistrySource.copy", unreadable)
    watched, told = Rules.model_validate({"variant_drift": {"max_disagreement": 0.1}}), list[str]()
    asked, config = Asked(name, "http://127.0.0.1:9", tmp_path), tmp_path / "pipeline.yaml"
    session = Session(asked, tracker, watched, config, told.append)
    reading = Reading(0.0, name, "3", {}, {}, {}, None, None, None)
    with ExitStack() as stack:
        served = Monitored(session, reading, stack, State("3"))
        for _ in range(2):
            served._again = 0.0
            served.look(reading)
    assert [words for words in told if "allow_pickle" in words] == told
    assert len(told) == 1


def test_a_server_that_can_keep_no_request_is_told_of_once(
    tracker: Tracker, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until one is kept: rules about requests would wait for ever."""
    monkeypatch.setattr(Monitored, "_compared", lambda *_: [])
    watched, told = Rules.model_validate({"variant_drift": {"max_disagreement": 0.1}}), list[str]()
    session = Session(Asked(name, "http://127.0.0.1:9", tmp_path), tracker, watched, None, told.append)
    reading = Reading(0.0, name, "3", {}, {}, {}, None, None, None)
    with ExitStack() as stack:
        served = Monitored(session, reading, stack, State("3"))
        for unkeepable, kept in ((0, 0), (3, 1), (4, 0), (5, 0)):
            figures = {"request_log.unkeepable": float(unkeepable), "request_log.kept": float(kept)}
            served.look(replace(reading, figures=figures))
            assert len(told) == (unkeepable >= 4)
    assert "no request can be kept" in told[0]


@pytest.mark.parametrize("status", [b"401 Unauthorized", b"403 Forbidden", b"404 Not Found", b"502 Bad"])
def test_a_server_that_refuses_amid_the_run_is_told_once_and_asked_again(
    tracker: Tracker, tmp_path: Path, status: bytes
) -> None:
    """A proxy before it is set up anew, or it is asked while it is replaced."""
    watched, told = Rules.model_validate({"every_s": 0.01, "errors": {}}), list[str]()
    with replying(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n") as url:
        session = Session(Asked("images", url, tmp_path), tracker, watched, None, told.append)
        readings = session._readings(None)
        assert [next(readings) for _ in range(3)] == [None] * 3
    assert len(told) == 1
    assert status[:3].decode() in told[0]


def test_a_rule_that_retrains_needs_the_pipeline_that_it_is_to_train(
    tracker: Tracker, tmp_path: Path
) -> None:
    """A version registered from a folder that is not here: its breach would start a run of no pipeline."""
    watched = Rules.model_validate({"errors": {"then": ["retrain"]}})
    reading = Reading(0.0, "images", "3", {}, {}, {}, None, None, None)
    session = Session(
        Asked("images", "http://127.0.0.1:9", tmp_path, seconds=0), tracker, watched, None, print
    )
    with pytest.raises(InputError, match="those that retrain, need the version's pipeline"):
        session.follow(reading)


def test_a_monitor_of_errors_holds_up_no_collection(tmp_path: Path) -> None:
    """Whoever holds the store while it looks is seen by the server that it asks."""
    metrics, store, seen = Metrics(), Store(tmp_path / "store"), list[list[Holder]]()
    metrics.serves("images", "local", {}, "here")

    class Told(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(holders(store))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(metrics.text())

        def log_message(self, *_: object) -> None:
            pass

    rules = tmp_path / "rules.yaml"
    rules.write_text("every_s: 0.1\nerrors: {}\n")
    with ThreadingHTTPServer(("127.0.0.1", 0), Told) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        asked = Asked("images", f"http://127.0.0.1:{server.server_port}", tmp_path, rules=rules, seconds=1)
        assert monitor(asked, print)["looks"] > 1
        server.shutdown()
    assert len(seen) > 1
    assert not any(seen)


def test_a_monitor_holds_the_store_until_its_comparing_process_has_read(
    judged: Judged,
    new_tracker: Callable[[Path], Tracker],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And no longer, though it runs for months; the next comparing process needs them again."""
    monkeypatch.setattr("tasks.watching.AGAIN_S", 0.0)
    shutil.copytree(judged.run.data_dir / "store", tmp_path / "store")
    tracker, store = new_tracker(tmp_path), Store(tmp_path / "store")
    tracker.register(judged.run, tracker.begin(judged.run), judged.package(judged.fp32), judged.fp32)
    watched = Rules.model_validate({"variant_drift": {"max_disagreement": 0.1}})
    asked = Asked("images", "http://127.0.0.1:9", tmp_path)
    session = Session(asked, tracker, watched, judged.run.config, print)
    reading = Reading(0.0, "images", "1", {}, {}, {}, None, None, None)

    def holds() -> list[str]:
        return [holder.what for holder in holders(store)]

    with ExitStack() as stack:
        served = Monitored(session, reading, stack, State("1"))
        assert holds() == []
        for _ in range(2):
            served.look(None)
            assert holds() == ["monitor images"]
            until = time.monotonic() + 120
            while holds():
                assert time.monotonic() < until
                time.sleep(0.1)
                served.look(None)
            assert (tmp_path / "monitoring" / "images" / "1" / REFERENCE).exists()
            assert served._comparer is not None
            child = served._comparer._child
            child.kill()
            while served._comparer is not None:
                served.look(None)
            assert not Path(child._folder.name).exists()  # nothing of it is left, as often as it dies
        served.look(None)
        assert holds() == ["monitor images"]
    assert holds() == []


def test_rows_and_breaches_are_kept_in_mlflow(
    tracker: Tracker, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that came while it was away; what is no number is left out."""
    record = Record(tracker, name, "3")
    away = Record(Tracker("http://127.0.0.1:9", None, tracker.locks), name, "3")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away.add({"live.p50_ms": 1.0}, 1)
    record.pending = away.pending
    record.add({"live.p50_ms": 2.0, "live.p99_ms": float("nan")}, 2)
    run = tracker.monitored(name, "3")
    history = tracker.client.get_metric_history(run, "live.p50_ms")
    assert ([point.value for point in history], [point.step for point in history]) == ([1.0, 2.0], [1, 2])
    assert "live.p99_ms" not in tracker.client.get_run(run).data.metrics
    record.breach({**breach("3").to_json(), "name": name}, 7)
    (artifact,) = tracker.client.list_artifacts(run, "breaches")
    assert artifact.path == "breaches/00000007-errors.json"


def test_a_champion_that_nobody_watches_any_more_is_told_once(
    tracker: Tracker, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until a row comes again."""
    told = list[tuple[str, ...]]()
    monkeypatch.setattr("tasks.reconciling.emit", lambda *words: told.append(words[:3]))
    record, looks = Record(tracker, name, "3"), Looks(tmp_path / "looks.db")

    def silent(now: float) -> list[str]:
        found = silent_monitors(Look(looks, now, 120, 1), tracker)
        return [one["version"] for one in found if one["name"] == name]

    assert silent(0) == []  # nobody ever watched it
    for step in (1, 2):
        record.add({"live.p50_ms": 1.0}, step)
        assert silent(step * SILENT_S) == []
    assert silent(3 * SILENT_S) == silent(3 * SILENT_S + 300) == ["3"]
    assert [one for one in told if one[1] == name] == [("monitoring.silent", name, "3")]
    record.add({"live.p50_ms": 1.0}, 3)
    assert silent(3 * SILENT_S + 600) == []
    assert silent(5 * SILENT_S) == ["3"]
    assert len([one for one in told if one[1] == name]) == 2


def test_a_new_champion_that_no_monitor_has_seen_is_told_of_too(
    tracker: Tracker, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The monitor died before it was promoted."""
    monkeypatch.setattr("tasks.reconciling.emit", lambda *_: None)
    looks = Looks(tmp_path / "looks.db")
    Record(tracker, name, "2").add({"live.p50_ms": 1.0}, 1)
    for now in (0.0, 2 * SILENT_S):
        found = silent_monitors(Look(looks, now, 120, 1), tracker)
    assert [one["version"] for one in found if one["name"] == name] == ["3"]


def otherwise(package: Path, into: Path) -> Path:
    """The package with the first output's classes turned by one: whole, golden, and wrong."""
    shutil.copytree(package, into, ignore=shutil.ignore_patterns("manifest.json"))
    graph = onnx.load(into / "artifact" / "model.onnx")
    (output,) = graph.graph.output
    for node in graph.graph.node:
        for position, name in enumerate(node.output):
            if name == output.name:
                node.output[position] = "straight"
    order = helper.make_tensor("order", onnx.TensorProto.INT64, [4], [1, 2, 3, 0])
    graph.graph.initializer.append(order)
    graph.graph.node.append(helper.make_node("Gather", ["straight", "order"], [output.name], axis=1))
    onnx.save(graph, into / "artifact" / "model.onnx")
    document = json.loads((into / "model.json").read_text())
    (into / "model.json").unlink()
    write_manifest(into, {key: value for key, value in document.items() if key != "files"})
    model, golden = PackagedModel(into), json.loads((into / "golden.json").read_text())
    outputs = {name: array.tolist() for name, array in model.outputs(golden["samples"]).items()}
    predictions = as_json(model.predict(golden["samples"]))
    golden |= {"outputs": outputs, "predictions": predictions}
    (into / "golden.json").write_text(json.dumps(golden))
    (into / "model.json").unlink()
    write_manifest(into, {key: value for key, value in document.items() if key != "files"})
    return into


@pytest.fixture
def wrong_champion(judged: Judged, new_tracker: Callable[[Path], Tracker], tmp_path: Path) -> Tracker:
    """Version 1 was champion; version 2, which answers otherwise, is."""
    shutil.copytree(judged.run.data_dir / "store", tmp_path / "store")  # it holds their original
    tracker = new_tracker(tmp_path)
    parent = tracker.begin(judged.run)
    first = tracker.register(judged.run, parent, judged.package(judged.fp32), judged.fp32)
    promote(tracker, judged.run, str(first.version), judged.fp32)
    folder = tmp_path / "second" / "data" / "package"
    folder.parent.mkdir(parents=True)
    tags = {
        CONTENT: content_digest(otherwise(judged.package(judged.fp32), folder), FORMAT),
        FORMAT_TAG: str(FORMAT),
        CONFIG: first.tags[CONFIG],
    }
    tracker.client.create_model_version("images", (tmp_path / "second").as_uri(), tags=tags)
    tracker.set_alias("images", "previous", "1")
    tracker.set_alias("images", "champion", "2")
    return tracker


@pytest.fixture
def server(command: Callable[..., list[str]], tmp_path: Path) -> Iterator[Server]:
    """The champion, served, every request kept."""
    kept = tmp_path / "requests.yaml"
    kept.write_text("share: 1\nflush_s: 0.5\n")
    champion = ["serve", "models:/images@champion", "--data-dir", tmp_path, "--poll-s", 0.2]
    started = Server(command(*champion, "--request-log", kept, "--port", 0))
    yield started
    started.process.kill()
    started.process.communicate()


@pytest.mark.slow
def test_a_champion_that_answers_otherwise_is_rolled_back(
    wrong_champion: Tracker,
    server: Server,
    command: Callable[..., list[str]],
    judged: Judged,
    tmp_path: Path,
) -> None:
    """A real server, MLflow and monitor: the first version answers again, and what happened is on record."""
    rules = tmp_path / "rules.yaml"
    rules.write_text("every_s: 1\nrecord_s: 2\nvariant_drift: {max_disagreement: 0.1, then: [rollback]}\n")
    watching = ["monitor", "images", "--url", server.url, "--rules", rules, "--seconds", 40, "--json"]
    assert server.version() == "2"
    monitor = subprocess.Popen(
        command(*watching, "--data-dir", tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    stop = threading.Event()

    def keep_asking() -> None:
        seed = 0
        while not stop.is_set():
            ask(server, 1, seed := seed + 1)
            time.sleep(0.05)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        server.becomes("1", within_s=90)
    finally:
        stop.set()
        asking.join()
        printed, said = monitor.communicate(timeout=120)
    assert monitor.returncode == 3, said
    (found,) = json.loads(printed)["breaches"]
    assert (found["rule"], found["version"], found["rolled_back_to"]) == ("variant_drift", "2", "1")
    assert found["estimate"] > 0.5
    assert "rolled back to version 1" in said
    run = wrong_champion.monitored("images", "2")
    metrics = wrong_champion.client.get_run(run).data.metrics
    assert metrics["variant_drift.breached"] == 1
    assert metrics["live.throughput_per_s"] > 0
    assert BREACH in wrong_champion.version("images", "2").tags
    with urllib.request.urlopen(f"{server.url}/metrics") as answer:
        assert b"pareflow_request_log_total" in answer.read()
