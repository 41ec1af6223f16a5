"""What is registered while a long search goes on, on the tiny images."""

import dataclasses
from collections.abc import Generator
from typing import Any

import pytest

from flows.pipeline import searched
from pareflow.search import Ended
from pareflow.sla import LoadClause
from pareflow.stages import searching, validation
from pareflow.stages.run import Row, Run
from pareflow.variant import Recipe, Step
from tasks.execution import Plain
from tests.conftest import Trained

RUNTIME = Step("onnxruntime", {"threads": 1})
SMALL = Row(Recipe((Step("static_int8"),), RUNTIME))
TRAINED = Row(Recipe((Step("channel_pruning", {"ratio": 0.25, "epochs": 1}),), RUNTIME))


@pytest.fixture
def run(trained: Trained) -> Run:
    """A search for what is smallest, which has no noise."""
    spec = trained.run.spec.model_copy(update={"candidates": None, "objective": "size"})
    return dataclasses.replace(trained.run, spec=spec)


class Noting(Plain):
    """Plain execution that notes which tasks were called."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def call(self, task: Any, *arguments: Any) -> Any:
        self.called.append(task.name)
        return super().call(task, *arguments)


@pytest.fixture
def two_waves(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search asks for what is quantized, then for what is trained."""

    def asking(*_: Any) -> Generator[searching.Asked, Any, Ended]:
        yield searching.Asked("without training", (SMALL,))
        yield searching.Asked("by training", (TRAINED,))
        return Ended("that was all")

    monkeypatch.setattr(searching, "searching", asking)


@pytest.mark.usefixtures("two_waves")
def test_the_best_of_what_needs_no_training_is_judged_before_anything_trains(
    run: Run, trained: Trained
) -> None:
    execution = Noting()
    rows, _, first = searched(run, None, "", execution, trained.rows, None)
    assert execution.called == ["time_variant", "first_version", "time_variant"]
    assert [row.label for row in rows] == [SMALL.label, TRAINED.label]
    assert first is not None
    assert first.to_json() == {
        "variant": rows[0].id,
        "recipe": SMALL.label,
        "version": None,
        "reason": "nothing is registered without MLflow",
    }


@pytest.mark.usefixtures("two_waves")
def test_what_the_verdict_split_does_not_let_pass_is_not_registered(
    run: Run, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is not judged again."""
    monkeypatch.setattr(validation, "winner", lambda *_: None)
    execution = Noting()
    first = searched(run, None, "", execution, trained.rows, None)[2]
    assert execution.called.count("first_version") == 1
    assert first is not None
    assert (first.version, first.reason) == (
        None,
        "the gate does not promote it on the verdict split",
    )


@pytest.mark.parametrize(
    ("changed", "asked", "cost", "worth"),
    [
        ({}, searching.Asked("", (TRAINED,)), 0.5, True),
        ({}, searching.Asked("", (SMALL,)), 0.5, False),
        ({}, searching.Asked("", (TRAINED,), preflight=True), 0.5, False),
        ({}, searching.Asked("", (TRAINED,), listed=True), 0.5, False),
        ({}, searching.Asked("", (TRAINED,)), 1.0, False),
        ({}, searching.Asked("", (TRAINED,)), None, False),
        ({"minutes": searching.LONG - 1}, searching.Asked("", (TRAINED,)), 0.5, False),
        (
            {"load": LoadClause(per_s=10, p99_ms=100)},
            searching.Asked("", (TRAINED,)),
            0.5,
            False,
        ),
    ],
)
def test_a_first_version_is_for_long_searches_that_have_found_something(
    run: Run, trained: Trained, changed: Any, asked: searching.Asked, cost: float | None, worth: bool
) -> None:
    """Which train from here on, and promise nothing under load."""
    budget = run.spec.budget.model_copy(update={k: v for k, v in changed.items() if k == "minutes"})
    sla = run.spec.sla.model_copy(update={k: v for k, v in changed.items() if k == "load"})
    spec = run.spec.model_copy(update={"budget": budget, "sla": sla})
    here = dataclasses.replace(run, spec=spec)
    contest = searching.Contest(here, trained.rows)
    assert contest.leader is not None  # the strong baseline meets the tests' SLA
    contest.leader = None if cost is None else dataclasses.replace(contest.leader, cost=cost)
    assert searching.first_to_register(here, asked, contest) is worth
