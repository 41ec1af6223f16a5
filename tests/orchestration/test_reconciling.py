"""Which crashed runs are taken up again, and when that ends. Of a server that says what a test says."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flows.reconcile import reconciled, run_reconcile
from pareflow.store import Store
from tasks import flow_runs, registry
from tasks.locking import VARIABLE, HeldError, flocked
from tasks.looks import Looks
from tasks.reconciling import (
    ATTEMPTS,
    PENDING_S,
    RECENT_S,
    Look,
    never_began,
    pending_challengers,
    resumed,
)
from tasks.tracking import Tracker
from tests.orchestration.contenders import enter
from tests.terminal import rendered


class Crashing:
    """A run that crashes whenever it is taken up, `runs` says whether before or after it was Running."""

    def __init__(self, runs: bool) -> None:
        self.runs, self.run_count = runs, 0
        self.now = datetime(2026, 5, 1, tzinfo=UTC).timestamp()
        self.history: list[dict[str, Any]] = []
        self.resume("run", "the first time, by its schedule")

    def in_state(self, *_: str, **__: object) -> Iterator[dict[str, Any]]:
        last = self.history[-1]
        yield {
            **{"id": "run", "name": "run", "deployment_id": "d"},
            **{"run_count": self.run_count, "state": last},
        }

    def states(self, _: str) -> list[dict[str, Any]]:
        return list(self.history)

    def resume(self, _: str, message: str) -> None:
        self.run_count += self.runs
        for kind, told in (("SCHEDULED", message), ("PENDING", None), ("CRASHED", "it died")):
            stamp = datetime.fromtimestamp(self.now, UTC).isoformat()
            self.history.append(
                {"id": f"{len(self.history)}", "type": kind, "message": told, "timestamp": stamp}
            )

    def attempts(self) -> int:
        return sum(state["type"] == "PENDING" for state in self.history)


def crashing(monkeypatch: pytest.MonkeyPatch, runs: bool) -> Crashing:
    run = Crashing(runs)
    for name in ("in_state", "states", "resume"):
        monkeypatch.setattr(flow_runs, name, getattr(run, name), raising=False)
    return run


@pytest.mark.parametrize("runs", [True, False])
def test_a_run_that_always_crashes_is_taken_up_three_times(
    runs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it never comes to Running, as where its image cannot be had: the server then counts none."""
    run, looks = crashing(monkeypatch, runs), Looks(tmp_path / "looks.db")
    told = []
    for _ in range(20):
        told += [one["attempt"] for one in resumed(Look(looks, run.now, 120, 1))]
        run.now += 300
    assert run.attempts() == ATTEMPTS
    assert told == [2, 3]


def test_a_run_is_left_alone_a_day_after_its_first_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after its last one, which each attempt makes anew."""
    run, looks = crashing(monkeypatch, runs=False), Looks(tmp_path / "looks.db")
    assert resumed(Look(looks, run.now, 120, 1)) == []
    run.now += RECENT_S - 600
    assert len(resumed(Look(looks, run.now, 120, 1))) == 1  # and it crashes at once
    resumed(Look(looks, run.now + 300, 120, 1))
    run.now += 900
    assert resumed(Look(looks, run.now, 120, 1)) == []
    assert run.attempts() == 2


class Waiting(Crashing):
    """A run whose worker died before it began: it stays as it is, until somebody says that it crashed."""

    name: str | None = None
    """Of its states, where the server names them otherwise than by their type."""

    def in_state(self, *types: str, **_: object) -> Iterator[dict[str, Any]]:
        if self.history[-1]["type"] in types:
            yield from super().in_state()

    def resume(self, _: str, message: str) -> None:
        self.become("SCHEDULED", message)
        self.become("PENDING", None)

    def crash(self, _: str, message: str) -> None:
        self.become("CRASHED", message)

    def become(self, kind: str, told: str | None) -> None:
        stamp = datetime.fromtimestamp(self.now, UTC).isoformat()
        self.history.append(
            {
                **{"id": f"{len(self.history)}", "type": kind, "name": self.name or kind.title()},
                **{"message": told, "timestamp": stamp},
            }
        )


def test_a_run_that_never_began_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not while a node may still be on its way; and each time anew, since another worker has it then."""
    run, looks = Waiting(runs=False), Looks(tmp_path / "looks.db")
    for name in ("in_state", "states", "resume", "crash"):
        monkeypatch.setattr(flow_runs, name, getattr(run, name))
    began, lost, again = run.now, list[float](), list[float]()
    while run.now < began + 2 * PENDING_S + 1000:
        look = Look(looks, run.now, 120, 1)
        lost += [run.now - began for _ in never_began(look)]
        again += [run.now - began for _ in resumed(look)]
        run.now += 300
    assert lost == [PENDING_S, 2 * PENDING_S + 600]
    assert again == [PENDING_S + 300, 2 * PENDING_S + 900]
    assert run.history[2]["message"] == "pareflow reconcile: it never began"


def test_a_run_whose_pod_waits_for_room_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubernetes keeps its job: declared dead, it would be made a second time, and both would begin."""
    run, looks = Waiting(runs=False), Looks(tmp_path / "looks.db")
    monkeypatch.setattr(flow_runs, "in_state", run.in_state)
    run.name = "InfrastructurePending"
    run.become("PENDING", None)
    monkeypatch.setattr(flow_runs, "crash", run.crash)
    for later in (0, PENDING_S, 3 * PENDING_S):
        assert never_began(Look(looks, run.now + later, 120, 1)) == []
    assert len(never_began(Look(looks, run.now + RECENT_S, 120, 1))) == 1  # its job was removed, maybe


def test_a_disk_that_keeps_no_looks_holds_up_nothing_else(
    new_tracker: Callable[[Path], Tracker], tmp_path: Path
) -> None:
    """What is left over is removed first, for the room; what could not be looked at is told once."""
    new_tracker(tmp_path)
    (tmp_path / "looks.db").write_bytes(b"no database" * 100)
    left = Store(tmp_path / "store").root / "making" / "key.killed"
    left.mkdir(parents=True)
    found = run_reconcile(None, tmp_path)
    assert (found["leftovers"], found["pending"], found["expired"]) == (1, [], [])
    assert not left.exists()
    (problem,) = found["problems"]
    assert f"{tmp_path / 'looks.db'} takes nothing: file is not a database" in problem


def test_one_reconciles_at_a_time_and_the_other_ends_well_and_says_so(
    new_tracker: Callable[[Path], Tracker], tmp_path: Path
) -> None:
    """The kernel lets go of the lock for whoever dies, as no slot of Prefect's is let go of."""
    new_tracker(tmp_path)
    with flocked(tmp_path / "locks", "reconcile"):
        found = run_reconcile(None, tmp_path)
        assert "another process holds it" in found["skipped"]
        assert f"skipped: {found['skipped']}\n" in rendered(reconciled, found)
        assert (found["problems"], "pending" in found) == ([], False)
    again = run_reconcile(None, tmp_path)
    assert ("skipped" in again, again["pending"]) == (False, [])
    assert "pending: 0\n" in rendered(reconciled, again)


def test_a_lock_that_cannot_be_had_is_a_problem_and_everything_is_looked_at(
    new_tracker: Callable[[Path], Tracker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its database is set up wrongly, or away."""
    new_tracker(tmp_path)
    monkeypatch.setenv(VARIABLE, "mysql://nowhere")
    found = run_reconcile(None, tmp_path)
    (problem,) = found["problems"]
    assert f"{VARIABLE} must name a PostgreSQL database" in problem
    assert ("skipped" in found, found["pending"]) == (False, [])


def test_a_lock_that_is_held_inside_is_not_taken_for_its_own(
    new_tracker: Callable[[Path], Tracker], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_tracker(tmp_path)

    def held(_: Path) -> Tracker:
        raise HeldError("the lock `images` must be free", "another process holds it", "Wait")

    monkeypatch.setattr(Tracker, "open", held)
    with pytest.raises(HeldError, match="images"):
        run_reconcile(None, tmp_path)


def test_challengers_that_are_no_champions_are_named_and_how_long_they_wait(
    new_tracker: Callable[[Path], Tracker], tmp_path: Path
) -> None:
    """By hand, two hours after they were registered: one behind a champion, one without."""
    tracker = new_tracker(tmp_path)
    for model in ("behind", "behind", "first", "settled", "plain"):
        enter(tracker, 1, model)
    for model, alias, version in (
        ("behind", "champion", "1"),
        ("behind", "challenger", "2"),
        ("first", "challenger", "1"),
        ("settled", "champion", "1"),
        ("settled", "challenger", "1"),
    ):
        tracker.set_alias(model, alias, version)
    first = registry.registered(tracker, "first", "1")
    assert first is not None
    found = pending_challengers(tracker, first.created_ms / 1000 + 2 * 3600)
    assert [(one["name"], one["version"]) for one in found] == [("behind", "2"), ("first", "1")]
    assert [one["hours"] for one in found] == pytest.approx([2, 2], abs=0.05)


def test_what_was_found_is_told_line_by_line_and_so_is_what_was_not_looked_at() -> None:
    dead = {"run": "digits", "owner": "command.0123", "silent_s": 160}
    found = {"dead_owners": [dead], "resumed": None, "leftovers": 2, "problems": ["it says [no]"]}
    assert rendered(reconciled, {"skipped": "somebody has [the lock]", **found}).splitlines() == [
        "skipped: somebody has [the lock]",
        "dead owners: 1",
        "  run digits, owner command.0123, silent_s 160",
        "resumed: not looked at",
        "leftovers: 2",
        "problems: 1",
        "  it says [no]",
    ]
