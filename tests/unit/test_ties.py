"""One network in several settings of its runtime, as fast as each other: which of them stands for all."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pareflow.compiler import OnnxRuntime, OpenVino
from pareflow.model import AttentionFusion, DynamicInt8
from pareflow.search.search import _each_way
from pareflow.search.ties import plainer, plainest, tied
from pareflow.search.trial import NOTICEABLE, Trial
from pareflow.variant import Recipe

PLAIN = Recipe((), OnnxRuntime().step)
PAGED = Recipe((), OnnxRuntime(huge_pages=True).step)
FUSED = Recipe((AttentionFusion().step,), OnnxRuntime(huge_pages=True).step)
INT8 = Recipe((DynamicInt8().step,), OnnxRuntime().step)
ELSEWHERE = Recipe((), OpenVino().step)


def each_way(recipes: Sequence[Recipe], costs: Sequence[float], excess: Sequence[float] = ()) -> list[Recipe]:
    """What stands for each way, where the recipes cost so much and exceed limits by so much."""
    over = excess or [0.0] * len(recipes)
    trials = [
        Trial(recipe, cost, exceeds) for recipe, cost, exceeds in zip(recipes, costs, over, strict=True)
    ]
    return [trial.recipe for trial in _each_way(trials)]


@pytest.mark.parametrize(
    ("costs", "stands"),
    [([1.019, 1.0], PLAIN), ([1.0, 1.019], PLAIN), ([1.021, 1.0], PAGED)],
    ids=["less than 2 % slower", "as much faster", "more than 2 % slower"],
)
def test_of_a_tie_the_one_with_the_fewest_settings_stands_for_all(costs: list[float], stands: Recipe) -> None:
    assert each_way([PLAIN, PAGED], costs) == [stands]


def test_other_networks_and_other_runtimes_are_no_tie() -> None:
    assert each_way([PLAIN, INT8, ELSEWHERE], [1.0, 1.0, 1.0]) == [PLAIN, INT8, ELSEWHERE]


def test_each_is_held_against_the_best_and_not_along_a_chain() -> None:
    """The plain one is 3 % slower than the best, and 1.5 % slower than the second."""
    assert each_way([PLAIN, PAGED, FUSED], [1.03, 1.015, 1.0]) == [PAGED]


def test_what_exceeds_a_limit_stands_for_nothing_that_does_not() -> None:
    assert each_way([PLAIN, PAGED], [1.009, 1.0], [0.01, 0.0]) == [PAGED]


def test_fewer_threads_are_plainer() -> None:
    one, two = (Recipe((), OnnxRuntime(threads=n).step) for n in (1, 2))
    assert plainer(one, two)
    assert not plainer(two, one)
    assert not plainer(ELSEWHERE, two)


@given(
    st.lists(
        st.tuples(st.sampled_from([PLAIN, PAGED, FUSED, INT8, ELSEWHERE]), st.floats(0.1, 10)), min_size=1
    )
)
def test_what_stands_for_a_tie_is_of_its_way_and_costs_hardly_more(rows: list[tuple[Recipe, float]]) -> None:
    trials = [Trial(recipe, cost, 0.0) for recipe, cost in rows]
    best = min(trials, key=lambda trial: trial.cost or 0)
    found = plainest(tied(best, trials, lambda trial: trial.cost or 0))
    assert (found.cost or 0) <= (best.cost or 0) * NOTICEABLE
    assert not plainer(best.recipe, found.recipe)
