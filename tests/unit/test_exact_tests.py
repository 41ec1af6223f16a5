"""The tests that calibrations rest on keep their error, and are no weaker than they must be."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pareflow.intervals import paired_share_drop
from pareflow.runtime.exact_tests import NUISANCE_ERROR, mean_p_value, shares_p_value


def test_without_gains_nor_losses_the_p_value_is_that_of_a_binomial() -> None:
    """By hand, with gains impossible: 1 % of 500 never seen has the probability 0.99⁵⁰⁰."""
    assert shares_p_value(0, 0, 500, 0.01) == pytest.approx(0.99**500, abs=5 * NUISANCE_ERROR)
    assert shares_p_value(0, 0, 500, 0.01) > 0.99**500


def test_what_the_interval_of_the_gains_may_miss_counts() -> None:
    """However clear the tables are."""
    assert shares_p_value(0, 200, 3000, 0.1) >= NUISANCE_ERROR


@given(lost=st.integers(0, 60), won=st.integers(0, 60), n=st.integers(500, 3000))
def test_more_losses_never_speak_for_the_tier(lost: int, won: int, n: int) -> None:
    p = shares_p_value(lost, won, n, 0.01)
    assert 0 < p <= 1
    assert shares_p_value(lost + 1, won, n, 0.01) >= p - 1e-9


@given(lost=st.integers(0, 40), won=st.integers(0, 40))
def test_many_pairs_agree_with_tangos_interval(lost: int, won: int) -> None:
    """What passes here with room has an upper bound below the margin there, and the other way round."""
    n, margin = 2000, 0.01
    high = paired_share_drop(lost, won, n).high
    p = shares_p_value(lost, won, n, margin)
    assert high is not None
    if p < 0.04:
        assert high < margin
    if p > 0.06:
        assert high > margin


@pytest.mark.parametrize("gains", [0.0, 0.004, 0.02, 0.1])
def test_the_error_is_kept_at_the_margin_itself(gains: float) -> None:
    """Exactly, by the sum over all tables of n = 300: no simulation."""
    n, margin, error = 300, 0.02, 0.05
    most = int(stats.binom.ppf(1 - 1e-7, n, gains + margin)), int(stats.binom.ppf(1 - 1e-7, n, gains))
    passed = 0.0
    for won in range(most[1] + 1):
        share = stats.binom.pmf(won, n, gains)
        lost = _most_that_passes(won, n, margin, error)
        passed += share * float(stats.binom.cdf(lost, n - won, (gains + margin) / (1 - gains)))
    assert passed <= error + 1e-6
    assert passed > error / 4  # it is not merely shy


def _most_that_passes(won: int, n: int, margin: float, error: float) -> int:
    lost = -1
    while shares_p_value(lost + 1, won, n, margin) <= error:
        lost += 1
    return lost


def test_a_bet_on_no_loss_grows_as_by_hand() -> None:
    """One query without a loss, margin 0.5: bets from 0.036 to 1.8 grow by half of themselves on average."""
    bets = np.geomspace(1.8 / 50, 1.8, 10)
    assert mean_p_value(np.zeros(1), 0.5) == pytest.approx(1 / (1 + bets.mean() / 2))


@given(losses=st.lists(st.floats(-1, 1), min_size=1, max_size=50), margin=st.floats(0.01, 0.5))
def test_the_order_of_queries_is_nothing(losses: list[float], margin: float) -> None:
    """And larger losses never speak for a cascade."""
    p = mean_p_value(np.array(losses), margin)
    assert 0 < p <= 1
    assert mean_p_value(np.array(losses[::-1]), margin) == pytest.approx(p)
    assert mean_p_value(np.minimum(1, np.array(losses) + 0.1), margin) >= p - 1e-12


def test_the_error_of_means_is_kept_for_rare_large_losses() -> None:
    """A loss of 1 in one query of 50, which the bootstrap does not see in many samples."""
    chance = np.random.default_rng(0)
    repeats, n, margin = 1000, 150, 0.02
    passed = sum(mean_p_value(chance.random(n) < margin, margin) <= 0.05 for _ in range(repeats))
    assert passed / repeats <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / repeats)
