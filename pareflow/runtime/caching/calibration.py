"""The threshold of a semantic cache, from pairs of requests that share an answer or do not."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

STEPS = 400
"""Thresholds from 1 to -1 that are tried, fixed before any pair is seen."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The lowest threshold whose false-hit rate is within the limit, or why there is none.

    Of the `hits` pairs at or above it, `false_hits` differ; `high` bounds the true rate. `hit_share` is of
    all pairs. What is None was not found.
    """

    threshold: float | None
    pairs: int
    hits: int
    false_hits: int
    high: float | None
    reason: str

    @property
    def hit_share(self) -> float:
        return self.hits / self.pairs if self.pairs else 0.0


def calibrate(
    similarities: Sequence[float] | np.ndarray,
    same: Sequence[bool] | np.ndarray,
    limit: float = 0.01,
    confidence: float = 0.95,
) -> Calibration:
    """A threshold at which at most `limit` of the hits are false, with `confidence`.

    `similarities`: of each request to the kept one nearest to it, from -1 to 1; `same`: whether the kept
    answer would have done. Thresholds are tested from strict to loose, each by the exact binomial bound, and
    the first that fails ends it: so the chance that the one that is given is wrong is that of a single test.
    One above which too few pairs lie to pass, whatever they say, is not tested.
    Source: Angelopoulos et al., 2021, arXiv:2110.01052, section 2.3 (fixed-sequence testing); Clopper and
    Pearson, 1934, Biometrika 26:404. Departure: where the sequence begins depends on the similarities.
    """
    similarities, same = np.asarray(similarities, float), np.asarray(same, bool)
    pairs, needed = len(similarities), pairs_needed(limit, confidence)
    passed = Calibration(None, pairs, 0, 0, None, "")
    for threshold in np.linspace(1, -1, STEPS + 1):
        hit = similarities >= threshold
        hits, false_hits = int(hit.sum()), int((hit & ~same).sum())
        if hits < needed:
            continue
        high = upper_bound(false_hits, hits, confidence)
        if high > limit:
            failed = f"at {threshold:.3f}, {false_hits} of {hits} hits are false, a rate of up to {high:.2%}"
            return passed if passed.threshold is not None else _refused(pairs, failed)
        passed = Calibration(float(threshold), pairs, hits, false_hits, high, "")
    if passed.threshold is None:
        return _refused(pairs, f"{needed} pairs are needed at the least, but there are {pairs}")
    return passed


def pairs_needed(limit: float, confidence: float) -> int:
    """How many hits, none of them false, show a rate of at most `limit`: 299 for 1 % at 95 %."""
    from pareflow.intervals import samples_needed

    return samples_needed(1 - limit, confidence)


def upper_bound(false_hits: int, hits: int, confidence: float) -> float:
    """The one-sided Clopper-Pearson bound of a rate, from above."""
    from scipy import stats

    return 1.0 if false_hits >= hits else float(stats.beta.ppf(confidence, false_hits + 1, hits - false_hits))


def lower_bound(false_hits: int, hits: int, confidence: float) -> float:
    """The same from below."""
    from scipy import stats

    return 0.0 if not false_hits else float(stats.beta.ppf(1 - confidence, false_hits, hits - false_hits + 1))


def _refused(pairs: int, reason: str) -> Calibration:
    return Calibration(None, pairs, 0, 0, None, reason)
