"""A person's approval: asked for once, decided once, in time, and never instead of the gate."""

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app
from pareflow.errors import InputError
from tasks import audit
from tasks.approval import decide, decline, expire, file, requests
from tasks.promotion import Judgement, Promotion, number, settle
from tasks.reconciling import expired_approvals
from tasks.tracking import Tracker
from tests.orchestration.contenders import HERE, MODEL, bout, enter


@pytest.fixture
def tracker(new_tracker: Callable[[Path], Tracker], tmp_path: Path) -> Tracker:
    return new_tracker(tmp_path / "data")


def challenging(tracker: Tracker, score: float) -> str:
    version = enter(tracker, score)
    tracker.set_alias(MODEL, "challenger", version)
    return version


def asked(tracker: Tracker, version: str, hours: float = 1) -> Promotion:
    with tracker.moving(MODEL):
        return file(tracker, bout(tracker, version), hours)


def actions(tracker: Tracker) -> list[str]:
    return [row["action"] for row in audit.history(tracker, MODEL)]


def test_what_the_gate_promotes_waits_and_is_not_champion(tracker: Tracker) -> None:
    version = challenging(tracker, 1)
    moved = asked(tracker, version)
    (request,) = requests(tracker, MODEL, version).values()
    assert moved.alias == "challenger"
    assert moved.awaiting == request.expires
    assert "there was no champion" in moved.reason
    assert number(tracker, MODEL, "champion") is None
    until = datetime.fromisoformat(request.expires) - datetime.fromisoformat(request.asked)
    assert until == timedelta(hours=1)


def test_what_the_gate_rejects_is_not_asked_for(tracker: Tracker) -> None:
    champion, worse = enter(tracker, 2), challenging(tracker, 1)
    tracker.set_alias(MODEL, "champion", champion)
    moved = asked(tracker, worse)
    assert moved == Promotion(worse, "challenger", f"version {champion} stays champion")
    assert requests(tracker, MODEL, worse) == {}
    assert actions(tracker) == ["rejected"]


def test_an_approved_version_is_champion_and_the_record_says_by_whom(tracker: Tracker) -> None:
    version = challenging(tracker, 1)
    asked(tracker, version)
    moved = decide(tracker, bout(tracker, version, by="Ada", why="the team wants it"))
    assert (moved["version"], moved["alias"]) == (version, "champion")
    assert number(tracker, MODEL, "champion") == version
    rows = audit.history(tracker, MODEL)
    assert [(row["action"], row["state"]) for row in rows] == [
        ("awaiting_approval", "done"),
        ("approved", "done"),
        ("promoted", "done"),
    ]
    assert rows[-1]["by"] == "Ada"
    assert rows[-1]["reason"] == "the team wants it (there was no champion)"


def test_an_approval_does_not_beat_a_champion_that_came_meanwhile(tracker: Tracker) -> None:
    version, better = challenging(tracker, 1), enter(tracker, 2)
    asked(tracker, version)
    tracker.set_alias(MODEL, "champion", better)
    moved = decide(tracker, bout(tracker, version, by="Ada", why="yes"))
    assert moved["alias"] == "challenger"
    assert number(tracker, MODEL, "champion") == better


def test_a_declined_version_stays_challenger_and_is_not_asked_for_again(tracker: Tracker) -> None:
    version = challenging(tracker, 1)
    asked(tracker, version)
    assert decline(tracker, MODEL, "Ada", "not before the holidays")["alias"] == "challenger"
    again = asked(tracker, version)
    assert again.awaiting is None
    assert again.reason == "Ada declined it: not before the holidays"
    assert number(tracker, MODEL, "champion") is None


def test_a_command_declines_in_the_words_that_it_was_given(tracker: Tracker, tmp_path: Path) -> None:
    """It asks for no pipeline: the version names none, and nothing is measured."""
    version = challenging(tracker, 1)
    asked(tracker, version)
    said = ["--reject", "--by", "ada", "--reason", "not before the holidays"]
    where = ["--data-dir", str(tmp_path / "data"), "--json"]
    result = CliRunner().invoke(app, ["promote", MODEL, *said, *where])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert (document["version"], document["alias"]) == (version, "challenger")
    (request,) = requests(tracker, MODEL, version).values()
    assert (request.state, request.by, request.why) == ("declined", "ada", "not before the holidays")
    declined = audit.history(tracker, MODEL)[-1]
    assert (declined["action"], declined["by"], declined["reason"]) == ("declined", request.by, request.why)


def test_a_declined_version_is_not_asked_for_again_by_another_environment(tracker: Tracker) -> None:
    """As after a patch of the kernel; against another champion it is."""
    version, champion = challenging(tracker, 2), enter(tracker, 1)
    asked(tracker, version)
    decline(tracker, MODEL, "ada", "not before the holidays")
    with tracker.moving(MODEL):
        patched = bout(tracker, version, environment="f" * 64)
        assert file(tracker, patched, 1).reason == "ada declined it: not before the holidays"
        tracker.set_alias(MODEL, "champion", champion)
        assert file(tracker, patched, 1).awaiting is not None


def test_a_pending_request_keeps_its_time_however_often_a_run_asks(tracker: Tracker) -> None:
    version = challenging(tracker, 1)
    first = asked(tracker, version, hours=1)
    assert asked(tracker, version, hours=50) == first
    assert actions(tracker) == ["awaiting_approval"]


def test_nothing_can_be_decided_that_nobody_asked_for(tracker: Tracker) -> None:
    version = challenging(tracker, 1)
    with pytest.raises(InputError, match="nobody asked"):
        decide(tracker, bout(tracker, version, by="Ada", why="yes"))
    with pytest.raises(InputError, match="nobody asked"):
        decline(tracker, MODEL, "Ada", "no")


def overdue(tracker: Tracker, version: str) -> None:
    """Let the version's request be older than its time."""
    asked(tracker, version)
    (request,) = requests(tracker, MODEL, version).values()
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    tracker.tag_version(MODEL, version, request.tag, json.dumps(asdict(replace(request, expires=past))))


def test_a_request_is_over_when_its_time_is(tracker: Tracker) -> None:
    version = challenging(tracker, 1)
    overdue(tracker, version)
    with pytest.raises(InputError, match="its time was over"):
        decide(tracker, bout(tracker, version, by="Ada", why="yes"))
    assert number(tracker, MODEL, "champion") is None
    assert requests(tracker, MODEL, version)[HERE[:12]].state == "expired"
    assert actions(tracker) == ["awaiting_approval", "expired"]
    assert asked(tracker, version).awaiting is not None  # the next run asks again


def test_a_sweep_expires_what_is_late_and_nothing_else(tracker: Tracker) -> None:
    late, waiting = challenging(tracker, 1), challenging(tracker, 2)
    overdue(tracker, late)
    asked(tracker, waiting)
    assert expire(tracker, MODEL) == [late]
    assert expire(tracker, MODEL) == []
    assert requests(tracker, MODEL, waiting)[HERE[:12]].state == "pending"


def test_reconcile_ends_the_requests_that_nobody_decided_and_waits_for_no_judge(tracker: Tracker) -> None:
    version = challenging(tracker, 1)
    asked(tracker, version)
    with tracker.moving(MODEL):  # as whoever judges does, for minutes
        assert expired_approvals(tracker) == []
    overdue(tracker, version)
    assert expired_approvals(tracker) == [{"name": MODEL, "version": version}]
    assert requests(tracker, MODEL, version)[HERE[:12]].state == "expired"


def test_a_request_of_another_form_is_refused_and_says_what_reads_it(tracker: Tracker) -> None:
    version = challenging(tracker, 1)
    asked(tracker, version)
    (request,) = requests(tracker, MODEL, version).values()
    tracker.tag_version(MODEL, version, request.tag, json.dumps({**asdict(request), "approvers": 2}))
    with pytest.raises(InputError, match=r"approvers.* Install the pareflow that asked"):
        expire(tracker, MODEL)


def test_a_request_of_an_older_challenger_cannot_be_approved(tracker: Tracker) -> None:
    older = challenging(tracker, 1)
    asked(tracker, older)
    newer = challenging(tracker, 2)
    with pytest.raises(InputError, match=f"version {newer} is the challenger now"):
        decide(tracker, bout(tracker, older, by="Ada", why="yes"))


@pytest.mark.parametrize("decision", ["approved", "declined"])
def test_a_decision_is_of_every_environment_that_asked_the_same(tracker: Tracker, decision: str) -> None:
    """Two machines' runs asked; and a third one once, for the version beside an older champion."""
    version = challenging(tracker, 1)
    for environment in (HERE, "f" * 64, "a" * 64):
        with tracker.moving(MODEL):
            file(tracker, bout(tracker, version, environment=environment), 1)
    third = requests(tracker, MODEL, version)["a" * 12]
    other = replace(third, champion="9", asked=(datetime.now(UTC) - timedelta(hours=2)).isoformat())
    tracker.tag_version(MODEL, version, third.tag, json.dumps(asdict(other)))
    if decision == "approved":
        decide(tracker, bout(tracker, version, by="Ada", why="yes"))
    else:
        decline(tracker, MODEL, "Ada", "yes")
    found = requests(tracker, MODEL, version)
    assert {name: (one.state, one.by, one.why) for name, one in found.items()} == {
        HERE[:12]: (decision, "Ada", "yes"),
        "f" * 12: (decision, "Ada", "yes"),
        "a" * 12: ("pending", None, ""),
    }


@pytest.mark.parametrize("second", ["approve", "reject"])
def test_of_two_decisions_at_once_one_counts(tracker: Tracker, second: str) -> None:
    """The first one judges for as long as it takes the other to wait for the lock."""
    version = challenging(tracker, 1)
    asked(tracker, version)
    judging, refused = threading.Event(), list[str]()
    slow = bout(tracker, version, by="Ada", why="yes")
    judge = slow.judge

    def hold(champion: str | None) -> Judgement:
        judging.set()
        other.start()
        other.join(0.5)
        assert other.is_alive(), "it did not wait for the decision that is under way"
        return judge(champion)

    def meddle() -> None:
        try:
            if second == "approve":
                decide(tracker, bout(tracker, version, by="Bob", why="me too"))
            else:
                decline(tracker, MODEL, "Bob", "rather not")
        except InputError as error:
            refused.append(str(error))

    other = threading.Thread(target=meddle)
    assert decide(tracker, replace(slow, judge=hold))["alias"] == "champion"
    other.join(60)
    assert judging.is_set()
    assert len(refused) == 1
    assert "Ada approved it (yes)" in refused[0]
    assert actions(tracker) == ["awaiting_approval", "approved", "promoted"]
    assert number(tracker, MODEL, "champion") == version


def test_an_approval_killed_before_it_was_settled_can_be_given_again(tracker: Tracker) -> None:
    version = challenging(tracker, 1)
    asked(tracker, version)

    def dies(champion: str | None) -> Judgement:
        raise KeyboardInterrupt

    approved = bout(tracker, version, by="Ada", why="yes")
    with pytest.raises(KeyboardInterrupt):
        decide(tracker, replace(approved, judge=dies))
    assert number(tracker, MODEL, "champion") is None
    assert decide(tracker, approved)["alias"] == "champion"


def test_a_promotion_without_a_person_still_needs_the_gate(tracker: Tracker) -> None:
    champion, worse = enter(tracker, 2), enter(tracker, 1)
    for version in (champion, worse):
        with tracker.moving(MODEL) as still_held:
            settle(tracker, bout(tracker, version), still_held)
    assert number(tracker, MODEL, "champion") == champion
