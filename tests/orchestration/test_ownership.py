"""Owners of a run's record: several at once, one after another, and none that was declared dead."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from pareflow.errors import TrackingError
from tasks import owners
from tasks.heartbeat import owned
from tasks.ownership import DEAD, FLOW_RUN, OWNED, OWNER, Owner, beats
from tasks.tracking import Tracker
from tests.orchestration.conftest import PATIENCE_SECONDS, Judged


@pytest.fixture(scope="module")
def tracker(new_tracker: Callable[[Path], Tracker], tmp_path_factory: pytest.TempPathFactory) -> Tracker:
    return new_tracker(tmp_path_factory.mktemp("tracked") / "data")


@pytest.fixture
def parent(tracker: Tracker, request: pytest.FixtureRequest) -> Iterator[str]:
    """A run that has just begun."""
    experiment = tracker.client.create_experiment(request.node.name, str(tracker.artifacts))
    run_id = str(tracker.client.create_run(experiment).info.run_id)
    yield run_id
    tracker.client.set_terminated(run_id)


def status(tracker: Tracker, run_id: str) -> str:
    return str(tracker.client.get_run(run_id).info.status)


def test_two_commands_may_own_one_run(tracker: Tracker, parent: str) -> None:
    with owned(tracker, parent) as first:
        with owned(tracker, parent) as second:
            (run,) = owners.owned_runs(tracker)
            assert set(run.beats) == {first.owner, second.owner}
        first.check_alive()
        assert status(tracker, parent) == "RUNNING"
    assert owners.owned_runs(tracker) == []
    assert status(tracker, parent) == "KILLED"


def test_a_finished_run_stays_finished(tracker: Tracker, parent: str) -> None:
    with owned(tracker, parent):
        tracker.client.set_terminated(parent, "FINISHED")
    assert status(tracker, parent) == "FINISHED"
    with pytest.raises(RuntimeError), owned(tracker, parent):
        raise RuntimeError
    assert status(tracker, parent) == "FINISHED"


def test_a_run_that_was_given_up_goes_on(tracker: Tracker, parent: str) -> None:
    with pytest.raises(RuntimeError), owned(tracker, parent):
        raise RuntimeError
    assert status(tracker, parent) == "KILLED"
    with owned(tracker, parent):
        assert status(tracker, parent) == "RUNNING"


def test_an_owner_declared_dead_beats_no_more(tracker: Tracker, parent: str) -> None:
    owner = Owner.new(None)
    owners.take(tracker, parent, owner)
    assert owners.beat(tracker, parent, owner, 1)
    owners.declare_dead(tracker, parent, owner)
    assert not owners.beat(tracker, parent, owner, 2)
    tags = tracker.client.get_run(parent).data.tags
    assert DEAD + owner.name in tags
    assert OWNER + owner.name not in tags


def test_who_comes_after_a_dead_owner_is_not_taken_for_it(tracker: Tracker, parent: str) -> None:
    with owned(tracker, parent) as late:
        assert late.owner is not None
        owners.declare_dead(tracker, parent, late.owner)
        with owned(tracker, parent) as next_one:
            next_one.check_alive()
            with pytest.raises(TrackingError, match="declared dead"):
                late.check_alive()


def owners_of(tracker: Tracker, run_id: str) -> set[Owner]:
    """As reconcile finds them."""
    return {owner for run in owners.owned_runs(tracker) if run.run_id == run_id for owner in run.beats}


def away(*_: object, **__: object) -> None:
    raise MlflowException("away", error_code=TEMPORARILY_UNAVAILABLE)


def test_a_server_that_is_away_for_a_while_misses_beats_and_hears_the_next(
    tracker: Tracker, parent: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Else an outage of seconds would make whoever works on the run dead, and a second owner would begin."""
    missed, record = list[str](), MlflowClient.log_batch

    def away_twice(client: MlflowClient, run_id: str, **what: Any) -> None:
        if len(missed) < 2:
            missed.append(run_id)
            away()
        record(client, run_id, **what)

    def last_beat() -> int:
        (number,) = beats(tracker.client.get_run(parent).data.tags).values()
        return int(number)

    with owned(tracker, parent, every_s=0.02):
        monkeypatch.setattr(MlflowClient, "log_batch", away_twice)
        until(lambda: len(missed) == 2)
        heard = last_beat()
        until(lambda: last_beat() > heard)
    assert caplog.text.count("was not recorded: ") == 2
    assert status(tracker, parent) == "KILLED"


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_server_that_is_away_at_the_end_hides_not_how_the_run_ended(
    tracker: Tracker, parent: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its owner is left behind, and is declared dead like one that was killed."""

    def end_while_it_is_away() -> None:
        with owned(tracker, parent):
            monkeypatch.setattr(MlflowClient, "delete_tag", away)
            raise RuntimeError("its own end")

    with pytest.raises(RuntimeError, match="its own end"):
        end_while_it_is_away()
    monkeypatch.undo()
    assert f"the run {parent} keeps a dead owner" in caplog.text
    (left,) = owners_of(tracker, parent)
    owners.declare_dead(tracker, parent, left)
    assert (status(tracker, parent), owners_of(tracker, parent)) == ("KILLED", set())


def test_a_run_that_is_taken_up_while_a_dead_owner_is_removed_goes_on(
    tracker: Tracker, parent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, next_one, read = Owner.new(None), Owner.new(None), MlflowClient.get_run

    def meanwhile(client: MlflowClient, run_id: str) -> Run:
        found = read(client, run_id)
        monkeypatch.setattr(MlflowClient, "get_run", read)
        owners.take(tracker, parent, next_one)
        return found

    owners.take(tracker, parent, dead)
    monkeypatch.setattr(MlflowClient, "get_run", meanwhile)
    owners.declare_dead(tracker, parent, dead)
    assert (status(tracker, parent), owners_of(tracker, parent)) == ("RUNNING", {next_one})
    owners.leave(tracker, parent, next_one)
    assert status(tracker, parent) == "KILLED"


def test_who_beats_is_found_again_as_an_owner(tracker: Tracker, parent: str) -> None:
    owner = Owner.new(None)
    owners.take(tracker, parent, owner)
    tracker.client.delete_tag(parent, OWNED)
    assert owners_of(tracker, parent) == set()
    assert owners.beat(tracker, parent, owner, 1)
    assert owners_of(tracker, parent) == {owner}
    owners.leave(tracker, parent, owner)


def test_a_run_is_found_by_the_flow_runs_that_worked_on_it(tracker: Tracker, parent: str) -> None:
    owners.take(tracker, parent, Owner.new("0123-flow-run"))
    assert FLOW_RUN + "0123-flow-run" in tracker.client.get_run(parent).data.tags
    tracker.client.log_dict(parent, {"winner": "int8"}, "run.json")
    assert owners.outcome_of(tracker, "0123-flow-run") == {"winner": "int8"}
    assert owners.outcome_of(tracker, "another") is None


def test_the_outcome_of_a_flow_run_is_its_last_owner_s(tracker: Tracker, parent: str) -> None:
    """The first one died, on a machine of another kind, whose run of the pipeline is younger."""
    younger = tracker.client.create_run(tracker.client.get_run(parent).info.experiment_id).info.run_id
    first, last = (Owner.new("4567-flow-run") for _ in range(2))
    for run, owner, winner in ((younger, first, "long ago"), (parent, last, "int8")):
        owners.take(tracker, run, owner)
        tracker.client.log_dict(run, {"winner": winner}, "run.json")
    owners.declare_dead(tracker, younger, first)
    assert owners.outcome_of(tracker, "4567-flow-run") == {"winner": "int8"}


WRITES: dict[str, Callable[[Tracker, Judged, str], object]] = {
    "variant": lambda late, judged, parent: late.variant(judged.run, parent, judged.int8),
    "outcome": lambda late, judged, parent: late.finish(judged.run, parent, {"verdict": None}),
    "version": lambda late, judged, parent: late.register(
        judged.run, parent, judged.package(judged.int8), judged.int8
    ),
    "alias": lambda late, judged, _: late.set_alias("images", "champion", "1"),
}


@pytest.mark.parametrize("write", WRITES)
def test_a_late_writer_records_nothing(write: str, tracker: Tracker, judged: Judged, tmp_path: Path) -> None:
    parent = tracker.begin(judged.run)
    with owned(tracker, parent) as late:
        assert late.owner is not None
        owners.declare_dead(tracker, parent, late.owner)
        with pytest.raises(TrackingError, match="declared dead"):
            WRITES[write](late, judged, parent)
    experiment = tracker.client.get_run(parent).info.experiment_id
    assert [run.info.run_id for run in tracker.client.search_runs([experiment])] == [parent]
    assert tracker.client.search_registered_models() == []


def test_owners_are_found_among_more_experiments_than_a_page_holds(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an MLflow that a whole company shares."""
    monkeypatch.setattr(owners, "PAGE", 1)
    owner, names = Owner.new(None), ("first", "second", "third")
    runs = [tracker.client.create_run(tracker.experiment(name)).info.run_id for name in names]
    for run in runs:
        owners.take(tracker, run, owner)
    assert {*runs} <= {one.run_id for one in owners.owned_runs(tracker)}
    for run in runs:
        owners.leave(tracker, run, owner)
