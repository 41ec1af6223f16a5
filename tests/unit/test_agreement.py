"""Whether two versions predict the same, by hand."""

from typing import Any

import numpy as np
import pytest

from pareflow.serving import agreement
from pareflow.serving.trial import agree
from pareflow.workload import as_rows

MASKS = np.zeros((2, 20, 20), np.int64)
"""Two, of 400 positions each: a hundredth is four."""


def with_others(count: int) -> np.ndarray:
    """The masks, so many positions of the second another class."""
    found = MASKS.copy()
    found[1].flat[:count] = 1
    return found


@pytest.mark.parametrize(("others", "same"), [(0, True), (1, True), (4, True), (5, False), (400, False)])
def test_a_mask_is_the_same_where_a_hundredth_of_it_differs_at_most(others: int, same: bool) -> None:
    masks = with_others(others)
    assert agreement.rows(masks == MASKS).tolist() == [True, same]
    assert agree(MASKS, masks, np.zeros(())) == same


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ([1, 2], [1, 2], True),
        ([1, 2], [1, 3], False),
        (["fee", "card"], ["fee", "cards"], False),
        ([[1, 2, 3]], [[1, 2, 4]], False),
        ([1, 2], [1, 2, 3], False),
        ([], [], True),
    ],
)
def test_labels_and_short_lists_of_them_must_be_equal(one: Any, other: Any, same: bool) -> None:
    assert agree(np.array(one), np.array(other), np.zeros(())) == same


def test_the_spread_is_of_each_position_and_leaves_out_what_is_no_number() -> None:
    """1 and 3 lie 1 apart from their mean, 0 and 20 lie 10; of 5 and an infinity 5 is left alone."""
    predictions = np.array([[1.0, 0.0, 5.0], [3.0, 20.0, np.inf]])
    assert agreement.spread([predictions]).tolist() == [1, 10, 0]
    assert agreement.spread([predictions[:1], predictions[1:]]).tolist() == [1, 10, 0]
    assert agreement.spread([np.array([1, 2])]) == agreement.spread([np.array(["a"])]) == 0
    assert agreement.spread([np.array([[1.0, 3.0]]), np.array([[1.0], [3.0]])]) == 1  # rows of two widths


def test_a_number_near_zero_agrees_where_it_is_near_for_such_numbers() -> None:
    """Predictions lie 10 apart: 0.4 beside 0 is rounding, 0.6 is not, however small the request's own are."""
    spread = agreement.spread([np.array([0.0, 20.0])])
    assert [agree(np.array([0.0]), np.array([other]), spread) for other in (0.4, 0.6)] == [True, False]
    assert agree(np.array([[0.0, 1.0]]), np.array([[0.4, 1.0]]), np.array([10.0, 0.0]))
    assert agree(np.array([[0.0]]), np.array([[0.4]]), np.array([10.0, 10.0]))  # of another width: the mean
    assert not agree(np.array([np.nan]), np.array([np.nan]), spread)


def test_detections_agree_where_there_are_as_many_and_each_is_near() -> None:
    """0, 10, 0, 10, 20 and 30 lie 10.7 apart: 0.5 beside 0 is rounding, 0.6 is not."""
    ours = as_rows([[], [[0.0, 10.0]], [[0.0, 10.0], [20.0, 30.0]]])
    spread = agreement.spread([ours])
    assert spread == pytest.approx(10.67, abs=0.01)
    for first, same in ((0.5, True), (0.6, False)):
        assert agree(ours, as_rows([[], [[first, 10.0]], ours[2]]), spread) is same
        assert agree(as_rows([ours[1]]), as_rows([[[first, 10.0]]]), spread) is same  # one sample alone
    assert not agree(ours, as_rows([[], [], ours[2]]), spread)
    assert not agree(ours, ours[:2], spread)
    assert agreement.spread([as_rows([[], []])]) == 0
