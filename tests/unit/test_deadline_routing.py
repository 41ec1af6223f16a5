"""Routing by deadline: the best variant that is in time, a cheaper one, or a refusal at once."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pareflow.errors import CrashedError, DeadlineError, InputError
from pareflow.runtime import DeadlineRouting
from pareflow.runtime.endpoint import Endpoint, answered_within
from pareflow.workload import Arrays
from tests.concurrency import run, settle, skip

FOREVER_S = 1000.0


class Variant:
    """Answers with its name after `takes_s`, or when it is let, where that is None."""

    def __init__(self, name: str, takes_s: float | None = 0.0, error: Exception | None = None) -> None:
        self.name, self.takes_s, self.error = name, takes_s, error
        self.asked = 0
        self.let = asyncio.Event()

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.answer, self.name)

    async def answer(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        self.asked += 1
        if self.takes_s is None:
            await self.let.wait()
        else:
            await asyncio.sleep(self.takes_s)
        if self.error is not None:
            raise self.error
        return {"by": np.full(len(feeds["x"]), self.name)}


ONE = {"x": np.ones((1, 2))}


def routed(full: Variant, *tiers: Variant, **settings: Any) -> Endpoint:
    below = replace(full.endpoint, tiers={tier.name: tier.endpoint for tier in tiers})
    return DeadlineRouting(**settings).wrap(below)


async def by(endpoint: Endpoint, within_s: float | None = None) -> str:
    with answered_within(within_s):
        return str((await endpoint.answer(ONE))["by"][0])


def figures(endpoint: Endpoint) -> Mapping[str, float]:
    return endpoint.figures["deadline_routing"]()


def test_the_best_that_is_in_time_answers() -> None:
    """Known to take 20, 10 and no seconds: whoever has 5, 15 or 60 is answered by another."""

    async def scenario() -> None:
        full, small, tiny = Variant("full"), Variant("small"), Variant("tiny")
        endpoint = routed(full, tiny, small, caution=1, probe_every_s=FOREVER_S)
        for lane, took_s in zip(lanes(endpoint), (20, 10, 0), strict=True):
            lane._took(1, time.monotonic() - took_s, None)
        assert [await by(endpoint, s) for s in (5, 15, 60, None)] == ["tiny", "small", "full", "full"]
        assert (figures(endpoint)["answered_small"], figures(endpoint)["refused"]) == (1, 0)

    run(scenario)


def test_a_variant_that_has_become_slow_is_left_though_its_late_answers_are_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server gives up at the deadline; what was waited for is known to be too little."""

    async def scenario() -> None:
        full, small = Variant("full"), Variant("small")
        endpoint = routed(full, small, probe_every_s=FOREVER_S)
        assert await by(endpoint, 10) == "full"
        full.takes_s, told = None, list[str]()
        for _ in range(12):
            asked = asyncio.ensure_future(by(endpoint, 10))
            await settle()
            if asked.done():
                told.append(await asked)
                continue
            skip(monkeypatch, 10)
            asked.cancel()
            await asyncio.wait([asked])
            told.append("late")
        assert (told[0], told[-1]) == ("late", "small")
        assert figures(endpoint)["late_full"] == told.count("late")

    run(scenario, seconds=200)


def lanes(endpoint: Endpoint) -> list[Any]:
    """The lines of the variants, best first: to time each once, as a warm server has."""
    router: Any = endpoint.answer
    return list(router.__self__._lanes)


def test_what_none_can_answer_in_time_is_refused_before_it_costs_anything() -> None:
    async def scenario() -> None:
        full, tiny = Variant("full", 0.2), Variant("tiny", 0.1)
        endpoint = routed(full, tiny, probe_every_s=FOREVER_S)
        for lane in lanes(endpoint):
            await lane.answer(ONE)
        with pytest.raises(DeadlineError, match="even the quickest variant would take about") as refused:
            await by(endpoint, 0.02)
        assert refused.value.retry_after_s >= 0.1
        assert (full.asked, tiny.asked, figures(endpoint)["refused"]) == (1, 1, 1)

    run(scenario)


def test_those_in_line_count() -> None:
    """The full model takes 0.05 s and has ten before it: whoever has 0.3 s is answered by the tiny one."""

    async def scenario() -> None:
        full, tiny = Variant("full", 0.05), Variant("tiny")
        endpoint = routed(full, tiny, probe_every_s=FOREVER_S)
        assert await by(endpoint) == "full"
        line = [asyncio.ensure_future(by(endpoint)) for _ in range(10)]
        await asyncio.sleep(0)
        assert await by(endpoint, 0.3) == "tiny"
        assert await by(endpoint, 60) == "full"
        assert await asyncio.gather(*line) == ["full"] * 10
        assert await by(endpoint, 0.3) == "full"

    run(scenario)


def test_a_variant_that_hangs_is_not_waited_for() -> None:
    """It took no time before; the longer it is overdue, the longer the others expect it to take."""

    async def scenario() -> None:
        full, tiny = Variant("full"), Variant("tiny")
        endpoint = routed(full, tiny, probe_every_s=FOREVER_S)
        assert await by(endpoint) == "full"
        full.takes_s = None
        stuck = asyncio.ensure_future(by(endpoint))
        await asyncio.sleep(0.2)
        assert await by(endpoint, 0.1) == "tiny"
        full.let.set()
        assert await stuck == "full"

    run(scenario)


def test_a_variant_that_hangs_from_the_first_is_not_waited_for() -> None:
    async def scenario() -> None:
        full, tiny = Variant("full", None), Variant("tiny")
        endpoint = routed(full, tiny, probe_every_s=FOREVER_S)
        stuck = asyncio.ensure_future(by(endpoint))
        await asyncio.sleep(0.2)
        assert await by(endpoint, 0.1) == "tiny"
        full.let.set()
        assert await stuck == "full"

    run(scenario)


def test_whoever_waits_behind_what_hangs_is_told_at_his_deadline() -> None:
    """He is not computed, and his place in the line is free again."""

    async def scenario() -> None:
        full = Variant("full", None)
        endpoint = routed(full, probe_every_s=FOREVER_S)
        first = asyncio.ensure_future(by(endpoint))
        await asyncio.sleep(0)
        with pytest.raises(DeadlineError, match="its turn had not come by then"):
            await asyncio.wait_for(by(endpoint, 0.05), 30)
        full.let.set()
        assert await first == "full"
        assert (full.asked, figures(endpoint)["late_full"]) == (1, 1)
        assert await by(endpoint) == "full"

    run(scenario)


def test_a_slow_moment_does_not_shut_a_variant_out() -> None:
    """It took 0.3 s once; passed over, it is timed on copies of requests, and then chosen again."""

    async def scenario() -> None:
        full, tiny = Variant("full", 0.3), Variant("tiny")
        endpoint = routed(full, tiny, probe_every_s=1e-3)
        assert await by(endpoint) == "full"
        full.takes_s = 0.0
        answers = [await by(endpoint, 0.1)]
        while answers[-1] == "tiny":
            await asyncio.sleep(2e-3)
            answers.append(await by(endpoint, 0.1))
        assert answers[0] == "tiny"
        assert figures(endpoint)["probes_full"] >= 1
        assert full.asked == 2 + figures(endpoint)["probes_full"]

    run(scenario)


def test_nobody_is_refused_for_ever() -> None:
    """Also where the only variant was slow once."""

    async def scenario() -> None:
        full = Variant("full", 0.3)
        endpoint = routed(full, probe_every_s=1e-3)
        assert await by(endpoint) == "full"
        full.takes_s = 0.0
        refused = 0
        while True:
            try:
                assert await by(endpoint, 0.1) == "full"
                break
            except DeadlineError:
                refused += 1
                await asyncio.sleep(2e-3)
        assert refused

    run(scenario)


def test_a_probe_that_fails_is_counted_and_nobodys_error() -> None:
    async def scenario() -> None:
        full, tiny = Variant("full", error=CrashedError("it must run", "it died", "Mend it")), Variant("tiny")
        endpoint = routed(full, tiny, probe_every_s=1e-3)
        lanes(endpoint)[0]._took(1, time.monotonic() - 20, None)
        await asyncio.sleep(2e-3)
        assert await by(endpoint, 10) == "tiny"
        await settle()
        assert figures(endpoint)["failed_full"] == 1

    run(scenario)


def test_where_a_variant_fails_the_next_in_time_answers() -> None:
    async def scenario() -> None:
        error = CrashedError("it must run", "it died", "Mend it")
        full, small = Variant("full", error=error), Variant("small")
        endpoint = routed(full, small)
        assert await by(endpoint, 60) == "small"
        small.error = ValueError("by whatever")
        with pytest.raises(CrashedError):  # the best one's
            await by(endpoint)
        assert (figures(endpoint)["failed_full"], figures(endpoint)["failed_small"]) == (2, 1)

    run(scenario)


def test_whoever_gives_up_leaves_the_line() -> None:
    async def scenario() -> None:
        full = Variant("full", None)
        endpoint = routed(full)
        first, gone, last = (asyncio.ensure_future(by(endpoint)) for _ in range(3))
        await asyncio.sleep(0.01)
        gone.cancel()
        await asyncio.sleep(0)
        full.let.set()
        assert list(await asyncio.gather(first, last)) == ["full", "full"]
        assert full.asked == 2

    run(scenario)


def test_only_the_tiers_that_are_named_and_in_their_order() -> None:
    async def scenario() -> None:
        full, small, tiny = Variant("full"), Variant("small"), Variant("tiny")
        named = routed(full, tiny, small, tiers=("tiny",))
        assert [lane.name for lane in lanes(named)] == ["full", "tiny"]
        every = routed(full, tiny, small)
        assert [lane.name for lane in lanes(every)] == ["full", "small", "tiny"]

    run(scenario)


def test_a_tier_that_is_not_there_is_told_when_wrapped() -> None:
    async def scenario() -> None:
        with pytest.raises(InputError, match="the tier `huge` must be there, but there are tiny"):
            routed(Variant("full"), Variant("tiny"), tiers=("huge",))

    run(scenario)
