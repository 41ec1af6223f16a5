"""The threshold of a semantic cache, from pairs of requests that share an answer or do not."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from pareflow.intervals import samples_needed, share_bounds
from pareflow.runtime.calibration import Drop, VariantBound, last_passed

STEPS = 800
"""Thresholds from 1 to -1 that are tried, fixed before any pair is seen."""
LEAST_SHARE = 1 / 8
"""Of the pairs, above the first threshold that is tested: a cache that hits fewer is hardly worth having, and
a single false hit among the nearest few must not end the search."""


@dataclass(frozen=True, slots=True)
class HitThreshold:
    """The lowest threshold whose false-hit rate is within the limit, or why there is none.

    Of the `hits` pairs at or above it, `false_hits` differ; `high` bounds the true rate. What is None was not
    found.
    """

    threshold: float | None
    pairs: int
    hits: int
    false_hits: int
    high: float | None
    reason: str


class HitCalibration(VariantBound):
    """From which score on a kept answer is given, for these variants alone, and what that was decided on."""

    score: str = Field(description="what the threshold is of: `margin` or `similarity`")
    settings: str = Field(description="the digest of the cache's other settings that decide on a hit")
    threshold: float = Field(ge=-1, le=2, description="the lowest score of a hit")
    max_false_hits: Drop = Field(description="the budget: the most of the hits that may be false")
    confidence: Drop = Field(description="how surely no more are")
    pairs: int = Field(ge=1, description="requests that were held against the kept ones")
    hits: int = Field(ge=0, description="of the pairs, at or above the threshold")
    false_hits: int = Field(ge=0, description="of the hits, those whose kept answer would not have done")
    held_answers: int | None = Field(
        default=None, ge=1, description="answers that were kept meanwhile: fewer give no hit by margin"
    )
    held_kinds: int | None = Field(
        default=None, ge=1, description="kinds that 19 of 20 of these were of: fewer give none, either"
    )


def calibrate(
    scores: Sequence[float] | np.ndarray,
    same: Sequence[bool] | np.ndarray,
    limit: float = 0.01,
    confidence: float = 0.95,
) -> HitThreshold:
    """A threshold at which at most `limit` of the hits are false, with `confidence`.

    `scores`: how near each request is to the kept one nearest to it, from -1 to 1, be it the cosine or the
    margin to the nearest with another answer; `same`: whether the kept answer would have done. Thresholds
    are tested from strict to loose, each by the exact binomial bound, and the first that fails ends it: so
    the chance that the one that is given is wrong is that of a single test. One above which too few pairs
    lie is not tested.
    Source: Angelopoulos et al., 2021, arXiv:2110.01052, section 2.3 (fixed-sequence testing); Clopper and
    Pearson, 1934, Biometrika 26:404. Departure: where the sequence begins depends on the scores.
    """
    from scipy import special

    scores, same = np.asarray(scores, float), np.asarray(same, bool)
    pairs, needed = len(scores), pairs_needed(limit, confidence)
    thresholds = np.linspace(1, -1, STEPS + 1)
    hits = (scores[None] >= thresholds[:, None]).sum(axis=1)
    tested = hits >= max(needed, LEAST_SHARE * pairs)
    if not tested.any():
        return _refused(pairs, f"{needed} pairs are needed at the least, but there are {pairs}")
    thresholds, hits = thresholds[tested], hits[tested]
    false_hits = ((scores[None] >= thresholds[:, None]) & ~same[None]).sum(axis=1)
    p_values = special.bdtr(false_hits, hits, limit)
    last = last_passed(range(len(thresholds)), lambda i: float(p_values[i]), confidence)
    high = share_bounds(int(false_hits[last or 0]), int(hits[last or 0]), confidence)[1]
    if last is None:
        failed = f"at {thresholds[0]:.3f}, {false_hits[0]} of {hits[0]} hits are false"
        return _refused(pairs, f"{failed}, a rate of up to {high:.2%}")
    return HitThreshold(float(thresholds[last]), pairs, int(hits[last]), int(false_hits[last]), high, "")


def pairs_needed(limit: float, confidence: float) -> int:
    """How many hits, none of them false, show a rate of at most `limit`: 299 for 1 % at 95 %."""
    return samples_needed(1 - limit, confidence)


def _refused(pairs: int, reason: str) -> HitThreshold:
    return HitThreshold(None, pairs, 0, 0, None, reason)
