"""What is registered while a long search goes on, on the tiny images."""

import dataclasses
from collections.abc import Generator
from typing import Any

import pytest

from flows.pipeline import searched
from pareflow.search import Ended, Trial
from pareflow.search.training_space import trained_for
from pareflow.sla import LoadClause
from pareflow.stages import searching, validation
from pareflow.stages.run import Row, Run
from pareflow.variant import Recipe, Step
from tasks import steps
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
    rows, _, (first,) = searched(run, None, "", execution, trained.rows, None)
    assert execution.called == ["time_variant", "first_version", "time_variant"]
    assert [row.label for row in rows] == [SMALL.label, TRAINED.label]
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
    (first,) = searched(run, None, "", execution, trained.rows, None)[2]
    assert execution.called.count("first_version") == 1
    assert (first.version, first.reason) == (
        None,
        "the gate does not promote it on the verdict split",
    )


PAGED = Row(Recipe(SMALL.recipe.techniques, Step("onnxruntime", {"threads": 1, "huge_pages": True})))


@pytest.mark.parametrize(
    ("better", "quick", "judged"),
    [
        (False, (SMALL,), [SMALL]),
        (True, (SMALL,), [SMALL, TRAINED]),
        (True, (SMALL, PAGED), [PAGED, TRAINED]),
    ],
)
def test_another_leader_is_judged_where_the_first_did_not_pass_and_no_third(
    better: bool,
    quick: tuple[Row, ...],
    judged: list[Row],
    run: Run,
    trained: Trained,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before each wave that trains another network may lead: what failed is not judged again, nor is what
    answers as it does."""
    waves = [TRAINED, *(Row(trained_for(TRAINED.recipe, n)) for n in (2, 3, 5))]
    made, shown = list[Row](), list[str]()

    def asking(*_: Any) -> Generator[searching.Asked, Any, Ended]:
        for row in (*quick, *waves):
            yield searching.Asked("", (row,))
        return Ended("that was all")

    class Told(Plain):
        """Nothing is made or timed, and no first version passes."""

        def call(self, task: Any, *arguments: Any) -> Any:
            if task is steps.time_variant:
                made.append(arguments[3])
                return arguments[3]
            assert task is steps.first_version
            row = next(row for row in reversed(arguments[3]) if row.role == "candidate")
            shown.append(row.label)
            return steps.First(row, None, "the gate does not promote it", passed=False)

        def each(self, task: Any, calls: Any, needs: Any) -> Any:
            return [dataclasses.replace(row, id=row.label) for _, row in calls]

    def leading(contest: searching.Contest, row: Row) -> None:
        cost = 0.5 ** (len(made) if better else min(len(made), 1))
        if contest.leader is None or cost < (contest.leader.cost or 1):
            contest.leader = Trial(row.recipe, cost, 0.0)

    monkeypatch.setattr(searching, "searching", asking)
    monkeypatch.setattr(searching.Contest, "ran", leading)
    searched(run, None, "", Told(), trained.rows, None)
    assert shown == [row.label for row in judged]
    of_one_way = [SMALL.recipe, TRAINED.recipe]
    assert not searching.of_ways(of_one_way[1:], PAGED.recipe)
    assert searching.of_ways(of_one_way, PAGED.recipe)


def test_a_second_early_verdict_goes_by_the_time_that_is_left_then(
    run: Run, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    contest = searching.Contest(run, trained.rows)
    contest.leader = Trial(TRAINED.recipe, 0.5, 0.0)
    monkeypatch.setattr(Run, "left", lambda _, what: searching.LONG if what == "a first version" else 5.0)
    asked = searching.Asked("", (TRAINED,))
    assert searching.first_to_register(run, asked, contest)
    assert not searching.first_to_register(run, asked, contest, [SMALL.recipe])


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
