"""Ties: one network in settings of its runtime that are equally fast. The plainest stands for all of them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from pareflow.catalog import BACKENDS, find
from pareflow.search.space import way_of
from pareflow.search.trial import NOTICEABLE
from pareflow.variant import Recipe


class Made(Protocol):
    """What was made by a recipe."""

    @property
    def recipe(self) -> Recipe: ...


T = TypeVar("T", bound=Made)


def tied(best: T, found: Iterable[T], cost: Callable[[T], float]) -> list[T]:
    """Those of the best one's way that the best is not noticeably better than.

    Which of them is the fastest, the next run would find otherwise: where it lies in memory moves one file of
    microseconds by as much (docs/log.md).
    """
    way, most = way_of(best.recipe), cost(best) * NOTICEABLE
    return [one for one in found if way_of(one.recipe) == way and cost(one) <= most]


def plainest(among: Sequence[T]) -> T:
    """The one with the fewest settings, the first of equals."""
    return min(among, key=lambda one: _settings(one.recipe))


def plainer(recipe: Recipe, other: Recipe) -> bool:
    """Whether a recipe is the other's network in fewer settings."""
    return way_of(recipe) == way_of(other) and _settings(recipe) < _settings(other)


def _settings(recipe: Recipe) -> int:
    """How much it takes: techniques, and what its runtime is told beyond the defaults."""
    backend = find(BACKENDS, recipe.backend, "backend")
    return len(recipe.techniques) + len(backend.model_dump(exclude_defaults=True))
