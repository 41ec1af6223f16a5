"""The simulation of a line: by hand, in order, and never sooner than the service takes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pareflow.runtime import DynamicBatching
from pareflow.runtime.service_time import ServiceTime
from pareflow.runtime.simulation import Setting, poisson, simulate


def setting(sessions: int = 1, **batching: float) -> Setting:
    return Setting(sessions, DynamicBatching.model_validate(batching))


def test_a_line_by_hand() -> None:
    """At 0 alone until 4; those of 1 and 2 together until 9; that of 20 alone until 24."""
    found = simulate(setting(max_batch_size=2), {1: 4, 2: 5}, np.array([0.0, 1, 2, 20]))
    assert found.tolist() == [4, 8, 7, 4]


def test_two_sessions_work_side_by_side() -> None:
    found = simulate(setting(2, max_batch_size=1), {1: 4}, np.array([0.0, 1, 2, 3]))
    assert found.tolist() == [4, 4, 6, 6]


def test_a_line_too_short_is_held_back_no_longer_than_allowed() -> None:
    """Two are worth 3 s: the second comes after 2; the last waits all 3, for nobody."""
    policy = setting(max_batch_size=2, min_batch_size=2, max_wait_ms=3000)
    assert simulate(policy, {1: 1, 2: 1}, np.array([0.0, 2, 50])).tolist() == [3, 1, 1]
    alone = simulate(policy, {1: 1, 2: 1}, np.array([0.0, 50, 51]))
    assert alone.tolist() == [4, 2, 1]


def test_sizes_between_and_beyond_those_measured() -> None:
    arrivals = np.zeros(7)
    between = simulate(setting(max_batch_size=3), {1: 1, 4: 4}, arrivals[:3])
    beyond = simulate(setting(max_batch_size=7), {1: 1, 2: 3}, arrivals)
    assert between.tolist() == [3] * 3
    assert beyond.tolist() == [10.5] * 7


def test_requests_at_random_come_at_their_rate() -> None:
    arrivals = poisson(50, 20_000)
    assert (np.diff(arrivals) >= 0).all()
    assert 20_000 / arrivals[-1] == pytest.approx(50, rel=0.03)


@given(
    gaps=st.lists(st.floats(0, 5), min_size=1, max_size=60),
    sessions=st.integers(1, 3),
    most=st.integers(1, 6),
)
def test_nobody_is_answered_before_those_who_came_first_are_begun(
    gaps: list[float], sessions: int, most: int
) -> None:
    """Starts are in the order of arrival, and no wait is shorter than the service."""
    arrivals, times = np.cumsum(gaps), {1: 1.0, 8: 3.0}
    found = simulate(setting(sessions, max_batch_size=most), times, arrivals)
    assert (found >= 1 - 1e-9).all()
    if most == 1:
        starts = arrivals + found - 1
        assert (np.diff(starts) >= -1e-9).all()
        alone = simulate(setting(sessions + 1, max_batch_size=1), times, arrivals)
        assert (alone <= found + 1e-9).all()


def test_service_time_is_a_line_through_what_was_seen() -> None:
    """2 ms and 3 ms per sample."""
    learnt = ServiceTime()
    assert np.isnan(learnt.predict(1))
    for count in (1, 4, 2, 8):
        learnt.observe(count, 0.002 + 0.003 * count)
    assert learnt.predict(6) == pytest.approx(0.020)


def test_of_one_size_alone_more_is_dearer_in_proportion_and_less_is_not_cheaper() -> None:
    learnt = ServiceTime()
    for _ in range(3):
        learnt.observe(2, 0.01)
    assert [learnt.predict(count) for count in (1, 2, 4)] == pytest.approx([0.01, 0.01, 0.02])


def test_service_time_follows_a_machine_that_gets_slower() -> None:
    learnt = ServiceTime(memory=0.5)
    for seconds in (1.0, 1.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0):
        learnt.observe(1, seconds)
    assert learnt.predict(1) == pytest.approx(3, abs=0.1)
