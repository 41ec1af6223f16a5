"""A ranking cascade: who is scored by whom, and how the scores are put together."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pareflow.errors import CalibrationError, CrashedError
from pareflow.runtime import RankingCascade
from pareflow.runtime.endpoint import Endpoint
from pareflow.runtime.ranking_calibration import RankingCalibration
from pareflow.workload import Arrays


class Ranker:
    """Scores each candidate by one column of its row."""

    def __init__(self, column: int, error: Exception | None = None) -> None:
        self.column, self.error = column, error
        self.seen: list[int] = []

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.answer, f"column {self.column}")

    async def answer(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        self.seen.append(len(feeds["x"]))
        if self.error is not None:
            raise self.error
        return {"score": feeds["x"][:, self.column].copy()}


def cascade(filtered: int, coarse: int) -> RankingCascade:
    record = RankingCalibration(
        variants={"filter": "column 0", "coarse": "column 1", "full": "column 2"},
        max_drop=0.01,
        confidence=0.95,
        samples=500,
        drop=0,
        keep={"filter": filtered, "coarse": coarse},
    )
    return RankingCascade(calibration=record)


def ask(policy: RankingCascade, rows: np.ndarray, rankers: list[Ranker]) -> np.ndarray:
    tiers = {"filter": rankers[0].endpoint, "coarse": rankers[1].endpoint}
    endpoint = policy.wrap(replace(rankers[2].endpoint, tiers=tiers))

    async def answered() -> Arrays:
        return await endpoint.answer({"x": rows})

    return asyncio.run(answered())["score"]


def test_each_stage_sees_what_the_one_before_let_through() -> None:
    """By hand: the filter lets 0, 1, 3 through, the coarse one 1 and 3, and the fine one prefers 3."""
    rows = np.array([[9, 1, 0], [8, 5, 0.25], [1, 9, 9], [7, 6, 0.5], [2, 9, 9]])
    rankers = [Ranker(column) for column in range(3)]
    found = ask(cascade(3, 2), rows, rankers)
    assert np.argsort(-found).tolist() == [3, 1, 0, 4, 2]
    assert found[[1, 3]].tolist() == [0.25, 0.5]  # the fine one's own
    assert [ranker.seen for ranker in rankers] == [[5], [3], [2]]


@given(
    scores=st.lists(st.tuples(*[st.floats(-9, 9, width=32)] * 3), min_size=1, max_size=12),
    keep=st.tuples(st.integers(1, 12), st.integers(1, 12)),
)
def test_the_order_is_that_of_the_last_stage_that_saw_each(
    scores: list[tuple[float, float, float]], keep: tuple[int, int]
) -> None:
    """By another way: sort by how far each came, then by the score there, then by place."""
    rows = np.array(scores, dtype=np.float32)
    by_filter = np.argsort(-rows[:, 0], kind="stable")
    through = np.sort(by_filter[: keep[0]])
    by_coarse = through[np.argsort(-rows[through, 1], kind="stable")]
    fine = np.sort(by_coarse[: keep[1]]) if keep[1] < len(through) else through
    by_fine = fine[np.argsort(-rows[fine, 2], kind="stable")]
    rest = [i for i in by_coarse if i not in fine] + [i for i in by_filter if i not in through]
    found = ask(cascade(*keep), rows, [Ranker(column) for column in range(3)])
    assert found.dtype == np.float32
    assert np.argsort(-found, kind="stable").tolist() == [*by_fine.tolist(), *rest]


def test_a_stage_that_lets_everyone_through_is_not_asked() -> None:
    rankers = [Ranker(column) for column in range(3)]
    found = ask(cascade(5, 5), np.arange(9.0).reshape(3, 3), rankers)
    assert found.tolist() == [2, 5, 8]
    assert [ranker.seen for ranker in rankers] == [[], [], [3]]


def test_without_a_calibration_the_full_model_scores_everyone() -> None:
    rankers = [Ranker(column) for column in range(3)]
    assert ask(RankingCascade(), np.arange(9.0).reshape(3, 3), rankers).tolist() == [2, 5, 8]
    assert rankers[0].seen == []


@pytest.mark.parametrize("broken", [0, 1])
def test_a_stage_that_fails_lets_everyone_through(broken: int) -> None:
    rankers = [Ranker(column) for column in range(3)]
    rankers[broken].error = CrashedError("it must run", "it died", "Mend it")
    rows = np.random.default_rng(0).normal(size=(6, 3))
    found = ask(cascade(4, 2), rows, rankers)
    assert rankers[2].seen == [2 if broken == 0 else 4]
    assert len(found) == 6


def test_scores_that_are_no_numbers_decide_nothing() -> None:
    rows = np.array([[np.nan, 1, 1], [0, 2, 2], [1, 3, 3]])
    rankers = [Ranker(column) for column in range(3)]
    assert ask(cascade(1, 2), rows, rankers)[1:].tolist() == [2, 3]
    assert [ranker.seen for ranker in rankers] == [[3], [3], [2]]


def test_another_version_is_refused() -> None:
    with pytest.raises(CalibrationError, match="it is column 1"):
        ask(cascade(1, 1), np.zeros((1, 3)), [Ranker(1), Ranker(1), Ranker(2)])
