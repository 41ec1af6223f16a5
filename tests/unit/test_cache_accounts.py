"""The account of a cache: what it adds up to, and when it switches off and on."""

import asyncio
from collections.abc import Mapping

import numpy as np
import pytest

from pareflow.runtime import ExactCache
from pareflow.runtime.caching.accounts import Account
from pareflow.runtime.endpoint import Endpoint
from pareflow.workload import Arrays


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_an_account_adds_up() -> None:
    """Two computed in 20 ms, three hits: 30 ms saved, less 5 lookups of 1 ms and 2 ms of keeping."""
    account = Account(window=100, rest_s=60)
    account.computed(2, 0.020)
    account.paid(0.002)
    account.looked_up(hits=3, misses=2, cost_s=0.005)
    figures = account.figures()
    assert (figures["hits"], figures["misses"]) == (3, 2)
    assert figures["saved_ms"] == pytest.approx(30)
    assert figures["cost_ms"] == pytest.approx(7)
    assert figures["net_ms"] == pytest.approx(23)


def lookups(account: Account, count: int, hits: int) -> None:
    for i in range(count):
        account.looked_up(int(i < hits), int(i >= hits), 0.001)


def test_a_cache_that_loses_is_off_for_longer_and_longer_and_then_tried_again() -> None:
    """1 ms a lookup and 4 ms saved: 2 hits in 10 lose, 3 win. Its first window is not judged."""
    clock = Clock()
    account = Account(window=10, rest_s=60, clock=clock)
    account.computed(1, 0.004)
    lookups(account, 10, hits=0)
    assert account.on()
    for rest_s in (60, 120, 240):
        lookups(account, 10, hits=2)
        assert not account.on()
        clock.now += rest_s - 1
        assert not account.on()
        clock.now += 1
        assert account.on()
        lookups(account, 10, hits=0)
        assert account.on()
    lookups(account, 10, hits=3)
    assert account.on()
    lookups(account, 10, hits=2)
    clock.now += 60
    assert account.on()
    assert account.figures()["times_off"] == 4


def test_what_was_never_computed_is_not_judged() -> None:
    """Another process filled the store: what a hit saves is not known."""
    account = Account(window=5, rest_s=60)
    lookups(account, 50, hits=50)
    assert account.on()


def test_requests_pass_a_cache_that_lost() -> None:
    """Nothing is ever asked twice, and hashing costs: after two windows it is off, and keeps no more."""

    async def double(feeds: Mapping[str, np.ndarray]) -> Arrays:
        return {"y": feeds["x"] * 2}

    async def scenario() -> Mapping[str, float]:
        endpoint = ExactCache(window=5).wrap(Endpoint(double, "double"))
        for number in range(30):
            assert (await endpoint.answer({"x": np.full((1, 4), number)}))["y"][0, 0] == 2 * number
        return endpoint.figures["exact_cache"]()

    figures = asyncio.run(scenario())
    assert (figures["on"], figures["misses"], figures["skipped"], figures["entries"]) == (0, 10, 20, 10)
