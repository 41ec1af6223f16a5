"""`bench/search.py`: which points its grid has."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pareflow.catalog import complete
from pareflow.search import training_space
from pareflow.search.trial import Trial
from pareflow.stages.run import Row
from pareflow.variant import Recipe, Step

COSTS = {"onnxruntime": 1.0, "openvino": 0.5, "torch_eager": 3.0, "torch_compile": 0.1}
"""By the backend; the last one's answers are too bad."""
FAMILIES = {"channel_pruning": {"ratio": (0.25, 0.5), "learning_rate": (1e-3,)}}


@pytest.fixture
def search(bench: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The bench, whose candidates cost as said and are not built."""
    module = bench("search")

    def trial_of(run: Any, row: Row, baselines: Any) -> Trial:
        name = row.recipe.backend.name
        return Trial(row.recipe, cost=COSTS[name], excess=float(name == "torch_compile"))

    monkeypatch.setattr(module.searching, "circumstances", lambda *_, **__: None)
    monkeypatch.setattr(module.searching, "Contest", lambda *_: None)
    monkeypatch.setattr(module.searching, "trial_of", trial_of)
    monkeypatch.setattr(module.searching, "effort_of", lambda *_: SimpleNamespace(epoch_minutes=0.1))
    monkeypatch.setattr(module.training_space, "families", lambda _: FAMILIES)
    monkeypatch.setattr(module.space, "untrained", lambda _: [Recipe((), Step(name)) for name in COSTS])
    monkeypatch.setattr(module, "_tried", lambda contest, row: row)
    return module


def points(search: Any, rows: list[Row]) -> list[tuple[int, str]]:
    """The passes and the backend of each trained point, after a search of 8 minutes that tried these."""
    run = SimpleNamespace(spec=SimpleNamespace(budget=SimpleNamespace(minutes=8)))
    strong = Row(complete(Recipe((), Step("onnxruntime"))), "original")
    tried = search._exhaustive(run, [strong], rows).rows
    trained = [row.recipe for row in tried if row.recipe.techniques]
    return [(recipe.techniques[0].settings["epochs"], recipe.backend.name) for recipe in trained]


def test_where_the_search_trained_nothing_the_grid_trains_as_long_as_it_might_have(search: Any) -> None:
    assert points(search, []) == [(9, "openvino")] * 2 + [(9, "onnxruntime")] * 2


def test_what_the_search_trained_towards_is_in_the_grid_beside_the_fastest_ways(search: Any) -> None:
    first = training_space.step("channel_pruning", {"ratio": 0.5, "learning_rate": 1e-3}, epochs=3)
    trained = Row(complete(Recipe((first,), Step("torch_eager"))))
    expected = [(3, name) for name in ("torch_eager", "openvino", "onnxruntime") for _ in range(2)]
    assert points(search, [trained]) == expected


def test_a_search_that_found_nothing_hides_no_row(search: Any) -> None:
    ours = search.Tried([], 60.0)
    claims = list(search._beside_the_grid("digits", None, [], ours, None))
    assert [claim.name for claim in claims] == [
        "digits: best of the search over the grid's",
        "digits: time of the search",
    ]
    assert {(claim.measured, claim.met) for claim in claims} == {(None, None)}
    assert all("found nothing" in claim.note for claim in claims)
