"""Retraining: only for what is new, and never to a champion that is worse than the one before."""

import dataclasses
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.local_server import local_server
from flows.retraining import run_retraining
from pareflow.errors import SpecError
from pareflow.stages.promotion import against_champion
from pareflow.stages.run import Row, Run
from pareflow.store import Store
from tasks import audit
from tasks.execution import Plain
from tasks.promotion import challenge, number, promote
from tasks.retraining import beside_champion, news
from tasks.tracking import Tracker
from tests.orchestration.conftest import PATIENCE_SECONDS, PIPELINE, Finished, Judged, refused
from tests.orchestration.test_deployments import Api

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def tracker(new_tracker: Callable[[Path], Tracker], tmp_path: Path) -> Tracker:
    return new_tracker(tmp_path / "data")


def champion_of(tracker: Tracker, judged: Judged, row: Row) -> str:
    parent = tracker.begin(judged.run)
    version = str(tracker.register(judged.run, parent, judged.package(row), row).version)
    challenge(tracker, judged.run, version)
    promote(tracker, judged.run, version, row)
    return version


def with_digests(run: Run, digest: str, data_digest: str | None = None) -> Run:
    facts = dataclasses.replace(run.facts, digest=digest, data_digest=data_digest or run.facts.data_digest)
    return dataclasses.replace(run, facts=facts)


def test_without_a_champion_there_is_everything_to_train(tracker: Tracker, judged: Judged) -> None:
    found = news(tracker, judged.run)
    assert (found["champion"], found["new"]) == (None, "there is no champion")


def test_the_data_and_the_workload_say_whether_there_is_anything_new(
    tracker: Tracker, judged: Judged
) -> None:
    version = champion_of(tracker, judged, judged.int8)
    same = news(tracker, judged.run)
    assert same["new"] is None
    assert same["why"] == f"version {version}, the champion, was trained on these data, by this code"
    grown = news(tracker, with_digests(judged.run, digest="other", data_digest="more"))
    assert (grown["champion"], grown["new"]) == (version, "its data changed")
    assert grown["data_digest"] == {"champion": judged.run.facts.data_digest, "now": "more"}
    recoded = news(tracker, with_digests(judged.run, digest="other"))
    assert recoded["new"] == "its workload changed"


def test_a_search_that_was_stopped_goes_on_though_the_champion_is_of_it(
    tracker: Tracker, judged: Judged, tmp_path: Path
) -> None:
    """Until it has ended by itself; another run's is no news."""
    champion_of(tracker, judged, judged.int8)
    run = dataclasses.replace(judged.run, data_dir=tmp_path)
    run.output.mkdir(parents=True)
    parent = tracker.begin(run)
    found = [news(tracker, run)["new"]]
    tracker.stop(parent)
    found += [news(tracker, run)["new"], news(tracker, judged.with_objective("latency_p50"))["new"]]
    for stopped in (True, False):
        tracker.finish(run, parent, {"verdict": None}, stopped=stopped)
        found.append(news(tracker, run)["new"])
    going_on = "its search was stopped, and goes on"
    assert found == [None, going_on, None, going_on, None]


@pytest.mark.slow
def test_what_was_rejected_against_this_champion_is_not_trained_again(
    tracker: Tracker, judged: Judged
) -> None:
    """By size the int8 file is champion; the fp32 one was trained on other data, and rejected."""
    champion = champion_of(tracker, judged, judged.int8)
    changed = with_digests(judged.run, digest="other", data_digest="more")
    parent = tracker.begin(changed)
    version = str(tracker.register(changed, parent, judged.package(judged.fp32), judged.fp32).version)
    challenge(tracker, judged.run, version)
    assert news(tracker, changed)["new"] == "its data changed"
    promote(tracker, judged.run, version, judged.fp32)
    found = news(tracker, changed)
    assert found["new"] is None
    assert found["why"].startswith(f"version {version} was trained on it before: version {champion} stays")


def test_the_margin_is_for_what_was_trained_anew_alone(judged: Judged) -> None:
    """The fp32 file is several times as large as the int8 one: by `size`, a gain far below 1."""
    package = judged.package(judged.int8)
    least = judged.run.spec.model_copy(
        update={"retraining": judged.run.spec.retraining.model_copy(update={"objective_margin": 0.9})}
    )
    run = dataclasses.replace(judged.run, spec=least)
    assert judged.fp32.size_mib
    assert judged.int8.size_mib
    gain = judged.int8.size_mib / judged.fp32.size_mib
    assert run.id == judged.run.id  # the margin changes nothing of what is run
    decisions = {}
    for retrained in (False, True):
        verdict = against_champion(run, judged.fp32, package, retrained=retrained)
        (check,) = [check for check in verdict.checks if check.clause == "do_no_harm"]
        assert check.estimate == pytest.approx(gain, rel=0.05)
        decisions[retrained] = (check.limit, check.decision)
    assert decisions[False] == (1.0, "reject")
    limit, decision = decisions[True]
    assert limit == pytest.approx(0.1)
    assert decision == "promote"


def test_the_original_of_the_same_training_loses_nothing_to_its_own_export(
    tracker: Tracker, judged: Judged
) -> None:
    version = champion_of(tracker, judged, judged.fp32)
    found = beside_champion(tracker, judged.run, version)
    assert found is not None
    assert found["original"] == found["champion"]
    assert found["drop"]["estimate"] == 0
    assert found["decision"] == "promote"
    assert beside_champion(tracker, judged.run, None) is None


def test_a_champion_that_is_damaged_is_told_and_ends_no_retraining(tracker: Tracker, judged: Judged) -> None:
    version = champion_of(tracker, judged, judged.int8)
    for model in Path(str(tracker.artifacts)).rglob("package/artifact/*.onnx"):
        model.write_bytes(b"noise")
    found = beside_champion(tracker, judged.run, version)
    assert found is not None
    assert (found["decision"], "as it was packaged" in found["reason"]) == (None, True)
    shutil.rmtree(str(tracker.artifacts))
    found = beside_champion(tracker, judged.run, version)
    assert found is not None
    assert (found["decision"], "downloading" in found["reason"]) == (None, True)


def test_a_pipeline_with_mistakes_is_refused_before_anything_starts(tmp_path: Path) -> None:
    config = tmp_path / "pipeline.yaml"
    config.write_text(json.dumps({"name": "x", "workload": "w.py", "sla": {}, "retraining": {"margin": 1}}))
    error = refused(SpecError, "retrain", config, "--data-dir", tmp_path / "data")
    assert error.exit_code == 2
    assert "objective_margin" in str(error)  # did you mean
    assert not (tmp_path / "data").exists()


class Nothing(Plain):
    """No step is made."""

    def call(self, *_: Any) -> Any:
        return None


def test_a_retraining_bounds_the_store(
    pipeline_file: Callable[..., Path],
    new_tracker: Callable[[Path], Tracker],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As a pipeline does, at its end: what nobody needs goes."""
    new_tracker(tmp_path)
    store = Store(tmp_path / "store")
    store.ensure("key", lambda into: (into / "file").touch())
    config = pipeline_file("bounded", budget={**PIPELINE["budget"], "store_gib": 0})
    monkeypatch.setattr("flows.retraining.news", lambda *_: {"new": "its data changed", "champion": None})
    monkeypatch.setattr("flows.retraining.optimize", lambda *_: {})
    run_retraining(config, tmp_path, Nothing())
    assert store.find("key") is None


@pytest.mark.slow
def test_a_retrained_model_that_is_worse_stays_challenger_and_says_so(
    finished: Finished,
    measured_already: Path,
    pipeline_file: Callable[..., Path],
    pareflow_command: Command,
) -> None:
    """Nothing new; then hardly trained, and so worse; then, against the same champion, known to be."""
    data_dir = measured_already
    arguments = ("--data-dir", data_dir, "--json", "--no-orchestrator")
    first, none = (pareflow_command("retrain", finished.config, *arguments) for _ in range(2))
    assert (first.returncode, none.returncode) == (0, 0), first.stderr + none.stderr
    assert json.loads(first.stdout)["retraining"]["new"] == "there is no champion"
    assert json.loads(first.stdout)["registered"]["alias"] == "champion"
    assert json.loads(none.stdout)["retraining"]["new"] is None

    reference = {"file": {"path": "images.py", "settings": {"steps": 1}}}
    config = pipeline_file("hardly", workload=reference)
    done = pareflow_command("retrain", config, *arguments)
    document = json.loads(done.stdout)
    assert document["retraining"]["new"] == "its workload changed"
    original, registered = document["retraining"]["original"], document["registered"]
    assert original["decision"] == "reject"
    assert "the new training is worse" in original["reason"]
    assert registered["alias"] == "challenger"
    assert registered["reason"].startswith("version 1 stays champion (reject: quality.max_drop")
    tracker = Tracker.open(data_dir)
    assert number(tracker, "images", "champion") == "1"
    assert audit.history(tracker, "images")[-1]["action"] == "rejected"

    again = pareflow_command("retrain", config, *arguments)
    assert "was trained on it before" in json.loads(again.stdout)["retraining"]["why"]


@pytest.mark.slow
def test_more_training_is_promoted_and_a_run_that_awaits_approval_ends_so(
    finished: Finished,
    measured_already: Path,
    pipeline_file: Callable[..., Path],
    pareflow_command: Command,
    tmp_path: Path,
) -> None:
    """Under a real server: the state of the run, the events of the moves, and the approval."""
    data_dir = measured_already
    first = pareflow_command("optimize", finished.config, "--data-dir", data_dir, "--no-orchestrator")
    assert first.returncode == 0, first.stderr
    reference = {"file": {"path": "images.py", "settings": {"steps": 60}}}
    config = pipeline_file("further", workload=reference, promotion="approval", approval_hours=2)
    with local_server(tmp_path / "server", linger_seconds=1) as url:
        done = pareflow_command("retrain", config, "--data-dir", data_dir, "--json")
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        api = Api(url)
        (run,) = api.post("flow_runs/filter", {"flows": {"name": {"any_": ["retraining"]}}})
        assert (run["state_type"], run["state_name"]) == ("COMPLETED", "AwaitingApproval")
        assert "awaiting approval until" in run["state"]["message"]
        version = document["registered"]["version"]
        tracker = Tracker.open(data_dir)
        assert number(tracker, "images", "champion") == "1" != version

        by_hand = pareflow_command("promote", config, "--data-dir", data_dir)
        assert by_hand.returncode == 2
        assert "must be approved" in by_hand.stderr
        said = ("--by", "Ada", "--reason", "it is better")
        moved = pareflow_command("promote", "images", "--approve", *said, "--data-dir", data_dir, "--json")
        assert moved.returncode == 0, moved.stderr
        assert json.loads(moved.stdout)["alias"] == "champion"
        assert number(tracker, "images", "champion") == version
        wanted, actions = {"challenged", "awaiting_approval", "approved", "promoted"}, set[str]()
        until = time.monotonic() + PATIENCE_SECONDS
        while not wanted <= actions:  # the server writes events down some seconds after it takes them
            assert time.monotonic() < until, actions
            time.sleep(0.5)
            told = api.post("events/filter", {"filter": {"event": {"prefix": ["pareflow.model."]}}})["events"]
            actions = {event["event"].rpartition(".")[2] for event in told}
        (row,) = [row for row in audit.history(tracker, "images") if row["action"] == "awaiting_approval"]
        assert row["flow_run"] == run["id"]
