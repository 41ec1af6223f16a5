"""A session that keeps its answers: what counts as equal, what is dropped, and what is never mixed up."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pareflow.measurement import Ran
from pareflow.runtime.caching.session import CachedSession
from pareflow.workload import Arrays

ROW = 1024
"""Bytes of one answer of `Doubling`: 128 numbers of 8."""


class Doubling:
    """Answers twice what it is given, and counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        self.asked += 1
        return {"output": feeds["x"] * 2}

    def ran(self) -> Ran:
        return Ran("doubling", "1", "float64", "CPU", 1)


def row(number: int) -> Arrays:
    return {"x": np.full((1, 128), number, dtype=np.float64)}


def test_an_equal_request_is_not_computed_again() -> None:
    session = Doubling()
    cached = CachedSession(session, 2**20)
    for number in (1, 2, 1, 1, 2):
        assert cached.run(row(number))["output"][0, 0] == 2 * number
    assert (session.asked, cached.hits, cached.misses, cached.held_bytes) == (2, 3, 2, 2 * ROW)


def test_the_least_recently_used_is_dropped() -> None:
    """Room for two answers: 1 is used again before 3 comes, so that 2 goes."""
    session = Doubling()
    cached = CachedSession(session, 2 * ROW)
    for number in (1, 2, 1, 3):
        cached.run(row(number))
    assert (session.asked, cached.held_bytes) == (3, 2 * ROW)
    cached.run(row(1))
    assert session.asked == 3
    cached.run(row(2))
    assert session.asked == 4


def test_an_answer_that_never_fits_drops_no_other() -> None:
    session = Doubling()
    cached = CachedSession(session, 2 * ROW)
    cached.run(row(1))
    cached.run({"x": np.zeros((3, 128))})
    assert cached.held_bytes == ROW
    cached.run(row(1))
    assert cached.hits == 1


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(1, 7))
def test_it_answers_as_its_session_and_never_holds_more_than_it_may(order: list[int], rows: int) -> None:
    session = Doubling()
    cached = CachedSession(session, rows * ROW)
    for number in order:
        assert np.array_equal(cached.run(row(number))["output"], row(number)["x"] * 2)
        assert cached.held_bytes <= rows * ROW
    assert cached.hits + cached.misses == len(order)
    assert session.asked == cached.misses
    if rows >= 6:
        assert cached.misses == len(set(order))


def test_threads_share_it() -> None:
    cached = CachedSession(Doubling(), 4 * ROW)
    with ThreadPoolExecutor(8) as pool:
        numbers = [i % 7 for i in range(400)]
        answers = list(pool.map(lambda number: cached.run(row(number))["output"][0, 0], numbers))
    assert answers == [2 * number for number in numbers]
    assert cached.hits + cached.misses == 400
    assert cached.held_bytes <= 4 * ROW
