"""Finalists under the SLA's load: real runs of LoadGen in the stages, on the tiny images."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pareflow.errors import MissingExtraError, StepFailedError
from pareflow.measuring.load import Load
from pareflow.reporting import page
from pareflow.stages import loading, machine, optimization, outcome, validation
from pareflow.stages.run import Row, Run
from pareflow.variant import Recipe, Step

pytestmark = pytest.mark.usefixtures("rogues")
EASY = {"per_s": 400, "p99_ms": 100}


def load_check(row: Row) -> Any:
    assert row.verdict is not None
    return next(check for check in row.verdict.checks if check.clause == "load.p99_ms")


@pytest.mark.slow
def test_load_that_is_kept_promotes_and_the_highest_is_in_the_document(
    under: Callable[..., Run], trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "SEARCH_S", 5.0)
    run = under(**EASY)
    judged = validation.validate(run, trained.rows[:1])
    winner = validation.winner(run, judged)
    assert winner is not None
    assert load_check(winner).decision == "promote"
    assert winner.served is not None
    assert winner.served.load == "Server 400/s"
    rows = loading.with_highest_load(run, judged, winner)
    (row,) = (outcome.variant(row) for row in rows)
    assert row["highest_load_per_s"] >= 400
    assert row["load"]["samples"] == len(winner.served.samples_ms)
    assert loading.with_highest_load(run, judged, winner) == rows  # kept in the store
    shown = page.render(outcome.document(run, rows, trained.rows[:1], winner, None, None))
    assert "Server 400/s" in shown.partition('id="load"')[2]


@pytest.mark.slow
def test_load_that_is_too_much_rejects(under: Callable[..., Run], trained: Any) -> None:
    """5 ms and more a request, and 1000 in a second."""
    run = under(per_s=1000, p99_ms=20)
    sluggish = optimization.make(run, Row(Recipe((), Step("sluggish"))))
    sluggish = dataclasses.replace(sluggish, measurement=trained.strong.measurement)
    *_, judged = validation.validate(run, [trained.strong, sluggish])
    assert judged.verdict is not None
    assert (judged.verdict.decision, load_check(judged).decision) == ("reject", "reject")
    assert load_check(judged).estimate > 20


@pytest.mark.slow
def test_candidate_that_dies_under_load_is_a_failed_row(
    under: Callable[..., Run], trained: Any, tmp_path: Path
) -> None:
    run = under(**EASY)
    doomed = Step("segfaults_under_load", {"requests": 300, "marker": str(tmp_path / "now")})
    row = optimization.make(run, Row(Recipe((), doomed)))
    row = dataclasses.replace(row, measurement=trained.strong.measurement)
    (tmp_path / "now").touch()
    strong, failed = validation.validate(run, [trained.strong, row])
    assert (failed.status, failed.verdict) == ("failed", None)
    assert str(failed.reason).startswith("CrashedError: ")
    assert load_check(strong).estimate is not None


def test_without_loadgen_the_load_is_not_measured_and_nothing_is_promoted(
    under: Callable[..., Run], trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mlperf_loadgen.py").write_text("raise ModuleNotFoundError('mlperf_loadgen')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    run = under(**EASY)
    (judged,) = validation.validate(run, trained.rows[:1])
    assert load_check(judged).decision == "inconclusive"
    assert load_check(judged).reason == "not measured"
    assert "load was not measured: a load needs the extra `loadgen`" in str(judged.reason)
    assert validation.winner(run, [judged]) is None


def test_without_loadgen_a_run_for_a_load_is_told_before_anything_is_trained(
    under: Callable[..., Run], trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(MissingExtraError, match="a load needs the extra `loadgen`"):
        machine.check_machine(under(**EASY))
    machine.check_machine(trained.run)


def test_without_a_load_in_the_sla_none_is_measured(judged: Any) -> None:
    assert {row.served for row in judged.finalists} == {None}
    assert loading.with_highest_load(judged.run, judged.finalists, judged.finalists[0]) == judged.finalists


def test_same_load_is_measured_once_and_anew_when_asked_to(under: Callable[..., Run], trained: Any) -> None:
    run, load = under(**EASY), Load("SingleStream", queries=50, seconds=0.1)
    first = loading.measure(run, trained.strong, load)
    assert loading.measure(run, trained.strong, load) == first
    again = loading.measure(dataclasses.replace(run, remeasure=True), trained.strong, load)
    assert again.measurement.blocks_ms != first.measurement.blocks_ms
    keys = {loading.loading_key(run, trained.strong, dataclasses.replace(load, seed=seed)) for seed in (0, 1)}
    assert len(keys) == 2


@pytest.mark.parametrize("truth", [3.0, 90.0, 100.0, 1234.5])
def test_search_doubles_or_halves_then_bisects(truth: float) -> None:
    tried: list[float] = []

    def holds(per_s: float) -> bool:
        tried.append(per_s)
        return per_s <= truth

    found = loading.highest(holds, 100.0)
    assert found is not None
    assert truth / loading.PRECISION <= found <= truth
    assert len(tried) < 14


def test_search_that_runs_out_of_time_gives_what_it_knows() -> None:
    answers = iter([True, True, None])
    assert loading.highest(lambda rate: next(answers), 100.0) == 200.0
    assert loading.highest(lambda rate: None, 100.0) is None


def test_a_rate_is_tried_for_long_enough_that_its_line_would_outgrow_the_limit(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 0.2 s twenty limits are 4 s, which a rate of 5 % too much fills with a line of 0.2 s."""
    asked = list[Load]()

    def measured(run: Run, row: Row, load: Load) -> Any:
        asked.append(load)
        raise StepFailedError("a load must be measured", "it is only looked at here", "Ask no more")

    monkeypatch.setattr(loading, "measure", measured)
    assert loading._searched(trained.run, trained.strong, Load("Server", 1000, 200)) is None
    assert [load.duration_s for load in asked] == [4.0]
