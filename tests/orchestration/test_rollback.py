"""The way back: it waits for no judgement, can be cut off anywhere, and nothing goes the same way again."""

from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import TEMPORARILY_UNAVAILABLE

from pareflow.errors import InputError, TransientError
from tasks import audit
from tasks.approval import file
from tasks.promotion import Bout, Judgement, Promotion, number, roll_back, settle
from tasks.tracking import BREACH, LEFT, TRAFFIC, Tracker
from tests.orchestration.contenders import HERE, MODEL, bout, enter


@pytest.fixture
def tracker(new_tracker: Callable[[Path], Tracker], tmp_path: Path) -> Tracker:
    return new_tracker(tmp_path / "data")


def promoted(tracker: Tracker, asked: Bout) -> Promotion:
    with tracker.moving(MODEL) as still_held:
        return settle(tracker, asked, still_held)


@pytest.fixture
def two(tracker: Tracker) -> tuple[str, str]:
    """The previous version, and the better one that is champion."""
    first, second = (enter(tracker, score) for score in (1, 2))
    for version in (first, second):
        assert promoted(tracker, bout(tracker, version)).alias == "champion"
    return first, second


def places(tracker: Tracker) -> tuple[str | None, str | None]:
    return number(tracker, MODEL, "champion"), number(tracker, MODEL, "previous")


@pytest.mark.parametrize("tag", [LEFT, BREACH])
def test_no_run_promotes_what_was_left_but_a_person_does(
    tracker: Tracker, two: tuple[str, str], tag: str
) -> None:
    first, second = two
    if tag == BREACH:
        tracker.tag_version(MODEL, second, BREACH, "errors: half of them")
    roll_back(tracker, MODEL, by="Bob", reason="customers call")
    moved = promoted(tracker, bout(tracker, second))
    assert (moved.alias, places(tracker)) == ("challenger", (first, second))
    assert "rolled back from" in moved.reason
    assert promoted(tracker, bout(tracker, second, by="Ada")).alias == "champion"
    assert LEFT not in tracker.version(MODEL, second).tags
    assert promoted(tracker, bout(tracker, second)).reason == "it is the champion already"


def test_who_goes_back_again_takes_it_back(tracker: Tracker, two: tuple[str, str]) -> None:
    first, second = two
    roll_back(tracker, MODEL)
    assert LEFT in tracker.version(MODEL, second).tags
    roll_back(tracker, MODEL)
    assert places(tracker) == (second, first)
    assert LEFT not in tracker.version(MODEL, second).tags
    assert LEFT in tracker.version(MODEL, first).tags


def test_who_is_asked_to_approve_is_told(tracker: Tracker, two: tuple[str, str]) -> None:
    _, second = two
    roll_back(tracker, MODEL, by="Bob", reason="customers call")
    with tracker.moving(MODEL):
        asked = file(tracker, bout(tracker, second), hours=1)
    assert asked.awaiting is not None
    assert "rolled back from (Bob: customers call)" in asked.reason


def test_a_rollback_waits_for_no_judgement_and_is_heeded_by_it(
    tracker: Tracker, two: tuple[str, str]
) -> None:
    """While the third version is judged beside the second, that is rolled back from: it is judged anew."""
    first, second = two
    third, champions = enter(tracker, 3), list[str | None]()

    def judge(champion: str | None) -> Judgement:
        champions.append(champion)
        if len(champions) == 1:
            roll_back(tracker, MODEL)
        return Judgement("promote", f"it beat version {champion}")

    moved = promoted(tracker, Bout(MODEL, third, HERE, judge))
    assert (champions, moved.reason) == ([second, first], f"it beat version {first}")
    assert places(tracker) == (third, first)


def test_a_monitor_goes_back_from_the_version_it_saw_alone(tracker: Tracker, two: tuple[str, str]) -> None:
    first, second = two
    with pytest.raises(InputError, match=f"the champion is not version {first}"):
        roll_back(tracker, MODEL, leaving=first)
    tracker.tag_version(MODEL, first, BREACH, "errors")
    with pytest.raises(InputError, match=f"version {first} broke a rule itself"):
        roll_back(tracker, MODEL, leaving=second)
    assert places(tracker) == (second, first)


def test_nobody_takes_back_what_a_monitor_did_unless_he_says_so(
    tracker: Tracker, two: tuple[str, str]
) -> None:
    """An alert tells somebody to roll back who does not know that the monitor has."""
    first, second = two
    tracker.tag_version(MODEL, second, BREACH, "errors: half of them")
    roll_back(tracker, MODEL, leaving=second, by="monitoring")
    with pytest.raises(InputError, match=r"errors: half of them.*pareflow list audit.*--force"):
        roll_back(tracker, MODEL, by="Bob")
    assert places(tracker) == (first, second)
    roll_back(tracker, MODEL, by="Bob", force=True)
    assert places(tracker) == (second, first)


def cutting(real: Callable[..., None], cut: tuple[str | None, ...]) -> Callable[..., None]:
    """A method of `Tracker` that ends where it is given what `cut` says."""

    def write(self: Tracker, name: str, *given: str | None) -> None:
        if given[-len(cut) :] == cut:
            raise KeyboardInterrupt
        real(self, name, *given)

    return write


def is_rolled_back(tracker: Tracker, champion: str, previous: str) -> None:
    assert places(tracker) == (champion, previous)
    assert LEFT in tracker.version(MODEL, previous).tags
    assert LEFT not in tracker.version(MODEL, champion).tags
    model = tracker.model(MODEL)
    assert model is not None
    assert TRAFFIC not in model.tags
    assert [row["state"] for row in audit.history(tracker, MODEL)][-2:] == ["failed", "done"]


@pytest.mark.parametrize(
    ("cut", "then"),
    [
        ((TRAFFIC, None), ("2", "1")),
        (("champion", "1"), ("2", "1")),
        (("previous", "2"), ("1", "1")),
        (("1", LEFT, None), ("1", "2")),
    ],
    ids=["before all", "before champion", "before previous", "after both"],
)
@pytest.mark.parametrize("by_a_monitor", [False, True])
def test_a_rollback_that_was_cut_off_is_ended_by_the_same_command(
    tracker: Tracker,
    two: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    cut: tuple[str | None, ...],
    then: tuple[str, str],
    by_a_monitor: bool,
) -> None:
    first, second = two
    assert two == ("1", "2")
    tracker.tag_model(MODEL, TRAFFIC, "{}")
    leaving = second if by_a_monitor else None
    with monkeypatch.context() as patched:
        for method in ("set_alias", "tag_version", "tag_model"):
            patched.setattr(Tracker, method, cutting(getattr(Tracker, method), cut))
        with pytest.raises(KeyboardInterrupt):
            roll_back(tracker, MODEL, leaving=leaving)
    assert places(tracker) == then
    assert roll_back(tracker, MODEL, leaving=leaving)["version"] == first
    is_rolled_back(tracker, first, second)


def test_a_rollback_whose_record_could_not_be_ended_is_not_taken_back_by_the_same_command(
    tracker: Tracker, two: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow goes away after all has moved; and only what is asked after that goes forward again."""
    first, second = two
    with monkeypatch.context() as patched:
        patched.setattr(MlflowClient, "set_terminated", gone)
        with pytest.raises(TransientError):
            roll_back(tracker, MODEL)
    assert places(tracker) == (first, second)
    assert roll_back(tracker, MODEL)["version"] == first
    assert places(tracker) == (first, second)
    assert roll_back(tracker, MODEL)["version"] == second


def gone(*_: object, **__: object) -> None:
    raise MlflowException("gone", error_code=TEMPORARILY_UNAVAILABLE)


def test_a_monitor_leaves_the_version_that_an_unended_rollback_had_brought_back(
    tracker: Tracker, two: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It saw the first one break a rule: to that no unended move may lead it back."""
    first, second = two
    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "tag_version", cutting(Tracker.tag_version, (first, LEFT, None)))
        with pytest.raises(KeyboardInterrupt):
            roll_back(tracker, MODEL)
    assert places(tracker) == (first, second)
    assert roll_back(tracker, MODEL, leaving=first)["version"] == second
    tracker.set_alias(MODEL, "previous", second)
    with pytest.raises(InputError, match="no previous version"):
        roll_back(tracker, MODEL, leaving=second)


def cutting_before_champion(real: Callable[..., None]) -> Callable[..., None]:
    """`Tracker.set_alias` that ends where `champion` would move."""

    def write(self: Tracker, name: str, alias: str, version: str) -> None:
        if alias == "champion":
            raise KeyboardInterrupt
        real(self, name, alias, version)

    return write


def cut_off_between_the_aliases(tracker: Tracker, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A promotion that ends when `previous` has moved and `champion` has not."""
    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "set_alias", cutting_before_champion(Tracker.set_alias))
        with pytest.raises(KeyboardInterrupt):
            promoted(tracker, bout(tracker, version))


@pytest.mark.parametrize("by_a_monitor", [False, True])
def test_a_promotion_that_was_cut_off_between_its_aliases_leaves_the_way_back(
    tracker: Tracker, two: tuple[str, str], monkeypatch: pytest.MonkeyPatch, by_a_monitor: bool
) -> None:
    """`previous` is the champion by then: whom that followed is on record. Twice, as a retry may be too."""
    first, second = two
    third = enter(tracker, 3)
    for _ in range(2):
        cut_off_between_the_aliases(tracker, third, monkeypatch)
    assert places(tracker) == (second, second)
    if by_a_monitor:
        tracker.tag_version(MODEL, second, BREACH, "errors: half of them")
    with monkeypatch.context() as patched:
        patched.setattr(Tracker, "set_alias", cutting_before_champion(Tracker.set_alias))
        with pytest.raises(KeyboardInterrupt):
            roll_back(tracker, MODEL)
    assert places(tracker) == (second, second)
    assert roll_back(tracker, MODEL, leaving=second if by_a_monitor else None)["version"] == first
    assert places(tracker) == (first, second)


def test_the_first_champion_has_no_way_back_though_the_next_was_cut_off(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (enter(tracker, score) for score in (1, 2))
    promoted(tracker, bout(tracker, first))
    cut_off_between_the_aliases(tracker, second, monkeypatch)
    assert places(tracker) == (first, first)
    with pytest.raises(InputError, match="both are the same version"):
        roll_back(tracker, MODEL)


def test_one_version_in_both_places_is_no_way_back(tracker: Tracker, two: tuple[str, str]) -> None:
    _, second = two
    tracker.set_alias(MODEL, "previous", second)
    with pytest.raises(InputError, match="both are the same version"):
        roll_back(tracker, MODEL)
