"""How simple a request is, told from its inputs alone, before any network has seen it."""

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pareflow.errors import CalibrationError, UnsuitableError
from pareflow.variant import digest

LENGTHS: tuple[float, ...] = tuple(-float(length) for length in range(1, 1025))
"""Thresholds of the rule, the strictest first: the shorter an input, the simpler."""
_FEATURES = 2
"""Raised where the same score sees other `features`: a threshold that was calibrated before is refused."""


def shortness(array: np.ndarray) -> np.ndarray:
    """The rule: minus the number of entries that are not 0 per row, shape (batch,); of a mask, its tokens."""
    counts = -np.count_nonzero(array.reshape(len(array), -1), axis=1)
    return np.asarray(counts, dtype=np.float64)


class SimplicityScore(BaseModel):
    """The learned score: how likely a tier is right, by a logistic regression on cheap features.

    Plain numbers, so that it is kept and sent as JSON.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    buckets: int = Field(ge=0, description="of token counts; 0 where the input holds no tokens")
    weights: tuple[float, ...] = Field(description="one per feature, on the features' own scale")
    intercept: float

    def __call__(self, array: np.ndarray) -> np.ndarray:
        """From 0 to 1 per row, shape (batch,)."""
        odds = features(array, self.buckets) @ np.asarray(self.weights) + self.intercept
        return np.asarray(1 / (1 + np.exp(-np.clip(odds, -500, 500))))


def features(array: np.ndarray, buckets: int) -> np.ndarray:
    """Per row length, mean, deviation, roughness, and tokens counted in buckets, (batch, 4 + buckets).

    Roughness is the mean step between neighbours along the last axis. Tokens are counted by their remainder;
    the zeros at their end are filling, as long as the others of a batch make it, and belong to no row.
    Source for the buckets: Weinberger et al., 2009, arXiv:0902.2206 (feature hashing), without signs.
    """
    rows = array.reshape(len(array), -1).astype(np.float64)
    if buckets:
        return np.column_stack([-shortness(array), *_of_tokens(rows), _counts(rows, buckets)])
    steps = np.abs(np.diff(array.astype(np.float64), axis=-1)).reshape(len(array), -1)
    roughness = steps.mean(axis=1) if steps.size else np.zeros(len(array))
    return np.column_stack([-shortness(array), rows.mean(axis=1), rows.std(axis=1), roughness])


def _of_tokens(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, deviation and roughness without the zeros at the end, from sums that zeros leave as they are."""
    places = np.arange(1, rows.shape[1] + 1)
    lengths = (places * (rows != 0)).max(axis=1, initial=1)
    total, squares = rows.sum(axis=1), (rows**2).sum(axis=1)
    deviation = np.sqrt(np.maximum(lengths * squares - total**2, 0)) / lengths
    steps = np.abs(np.diff(rows)) * (places[1:] <= lengths[:, None])
    return total / lengths, deviation, steps.sum(axis=1) / np.maximum(lengths - 1, 1)


def _counts(rows: np.ndarray, buckets: int) -> np.ndarray:
    """Tokens in each bucket, (batch, buckets)."""
    counts, present = np.zeros((len(rows), buckets)), rows != 0
    owner = np.nonzero(present)[0]
    np.add.at(counts, (owner, rows[present].astype(np.int64) % buckets), 1.0)
    return counts


def train_score(
    arrays: np.ndarray | Sequence[np.ndarray], correct: np.ndarray, buckets: int = 0
) -> SimplicityScore:
    """The score that tells best whether a tier is right, from samples that no threshold is calibrated on.

    `arrays` hold their inputs, in one batch or in several that differ in length, and `correct` whether the
    tier was right, shape (n,).
    Raises: CalibrationError where the tier was always right, or never.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    right = np.asarray(correct, dtype=bool)
    if right.all() or not right.any():
        raise CalibrationError(
            "a score must see right and wrong answers", f"all {len(right)} are alike", "Give more samples"
        )
    scaler = StandardScaler()
    batches = [arrays] if isinstance(arrays, np.ndarray) else arrays
    scaled = scaler.fit_transform(np.concatenate([features(batch, buckets) for batch in batches]))
    fitted = LogisticRegression(C=0.1, max_iter=1000).fit(scaled, right)
    weights = fitted.coef_[0] / scaler.scale_
    return SimplicityScore(
        buckets=buckets,
        weights=tuple(map(float, weights)),
        intercept=float(fitted.intercept_[0] - weights @ scaler.mean_),
    )


def name_of(scores: Mapping[str, SimplicityScore]) -> str:
    """What a calibration calls these scores of tiers: `shortness` is the rule, which needs none."""
    if not scores:
        return "shortness"
    return f"learned {digest(_FEATURES, {name: one.model_dump(mode='json') for name, one in scores.items()})}"


def simplicity(feeds: Mapping[str, np.ndarray], name: str, score: SimplicityScore | None) -> np.ndarray:
    """Per row of the input `name` the learned score, or the rule, shape (batch,). Raises: UnsuitableError."""
    array = looked_at(feeds, name)
    return shortness(array) if score is None else score(array)


def looked_at(feeds: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    """The input of this name. Raises: UnsuitableError."""
    if name not in feeds:
        raise UnsuitableError(
            "`input` must name an input of the request",
            f"it is '{name}', and there are {', '.join(sorted(feeds))}",
            "Mend `input`",
        )
    return feeds[name]
