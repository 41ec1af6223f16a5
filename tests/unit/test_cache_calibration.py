"""The threshold of a semantic cache, and its rate of false hits in operation: what is promised is kept."""

import numpy as np
import pytest
from scipy import stats

from pareflow.runtime.caching.calibration import calibrate
from pareflow.runtime.caching.false_hits import FalseHits, Threshold

REPEATS = 200
AT_MOST = int(stats.binom.ppf(0.999, REPEATS, 0.05))
"""Failures that a procedure which fails in 5 % of all cases may show in so many."""


def test_the_lowest_threshold_before_the_first_that_fails() -> None:
    """None of 400 is false at 0.9, 2 of 700 at 0.8 (at most 0.90 %), 12 of 1200 at 0.7 (at most 1.6 %)."""
    scores = np.repeat([0.9, 0.8, 0.7], [400, 300, 500])
    same = np.ones(1200, bool)
    same[[400, 401, *range(700, 710)]] = False
    found = calibrate(scores, same)
    assert found.threshold == pytest.approx(0.7025)
    assert (found.pairs, found.hits, found.false_hits) == (1200, 700, 2)
    assert found.high == pytest.approx(0.0090, abs=1e-4)


@pytest.mark.parametrize(
    ("pairs", "reason"),
    [
        (0, "299 pairs are needed at the least, but there are 0"),
        (298, "299 pairs are needed at the least, but there are 298"),
    ],
)
def test_too_few_pairs_are_refused_with_how_many_it_needs(pairs: int, reason: str) -> None:
    found = calibrate(np.ones(pairs), np.ones(pairs, bool))
    assert (found.threshold, found.reason) == (None, reason)


def test_pairs_that_no_similarity_tells_apart_are_refused() -> None:
    found = calibrate(np.ones(1000), np.arange(1000) % 20 != 0)
    assert found.threshold is None
    assert "at 1.000, 50 of 1000 hits are false, a rate of up to 6.29%" in found.reason


def synthetic(chance: np.random.Generator, pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Similarities evenly from 0.5 to 1, a share (1 - s) / 10 of which is false: (1 - t) / 20 above t."""
    similarities = chance.uniform(0.5, 1, pairs)
    return similarities, chance.random(pairs) >= (1 - similarities) / 10


def test_a_calibrated_threshold_is_wrong_in_at_most_one_of_twenty_calibrations() -> None:
    """The true rate is 1 % at 0.8. The lowest threshold that looks good is wrong in half of all cases."""
    chance = np.random.default_rng(0)
    wrong = found = naive = 0
    for _ in range(REPEATS):
        similarities, same = synthetic(chance, 10_000)
        threshold = calibrate(similarities, same).threshold
        found += threshold is not None
        wrong += threshold is not None and (1 - threshold) / 20 > 0.01
        order = np.argsort(-similarities)
        rates = np.cumsum(~same[order]) / np.arange(1, 10_001)
        naive += (1 - similarities[order][np.flatnonzero(rates <= 0.01)[-1]]) / 20 > 0.01
    assert wrong <= AT_MOST
    assert naive > REPEATS / 3
    assert found > REPEATS / 2


@pytest.mark.parametrize(("rate", "most"), [(0.01, AT_MOST), (0.002, AT_MOST)])
def test_a_good_cache_is_not_switched_off_however_often_one_looks(rate: float, most: int) -> None:
    chance = np.random.default_rng(1)
    assert sum(exceeded(chance.random(2000) < rate) for _ in range(REPEATS)) <= most


def exceeded(false: np.ndarray) -> bool:
    watched = FalseHits(0.01)
    for one in false:
        watched.observe(bool(one))
    return watched.exceeded


def test_a_bad_cache_is_switched_off() -> None:
    chance = np.random.default_rng(2)
    assert all(exceeded(chance.random(2000) < 0.05) for _ in range(20))


def test_the_rate_is_told_with_its_interval() -> None:
    watched = FalseHits(0.01)
    assert watched.figures() == {"reruns": 0, "false_hits": 0}
    for i in range(50):
        watched.observe(i < 2)
    figures = watched.figures()
    assert figures["false_hit_rate"] == 0.04
    assert (figures["false_hit_low"], figures["false_hit_high"]) == pytest.approx(
        (0.00715, 0.12061), abs=1e-5
    )


def test_shadow_pairs_give_a_threshold_by_themselves() -> None:
    """400 pairs at 97.5 % confidence need 368 without a false one."""
    threshold = Threshold(None, 0.01, pairs=400)
    for i in range(400):
        assert threshold.value is None
        threshold.observe(0.9 if i else 0.2, same=bool(i))
    assert threshold.value == pytest.approx(0.2025)
    assert not threshold.wanted


def test_a_cache_without_a_threshold_in_three_attempts_gives_up() -> None:
    """400, 800 and 1600 pairs, each new ones."""
    threshold = Threshold(None, 0.01, pairs=400)
    for i in range(2800):
        assert threshold.wanted
        threshold.observe(0.9, same=bool(i % 2))
    assert threshold.given_up
    assert not threshold.wanted
    assert threshold.figures()["calibrations"] == 3
