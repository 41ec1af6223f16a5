"""The plan of a run's winner: LoadGen through the server for real, kept; what is said without it."""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.tables import running as tables
from pareflow.errors import CrashedError
from pareflow.gate import judge_served
from pareflow.hardware.device_profile import DeviceProfile
from pareflow.measurement import Interval
from pareflow.reporting import page
from pareflow.serving.plan import ServingPlan
from pareflow.spec import Target
from pareflow.stages import loading, outcome, serving_plans, validation
from pareflow.stages.run import Run
from pareflow.stages.tuning import Promise, Tried

PROMISE = Promise(per_s=100, p99_ms=20)
PROFILE: dict[str, Any] = {
    "name": "board",
    "memory_mib": 400,
    "storage_mib": 200,
    "cores": 1,
    "memory_gb_per_s": 2,
    "units": [{"name": "core", "gops": {"int8": 1}, "backends": {"onnxruntime": "itself"}}],
    "sources": ["made up"],
}


def tried(ms: float, limit: float = 20) -> Tried:
    """A plan under which each of 700 requests took so long."""
    check = judge_served(Interval(ms, ms, ms, 700, 0.99), limit)
    blocks = ((ms,) * 350,) * 2
    return Tried(ServingPlan(sessions=2), 4.0, blocks, True, check, check.decision, check.reason)


def document(trained: Any, ours: Any, theirs: Any) -> dict[str, Any]:
    """What is told of these plans of two rows."""
    strong, eager = trained.rows
    return serving_plans.told(PROMISE, (eager, ours), (strong, theirs))


def shown(trained: Any, serving: dict[str, Any]) -> tuple[str, str]:
    """The page's section, and the terminal."""
    whole = outcome.document(trained.run, trained.rows, trained.rows, None, None, None, serving=serving)
    console = Console(width=250, record=True, file=io.StringIO())
    tables.outcome(whole, console)
    json.dumps(whole)
    return page.render(whole).partition('id="serving"')[2], console.export_text()


def test_both_sides_are_told_by_their_best_plans(trained: Any) -> None:
    """8 and 16 ms: twice as soon, in each block."""
    found = document(trained, [tried(8), tried(9)], [tried(16)])
    assert (found["kept"], found["decision"]) == (True, "promote")
    assert found["plan"] == {"sessions": 2}
    assert found["speedup"]["p99"] == {"estimate": 2, "low": 2, "high": 2}
    assert found["optimized"]["p99"]["estimate"] == 8
    assert found["original"]["recipe"] == trained.strong.label
    for text in shown(trained, found):
        assert "plan keeps a p99 of 20 ms at 100 requests/s through the server: 8 is at most 20" in text
        assert "2 sessions behind dynamic_batching" in text


def test_where_no_plan_keeps_it_there_is_none_and_it_is_said(trained: Any) -> None:
    found = document(trained, [tried(50)], CrashedError("it must live", "it died", "Look"))
    assert (found["kept"], found["decision"], found["plan"]) == (False, "reject", None)
    assert found["speedup"] is None
    for text in shown(trained, found):
        assert "o plan keeps a p99 of 20 ms at 100 requests/s through the server" in text
        assert "50 is not at most 20" in text
    assert "CrashedError: it must live, but it died" in shown(trained, found)[0]


def test_a_winner_that_cannot_be_served_keeps_nothing(trained: Any) -> None:
    found = document(trained, CrashedError("it must live", "it died", "Look"), [tried(5)])
    assert (found["kept"], found["decision"], found["plan"]) == (False, "failed", None)
    assert "CrashedError: it must live" in shown(trained, found)[0]


def test_what_is_not_tuned_says_why(under: Callable[..., Run], trained: Any) -> None:
    run, strong = under(per_s=100, p99_ms=20), trained.strong
    original = next(row for row in trained.rows if row.role == "original")
    target = Target(profile=DeviceProfile(**PROFILE), threads=(1,))
    elsewhere = dataclasses.replace(run, spec=run.spec.model_copy(update={"target": target}))
    reasons = {
        "nothing met the SLA": serving_plans.tuned(run, trained.rows, None),
        "the original is kept": serving_plans.tuned(run, trained.rows, original),
        "this machine's, not board's": serving_plans.tuned(elsewhere, trained.rows, strong),
        "the SLA states no load": serving_plans.NO_LOAD,
    }
    for words, found in reasons.items():
        assert (found["decision"], found["kept"], found["plan"]) == ("skipped", None, None)
        assert words in found["reason"]
        assert words in shown(trained, found)[1]


@pytest.mark.slow
def test_the_winner_is_served_and_what_was_found_is_kept(
    under: Callable[..., Run], trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load that is easily kept; the second time nothing runs."""
    monkeypatch.setattr(loading, "SEARCH_S", 1.0)
    run = under(per_s=400, p99_ms=5000)
    judged = validation.validate(run, trained.rows[:1])
    winner = validation.winner(run, judged)
    found = serving_plans.tuned(run, judged, winner)
    assert (found["kept"], found["decision"]) == (True, "promote")
    assert found["optimized"]["variant"] == found["original"]["variant"]  # the baseline won
    assert found["speedup"]["p99"]["estimate"] == 1
    assert found["optimized"]["distinct_requests"] > 8  # of the search split, not golden samples
    assert ServingPlan(**found["plan"]).sessions
    entries = {path.name for path in (Path(run.store.root) / "entries").iterdir()}
    assert serving_plans.tuned(run, judged, winner) == found
    assert {path.name for path in (Path(run.store.root) / "entries").iterdir()} == entries
