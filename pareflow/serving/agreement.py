"""Whether two versions predict the same: value by value, then sample by sample."""

import math
from collections.abc import Sequence

import numpy as np

from pareflow.workload import as_rows

DIFFERING = 0.01
"""Of the positions of one prediction (pixels, tokens): where no more differ, it is the same."""
NEAR = 0.05
"""Of the spread of predictions with fractions: what is nearer is the same."""


def parts(predictions: np.ndarray) -> list[np.ndarray]:
    """An array, or each row of one of objects by itself, shape (1, …): lists, which differ in shape."""
    return [as_rows([row]) for row in predictions] if predictions.dtype == object else [predictions]


def spread(predictions: Sequence[np.ndarray]) -> np.ndarray:
    """How far predictions with fractions lie apart, position by position; all together, where rows differ in
    shape.

    The standard deviation of those that are numbers; 0 where they have no fractions.
    """
    each = [part for one in predictions for part in parts(one)]
    if any(one.dtype.kind != "f" for one in each):
        return np.zeros(())
    alike = len({one.shape[1:] for one in each}) == 1
    values = np.concatenate([one if alike else one.ravel() for one in each])
    if not values.size:  # such as detections, of which no sample has one
        return np.zeros(())
    return np.asarray(np.ma.filled(np.ma.masked_invalid(values).std(axis=0), 0.0))


def near(one: np.ndarray, other: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Value by value, whether two lie at most so far apart, or are the same infinity.

    `distance` is of each position, or of all; where rows are of another shape than it, its mean.
    """
    if distance.shape != one.shape[1:]:
        distance = distance.mean()
    with np.errstate(invalid="ignore"):  # of two infinities the difference is no number
        return np.asarray((np.abs(one - other) <= distance) | (one == other))


def rows(same: np.ndarray) -> np.ndarray:
    """Row by row, shape (n,), of what is the same value by value, shape (n, …)."""
    width = math.prod(same.shape[1:])
    return np.asarray((~same).reshape(len(same), width).sum(axis=1) <= DIFFERING * width)


def lists(one: np.ndarray, other: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Row by row, shape (n,), whether rows that may differ in shape are the same: fractions as of `near`."""

    def same(ours: np.ndarray, theirs: np.ndarray) -> bool:
        if ours.shape != theirs.shape:
            return False
        fractions = ours.dtype.kind == theirs.dtype.kind == "f"
        return bool(rows(near(ours, theirs, distance) if fractions else np.asarray(ours == theirs)).all())

    pairs = zip(one.tolist(), other.tolist(), strict=True)
    return np.array([same(as_rows([ours]), as_rows([theirs])) for ours, theirs in pairs], dtype=bool)
