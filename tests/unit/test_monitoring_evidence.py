"""Evidence that is looked at all the time: what it promises, by hand and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pareflow.monitoring.evidence import BETS, Evidence, Hypothesis, always_valid_share

ERRORS = Hypothesis(limit=0.01, error=0.005, starts=1000, windows=3)


def window(hits: int, count: int) -> dict[float, int]:
    return {1.0: hits, 0.0: count - hits}


def looks_until(test: Hypothesis, values: dict[float, int], most: int = 100) -> int | None:
    evidence = Evidence()
    for look in range(1, most + 1):
        evidence = evidence.after(values, test)
        if evidence.proves(test):
            return look
    return None


def test_the_wealth_of_one_window_is_the_stake_times_what_the_bet_gains() -> None:
    """One bet by hand: at the limit 0.5 the boldest stakes half: 1.5 for a hit, 0.5 for none."""
    test = Hypothesis(limit=0.5, error=0.05, starts=10, windows=1)
    evidence = Evidence().after(window(3, 4), test)
    assert test.bets()[-1] == pytest.approx(0.5)
    assert math.exp(evidence.wealth[-1]) == pytest.approx(1.5**3 * 0.5 / 10)


@given(
    limit=st.floats(0.001, 0.999),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=4),
    below=st.floats(0, 1),
)
def test_no_bet_gains_on_average_while_the_mean_is_at_most_the_limit(
    limit: float, shares: list[float], below: float
) -> None:
    """For any two values with a mean of `below * limit`, also after the cut: at most what was staked."""
    test = Hypothesis(limit, 0.01, 100, 3)
    mean = below * limit
    for low in shares:
        low, high = min(low * mean, mean), 1.0
        chance = (mean - low) / (high - low)
        outcomes = [(chance, {high: 1}), (1 - chance, {low: 1})]
        wealth = [(p, Evidence().after(values, test).wealth) for p, values in outcomes]
        for bet in range(BETS):
            expected = sum(p * math.exp(found[bet]) for p, found in wealth)
            assert expected <= (1 + 1e-9) / test.starts


def test_a_plain_breach_takes_as_many_windows_as_must_agree() -> None:
    assert looks_until(ERRORS, window(50, 100)) == 3
    assert looks_until(Hypothesis(0.01, 0.005, 1000, 1), window(50, 100)) == 1


def test_at_the_limit_nothing_is_proven() -> None:
    assert looks_until(ERRORS, window(1, 100), most=1000) is None


def test_a_single_burst_is_no_breach() -> None:
    """One window with every request failed, and calm ones before and after."""
    evidence = Evidence()
    for hits in [0] * 50 + [100] + [0] * 50:
        evidence = evidence.after(window(hits, 100), ERRORS)
        assert not evidence.proves(ERRORS)


def test_an_empty_window_lays_no_stake() -> None:
    assert Evidence().after({1.0: 0, 0.0: 0}, ERRORS) == Evidence()


def test_weeks_at_the_limit_have_no_more_false_alarms_than_promised() -> None:
    """200 weeks of 200 windows exactly at the limit, at an error of 0.1: about 20 may alarm, and fewer do."""
    test = Hypothesis(limit=0.05, error=0.1, starts=200, windows=1)
    draws = np.random.default_rng(0).binomial(20, 0.05, size=(200, 200))
    alarms = 0
    for week in draws:
        evidence = Evidence()
        for hits in week:
            evidence = evidence.after(window(int(hits), 20), test)
            if evidence.proves(test):
                alarms += 1
                break
    assert alarms <= 20


def test_another_version_starts_without_wealth_and_with_what_the_week_has_left() -> None:
    evidence = Evidence().after(window(3, 10), ERRORS).restarted()
    assert (evidence.total(), evidence.laid) == (-math.inf, 1)


def test_a_new_week_lays_new_stakes() -> None:
    test = Hypothesis(limit=0.5, error=0.05, starts=2, windows=1)
    evidence = Evidence()
    for laid in (1, 2, 1):
        evidence = evidence.after(window(1, 2), test)
        assert evidence.laid == laid


@given(st.integers(0, 50), st.integers(1, 50))
def test_an_always_valid_interval_is_around_its_estimate(hits: int, count: int) -> None:
    hits = min(hits, count)
    found = always_valid_share(hits, count)
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.estimate <= found.high <= 1


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_an_always_valid_interval_of_a_sum_of_shares_is_around_its_estimate(count: int, share: float) -> None:
    """Requests of many rows, of which few disagree, add up to any number."""
    found = always_valid_share(share * count, count)
    assert found.low is not None
    assert found.high is not None
    assert 0 <= found.low <= found.estimate <= found.high <= 1


def test_so_little_that_no_share_is_too_small_leaves_the_interval_open() -> None:
    """One row of 256 disagreed, of ten requests; and the same the other way round."""
    few, nearly_all = always_valid_share(1 / 256, 10), always_valid_share(10 - 1e-3, 10)
    assert few.low == 0
    assert few.high == pytest.approx(always_valid_share(0, 10).high, abs=0.01)
    assert nearly_all.high == 1
    assert nearly_all.estimate == pytest.approx(0.9999)


def test_an_always_valid_interval_by_hand() -> None:
    """None of ten: 1/(11 (1 - p)^10) = 20 at p = 1 - (1/220)^(1/10)."""
    assert always_valid_share(0, 10).high == pytest.approx(1 - (1 / 220) ** 0.1)


def test_an_always_valid_interval_covers_at_every_look() -> None:
    """Of 300 series, each looked at 200 times, no more than one in ten leaves a two-sided 90 %."""
    draws = np.random.default_rng(1).random((300, 200)) < 0.3
    left = 0
    for series in draws:
        for count in range(10, 200, 10):
            found = always_valid_share(int(series[:count].sum()), count)
            if not (found.low or 0) <= 0.3 <= (found.high or 1):
                left += 1
                break
    assert left <= 30
