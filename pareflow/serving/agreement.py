"""Whether two versions predict the same: value by value, then sample by sample."""

import math
from collections.abc import Sequence

import numpy as np

DIFFERING = 0.01
"""Of the positions of one prediction (pixels, tokens): where no more differ, it is the same."""
NEAR = 0.05
"""Of the spread of predictions with fractions: what is nearer is the same."""


def spread(predictions: Sequence[np.ndarray]) -> np.ndarray:
    """How far predictions with fractions lie apart, position by position; all together, where rows differ in
    shape.

    The standard deviation of those that are numbers; 0 where they have no fractions.
    """
    if any(one.dtype.kind != "f" for one in predictions):
        return np.zeros(())
    alike = len({one.shape[1:] for one in predictions}) == 1
    values = np.concatenate([one if alike else one.ravel() for one in predictions])
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
