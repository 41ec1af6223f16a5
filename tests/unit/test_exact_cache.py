"""The exact cache: what is computed how often, for whom, and what is never given to another."""

import asyncio
import traceback
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pareflow.errors import DeadlineError, SpecError
from pareflow.runtime import ExactCache
from pareflow.runtime.caching.keys import request_key
from pareflow.runtime.caching.stores.memory import entry_bytes
from pareflow.runtime.endpoint import Endpoint, answered_within, deadline
from pareflow.serving.plan import ServingPlan, read
from pareflow.workload import Arrays
from tests.concurrency import run, settle


class Scaling:
    """Multiplies by its version, where it is `held` when it is let; counts how often it is asked."""

    def __init__(self, version: int = 2, *, held: bool = False) -> None:
        self.asked = self.cancelled = 0
        self._version = version
        self._turns = asyncio.Semaphore(0 if held else 10**6)

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.answer, f"models:/it/{self._version}")

    async def answer(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        self.asked += 1
        try:
            await self._turns.acquire()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if deadline() is not None:
            raise DeadlineError("it must be there in time", "it is not")
        return {"y": feeds["x"] * self._version}

    def let(self) -> None:
        self._turns.release()


def row(number: float) -> Arrays:
    return {"x": np.full((1, 16), number)}


def test_an_equal_request_is_not_computed_again() -> None:
    async def scenario() -> None:
        below = Scaling()
        endpoint = ExactCache().wrap(below.endpoint)
        for number in (1, 2, 1, 1, 2):
            assert (await endpoint.answer(row(number)))["y"][0, 0] == 2 * number
        figures = endpoint.figures["exact_cache"]()
        assert (below.asked, figures["hits"], figures["misses"]) == (2, 3, 2)

    run(scenario)


def test_equal_requests_at_once_are_computed_once_and_each_may_write_into_its_answer() -> None:
    async def scenario() -> None:
        below = Scaling(held=True)
        endpoint = ExactCache().wrap(below.endpoint)
        asked = [asyncio.ensure_future(endpoint.answer(row(3))) for _ in range(3)]
        await settle()
        below.let()
        for answer in await asyncio.gather(*asked):
            assert answer["y"][0, 0] == 6
            answer["y"].fill(0)
        assert (await endpoint.answer(row(3)))["y"][0, 0] == 6
        assert below.asked == 1
        assert endpoint.figures["exact_cache"]()["joined"] == 2

    run(scenario)


def test_who_writes_into_his_answer_at_once_changes_nobody_elses() -> None:
    """In the task that asked, before anybody else who waited has gone on."""

    async def scenario() -> None:
        below = Scaling(held=True)
        endpoint = ExactCache().wrap(below.endpoint)

        async def ask() -> float:
            answer = (await endpoint.answer(row(3)))["y"]
            found = float(answer[0, 0])
            answer.fill(0)
            return found

        asked = [asyncio.ensure_future(ask()) for _ in range(3)]
        await settle()
        below.let()
        assert await asyncio.gather(*asked, ask()) == [6] * 4
        assert below.asked == 1

    run(scenario)


@pytest.mark.parametrize("gone", [[0], [1], [0, 1]], ids=["the first", "a later one", "both"])
def test_a_cancelled_caller_takes_nobody_with_it(gone: list[int]) -> None:
    async def scenario() -> None:
        below = Scaling(held=True)
        endpoint = ExactCache().wrap(below.endpoint)
        asked = [asyncio.ensure_future(endpoint.answer(row(3))) for _ in range(3)]
        await settle()
        for i in gone:
            asked[i].cancel()
        await settle()
        below.let()
        assert (await asked[2])["y"][0, 0] == 6
        assert (below.asked, below.cancelled) == (1, 0)

    run(scenario)


def test_what_nobody_waits_for_any_more_is_given_up_and_joined_by_nobody() -> None:
    async def scenario() -> None:
        below = Scaling(held=True)
        endpoint = ExactCache().wrap(below.endpoint)
        gone = asyncio.ensure_future(endpoint.answer(row(3)))
        await settle()
        gone.cancel()
        await asyncio.sleep(0)
        later = asyncio.ensure_future(endpoint.answer(row(3)))
        await settle()
        below.let()
        assert (await later)["y"][0, 0] == 6
        assert (below.asked, below.cancelled) == (2, 1)

    run(scenario)


def test_a_deadline_of_one_caller_is_not_that_of_another() -> None:
    """The first is too late and fails; who waited with it asks for itself."""

    async def scenario() -> None:
        below = Scaling(held=True)
        endpoint = ExactCache().wrap(below.endpoint)
        with answered_within(0.001):
            hurried = asyncio.ensure_future(endpoint.answer(row(3)))
        patient = asyncio.ensure_future(endpoint.answer(row(3)))
        await settle()
        below.let()
        with pytest.raises(DeadlineError):
            await hurried
        await settle()
        below.let()
        assert (await patient)["y"][0, 0] == 6
        assert below.asked == 2

    run(scenario)


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory" if request.param == "memory" else f"sqlite:{tmp_path / 'cache.db'}"


def test_never_an_answer_of_another_version(store: str) -> None:
    """Also where both keep theirs in one file, and also after going back."""

    async def scenario() -> None:
        policy = ExactCache(store=store)
        versions = {version: policy.wrap(Scaling(version).endpoint) for version in (1, 2)}
        for version in (1, 2, 2, 1):
            assert (await versions[version].answer(row(5)))["y"][0, 0] == 5 * version
            await asyncio.sleep(0.05)
        for endpoint in versions.values():
            await endpoint.close()

    run(scenario)


def test_flush_removes_what_one_version_answered_and_no_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        policy = ExactCache(store=f"sqlite:{tmp_path / 'cache.db'}")
        old, new = Scaling(1), Scaling(2)
        endpoints = [policy.wrap(below.endpoint) for below in (old, new)]
        for endpoint in endpoints:
            for number in (1, 2, 3):
                await endpoint.answer(row(number))
        await endpoints[1].flush()  # which waits for what is not yet written
        await endpoints[0].flush()
        await endpoints[1].answer(row(1))
        await endpoints[1].close()
        await endpoints[0].flush()
        reopened = policy.wrap(new.endpoint)
        await reopened.answer(row(1))
        assert (old.asked, new.asked) == (3, 4)
        await reopened.answer(row(2))
        assert new.asked == 5
        for endpoint in (endpoints[0], reopened):
            await endpoint.close()

    run(scenario)


def test_policies_flush_and_close_those_below_them() -> None:
    async def scenario() -> list[str]:
        done: list[str] = []

        async def flush() -> None:
            done.append("flushed below")

        endpoint = ExactCache().wrap(replace(Scaling().endpoint, flush=flush))
        await endpoint.answer(row(1))
        await endpoint.flush()
        assert endpoint.figures["exact_cache"]()["entries"] == 0
        return done

    assert run(scenario) == ["flushed below"]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 3)), max_size=40), st.integers(1, 7))
def test_it_answers_as_below_and_never_holds_more_than_it_may(
    order: list[tuple[int, int]], entries: int
) -> None:
    """Two versions asked in any order, each with room for so many answers."""

    async def scenario() -> None:
        size = entry_bytes(row(0))
        policy = ExactCache(max_mib=entries * size / 2**20)
        belows = {version: Scaling(version) for version in (1, 2, 3)}
        endpoints = {version: policy.wrap(below.endpoint) for version, below in belows.items()}
        for number, version in order:
            answer = await endpoints[version].answer(row(number))
            assert np.array_equal(answer["y"], row(number)["x"] * version)
            figures = endpoints[version].figures["exact_cache"]()
            assert figures["held_bytes"] <= entries * size
        if entries >= 6:
            assert sum(below.asked for below in belows.values()) == len(set(order))

    run(scenario)


@pytest.mark.parametrize(
    "other",
    [
        {"x": np.zeros((2, 3), np.int32)},
        {"x": np.zeros((3, 2), np.float32)},
        {"x": np.zeros((1, 6), np.float32)},
        {"y": np.zeros((2, 3), np.float32)},
        {"x": np.zeros((2, 3), np.float32), "y": np.zeros(0, np.float32)},
        {"x": np.asarray([[0, 0, 0], [0, 0, 1e-45]], np.float32)},
    ],
    ids=["type", "shape", "rank", "name", "more", "least bit"],
)
def test_requests_that_differ_in_anything_differ_in_key(other: Arrays) -> None:
    zeros = {"x": np.zeros((2, 3), np.float32)}
    assert request_key(b"it", zeros) != request_key(b"it", other)
    assert request_key(b"it", zeros) != request_key(b"that", zeros)


def test_equal_requests_have_equal_keys_wherever_they_lie() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    turned = np.ascontiguousarray(array.T).T
    assert request_key(b"", {"a": array, "b": array}) == request_key(b"", {"b": turned, "a": turned})
    texts = [np.asarray(["ab", "c"], dtype=object) for _ in range(2)]
    assert request_key(b"", {"x": texts[0]}) == request_key(b"", {"x": texts[1]})
    assert request_key(b"", {"x": texts[0]}) != request_key(b"", {"x": np.asarray(["a", "bc"], dtype=object)})


def test_keys_of_objects_are_of_their_content_and_not_where_they_lie() -> None:
    """Records hold texts; and of an array within an array numpy's repr leaves out the middle."""
    records = [np.array([("a" * n, 1)], dtype=[("text", object), ("number", "i4")]) for n in (3, 3, 4)]
    keys = [request_key(b"", {"x": record}) for record in records]
    assert keys[0] == keys[1] != keys[2]
    nested = [np.empty(1, dtype=object) for _ in range(2)]
    for place, array in enumerate(nested):
        array[0] = np.eye(1, 2000, 1000 + place)[0]
    assert request_key(b"", {"x": nested[0]}) != request_key(b"", {"x": nested[1]})


@pytest.mark.parametrize("store", ["memcached://here", "cache.db", "sqlite", "redis"])
def test_an_unknown_store_is_refused(store: str) -> None:
    with pytest.raises(ValidationError, match="a store must be one of memory, sqlite:, redis://"):
        ExactCache(store=store)


@pytest.mark.parametrize(
    "store",
    [
        "redis://:a-secret@here:6379/0",
        "rediss://user:a-secret@here",
        "unix://user:a-secret@/run/redis.sock",
        "redis://here/0?password=a-secret",
        "redis://:a-secret/a-secret@here",
        "http://:a-secret@here",
    ],
)
def test_a_plan_with_a_password_is_refused_and_not_shown(store: str, tmp_path: Path) -> None:
    """Plans go into the registry, into files and on the screen."""
    (tmp_path / "plan.yaml").write_text(f"policies: [{{exact_cache: {{store: '{store}'}}}}]")
    with pytest.raises(SpecError, match="PAREFLOW_REDIS_PASSWORD") as refused:
        read(tmp_path / "plan.yaml")
    with pytest.raises(ValidationError) as invalid:
        ServingPlan(policies=({"exact_cache": {"store": store}},))
    with pytest.raises(ValidationError) as alone:
        ExactCache(store=store)
    for error in (refused, invalid, alone):
        assert "a-secret" not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize("store", ["redis://here:6379/0", "rediss://here", "unix:///run/redis.sock"])
def test_a_redis_bounds_its_room_itself(store: str) -> None:
    """A bound that nobody would keep is refused; as JSON it is the same policy again."""
    with pytest.raises(ValidationError, match=r"`max_mib` must be left out where the store is a Redis"):
        ExactCache(store=store, max_mib=8)
    cache = ExactCache(store=store, ttl_s=60)
    assert ExactCache(**cache.step.settings) == cache
