"""Dynamic batching: who is computed with whom, in which order, and who is refused."""

import asyncio
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pareflow.errors import BadOutputError, DeadlineError, OverloadedError
from pareflow.runtime import DynamicBatching
from pareflow.runtime.decoding.listening import heard_by, take_listener
from pareflow.runtime.endpoint import Endpoint, Handler, answered_within
from pareflow.runtime.padding import Padding
from pareflow.workload import Arrays
from tests.concurrency import run, settle, skip


class Doubling:
    """An endpoint that doubles each batch when it is let; it keeps what it was given."""

    def __init__(self, concurrency: int = 1) -> None:
        self.batches: list[np.ndarray] = []
        self._turns = asyncio.Semaphore(0)
        self._concurrency = concurrency

    @property
    def endpoint(self) -> Endpoint:
        return Endpoint(self.answer, "doubling", self._concurrency)

    async def answer(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        self.batches.append(feeds["x"])
        await self._turns.acquire()
        if (feeds["x"] < 0).any():
            raise BadOutputError("x must not be negative", "it is", "Give another")
        return {"y": feeds["x"] * 2}

    def let(self, batches: int = 1) -> None:
        for _ in range(batches):
            self._turns.release()

    @property
    def sizes(self) -> list[int]:
        return [len(batch) for batch in self.batches]


def rows(*values: float) -> Arrays:
    return {"x": np.array(values, dtype=np.float64)[:, None]}


async def line(answer: Handler, *feeds: Arrays) -> list[asyncio.Future[Arrays]]:
    """The first request, which goes at once, and then all others at one moment."""
    first = asyncio.ensure_future(answer(feeds[0]))
    await settle()
    return [first, *(asyncio.ensure_future(answer(one)) for one in feeds[1:])]


def test_those_that_come_at_one_moment_are_computed_together() -> None:
    """By one session; free sessions share them: of five two take three and two."""

    async def scenario() -> None:
        for concurrency, sizes in ((1, [3, 2]), (2, [3, 2]), (5, [1] * 5)):
            below = Doubling(concurrency)
            answer = DynamicBatching(max_batch_size=3).wrap(below.endpoint).answer
            asked = [asyncio.ensure_future(answer(rows(n))) for n in range(5)]
            await settle()
            below.let(9)
            await asyncio.gather(*asked)
            assert below.sizes == sizes

    run(scenario)


def test_a_lone_request_goes_at_once_and_those_behind_it_together() -> None:
    async def scenario() -> None:
        below = Doubling()
        answer = DynamicBatching(max_batch_size=3).wrap(below.endpoint).answer
        asked = await line(answer, *(rows(n) for n in range(5)))
        assert below.sizes == [1]
        below.let(3)
        answers = await asyncio.gather(*asked)
        assert below.sizes == [1, 3, 1]
        assert [float(a["y"][0, 0]) for a in answers] == [0, 2, 4, 6, 8]

    run(scenario)


def test_a_request_larger_than_a_batch_keeps_its_place_and_goes_alone() -> None:
    """Others fill the batch before it up; whoever came behind does not overtake it again."""

    async def scenario() -> None:
        below = Doubling()
        answer = DynamicBatching(max_batch_size=2).wrap(below.endpoint).answer
        sizes = [1, 5, 1, 1, 1]
        asked = await line(answer, *(rows(*range(size)) for size in sizes))
        await settle()
        below.let(len(sizes))
        await asyncio.gather(*asked)
        assert below.sizes == [1, 5, 2, 1]

    run(scenario)


def test_a_cancelled_caller_takes_nobody_with_it() -> None:
    async def scenario() -> None:
        below = Doubling()
        answer = DynamicBatching(max_batch_size=4).wrap(below.endpoint).answer
        first, running, gone, kept = await line(answer, *(rows(n) for n in (1, 2, 3, 4)))
        await settle()
        gone.cancel()  # in line
        below.let()
        await settle()
        running.cancel()  # in a batch that is under way
        below.let()
        assert float((await first)["y"][0, 0]) == 2
        assert float((await kept)["y"][0, 0]) == 8
        assert [batch[:, 0].tolist() for batch in below.batches] == [[1], [2, 4]]

    run(scenario)


def test_who_gives_up_at_the_head_of_the_line_is_not_computed() -> None:
    async def scenario() -> None:
        below = Doubling()
        answer = DynamicBatching(max_batch_size=1).wrap(below.endpoint).answer
        _, gone, last = await line(answer, rows(1), rows(2), rows(3))
        await settle()
        gone.cancel()
        below.let(3)
        await last
        assert [batch[0, 0] for batch in below.batches] == [1, 3]

    run(scenario)


def test_one_bad_request_takes_no_others_with_it() -> None:
    async def scenario() -> None:
        below = Doubling()
        answer = DynamicBatching(max_batch_size=4).wrap(below.endpoint).answer
        asked = await line(answer, *(rows(n) for n in (1, 2, -3, 4)))
        await settle()
        below.let(10)
        answers: list[Any] = await asyncio.gather(*asked, return_exceptions=True)
        assert below.sizes == [1, 3, 1, 1, 1]
        assert [type(a) for a in answers] == [dict, dict, BadOutputError, dict]
        assert float(answers[3]["y"][0, 0]) == 8

    run(scenario)


def test_requests_of_other_shapes_or_types_are_not_mixed() -> None:
    async def scenario() -> None:
        below = Doubling()
        answer = DynamicBatching(max_batch_size=8).wrap(below.endpoint).answer
        feeds = [rows(0), rows(1), {"x": np.ones((1, 2))}, {"x": np.ones((1, 1), np.float32)}, rows(2)]
        asked = await line(answer, *feeds)
        await settle()
        below.let(9)
        await asyncio.gather(*asked)
        assert [batch.shape for batch in below.batches] == [(1, 1), (2, 1), (1, 2), (1, 1)]

    run(scenario)


def test_the_line_is_bounded() -> None:
    async def scenario() -> None:
        below = Doubling()
        endpoint = DynamicBatching(max_waiting=2).wrap(below.endpoint)
        asked = await line(endpoint.answer, *(rows(n) for n in range(3)))
        await settle()
        with pytest.raises(OverloadedError, match="at most 2 requests may wait, but the line is full"):
            await endpoint.answer(rows(9))
        below.let(9)
        await asyncio.gather(*asked)
        assert endpoint.figures["dynamic_batching"]()["refused"] == 1

    run(scenario)


def test_a_request_that_would_be_late_is_refused_when_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch took 10 s, and one is under way: what must be there in 5 s has no chance."""

    async def scenario() -> None:
        below = Doubling()
        endpoint = DynamicBatching(max_batch_size=1).wrap(below.endpoint)
        first = asyncio.ensure_future(endpoint.answer(rows(0)))
        await settle()
        skip(monkeypatch, 10)
        below.let()
        await first
        second = asyncio.ensure_future(endpoint.answer(rows(1)))
        await settle()
        with answered_within(5), pytest.raises(DeadlineError, match="those before it") as refused:
            await endpoint.answer(rows(2))
        assert refused.value.retry_after_s >= 10
        with answered_within(60):
            third = asyncio.ensure_future(endpoint.answer(rows(3)))
        await settle()
        below.let(2)
        await asyncio.gather(second, third)
        assert below.batches[-1][0, 0] == 3

    run(scenario)


def test_one_slow_request_does_not_shut_the_door_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever finds nobody before him is tried, whatever took how long before."""

    async def scenario() -> None:
        below = Doubling()
        endpoint = DynamicBatching().wrap(below.endpoint)
        slow = asyncio.ensure_future(endpoint.answer(rows(0)))
        await settle()
        skip(monkeypatch, 10)
        below.let(9)
        await slow
        with answered_within(5):
            answer = await endpoint.answer(rows(1))
        assert float(answer["y"][0, 0]) == 2

    run(scenario)


def test_a_request_whose_time_is_over_in_line_is_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        below = Doubling()
        endpoint = DynamicBatching(max_batch_size=1).wrap(below.endpoint)
        first = asyncio.ensure_future(endpoint.answer(rows(0)))
        await settle()
        with answered_within(10):
            late = asyncio.ensure_future(endpoint.answer(rows(1)))
        await settle()
        skip(monkeypatch, 11)
        below.let(2)
        await first
        with pytest.raises(DeadlineError, match="it waited for"):
            await late
        assert below.sizes == [1]

    run(scenario)


def test_a_deadline_bounds_the_wait_while_all_sessions_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is in line is told, and leaves room for another; whoever is in the batch waits for it."""

    async def scenario() -> None:
        below = Doubling()
        endpoint = DynamicBatching(max_waiting=1).wrap(below.endpoint)
        figures = endpoint.figures["dynamic_batching"]
        with answered_within(10):
            first, late = await line(endpoint.answer, rows(0), rows(1))
        await settle()
        skip(monkeypatch, 11)
        with pytest.raises(DeadlineError, match="it waited for"):
            await late
        assert (figures()["waiting"], figures()["late"]) == (0, 1)
        another = asyncio.ensure_future(endpoint.answer(rows(2)))
        await settle()
        below.let(2)
        assert float((await first)["y"][0, 0]) == 0
        assert float((await another)["y"][0, 0]) == 4
        assert [batch[0, 0] for batch in below.batches] == [0, 2]

    run(scenario)


def test_who_gave_up_takes_no_place_in_the_line() -> None:
    """While the only session hangs; and nobody else's answer goes with him."""

    async def scenario() -> None:
        below = Doubling()
        endpoint = DynamicBatching(max_waiting=2).wrap(below.endpoint)
        first, gone, kept = await line(endpoint.answer, rows(1), rows(2, 2), rows(3))
        await settle()
        gone.cancel()
        await settle()
        assert endpoint.figures["dynamic_batching"]()["waiting"] == 1
        another = asyncio.ensure_future(endpoint.answer(rows(4)))
        await settle()
        below.let(9)
        answers = await asyncio.gather(first, kept, another)
        assert [float(one["y"][0, 0]) for one in answers] == [2, 6, 8]
        assert below.sizes == [1, 2]

    run(scenario)


def test_what_a_failed_batch_leaves_behind_is_computed_again_within_its_time_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A batch hangs beyond the deadline of one, then fails: that one is told, the other is computed."""

    async def scenario() -> None:
        below = Doubling()
        answer = DynamicBatching(max_batch_size=3).wrap(below.endpoint).answer
        good, bad = asyncio.ensure_future(answer(rows(1))), asyncio.ensure_future(answer(rows(-1)))
        with answered_within(10):
            late = asyncio.ensure_future(answer(rows(2)))
        await settle()
        skip(monkeypatch, 11)
        await settle()
        below.let(1)  # the batch; then what is left hangs again
        await settle()
        with pytest.raises(DeadlineError):
            await asyncio.wait_for(late, 5)
        below.let(9)
        assert float((await good)["y"][0, 0]) == 2
        with pytest.raises(BadOutputError):
            await bad
        assert below.sizes == [3, 1, 1]

    run(scenario)


def test_a_batch_worth_waiting_for_is_waited_for_and_no_longer_than_allowed() -> None:
    async def scenario() -> None:
        below = Doubling()
        policy = DynamicBatching(max_batch_size=4, min_batch_size=2, max_wait_ms=50)
        answer = policy.wrap(below.endpoint).answer
        below.let(9)
        both = await asyncio.gather(answer(rows(1)), answer(rows(2)))
        assert (len(both), below.sizes) == (2, [2])
        await answer(rows(3))  # nobody comes
        assert below.sizes == [2, 1]

    run(scenario)


HOUR_MS = 3_600_000


def test_what_a_failed_batch_leaves_behind_waits_for_nobody() -> None:
    """They are joined by no other, so that nobody could come for whom to wait; nor do those behind them."""

    async def scenario() -> None:
        below = Doubling()
        below.let(99)
        answer = DynamicBatching(max_batch_size=4, min_batch_size=4, max_wait_ms=HOUR_MS).wrap(below.endpoint)
        asked = [asyncio.ensure_future(answer.answer(rows(n))) for n in (1, 2, -3, 4)]
        asked += [asyncio.ensure_future(answer.answer(rows(n))) for n in (5, 6, 7, 8)]
        answers: list[Any] = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(a) for a in answers] == [dict, dict, BadOutputError, *[dict] * 5]
        assert below.sizes == [4, 1, 1, 1, 1, 4]

    run(scenario)


def test_who_waits_for_others_keeps_no_full_batch_waiting_and_goes_first_when_it_is_due(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first is of another shape: two behind it are a batch. When its time comes, it goes next."""

    async def scenario() -> None:
        below = Doubling()
        policy = DynamicBatching(max_batch_size=2, min_batch_size=2, max_wait_ms=HOUR_MS)
        answer = policy.wrap(below.endpoint).answer
        with answered_within(20):
            lone = asyncio.ensure_future(answer({"x": np.ones((1, 2))}))
        pairs = [asyncio.ensure_future(answer(rows(n))) for n in range(4)]
        await settle()
        assert [batch.shape for batch in below.batches] == [(2, 1)]
        skip(monkeypatch, 11)  # beyond half of what its deadline leaves
        below.let(9)
        await asyncio.gather(lone, *pairs)
        assert [batch.shape for batch in below.batches] == [(2, 1), (1, 2), (2, 1)]

    run(scenario)


def test_a_short_deadline_behind_others_is_seen_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who came first may wait for an hour; who came behind, of its kind, may not: both go."""

    async def scenario() -> None:
        below = Doubling()
        below.let(9)
        policy = DynamicBatching(max_batch_size=4, min_batch_size=4, max_wait_ms=HOUR_MS)
        answer = policy.wrap(below.endpoint).answer
        first = asyncio.ensure_future(answer(rows(1)))
        await settle()
        with answered_within(20):
            second = asyncio.ensure_future(answer(rows(2)))
        await settle()
        skip(monkeypatch, 11)
        await asyncio.gather(first, second)
        assert below.sizes == [2]

    run(scenario)


def test_who_gives_up_as_a_session_gets_free_makes_no_batch() -> None:
    """Behind one that waits for others: both of a pair go in the moment in which it could be computed."""

    async def scenario() -> None:
        below = Doubling()
        policy = DynamicBatching(max_batch_size=2, min_batch_size=2, max_wait_ms=HOUR_MS)
        endpoint = policy.wrap(below.endpoint)
        answer = endpoint.answer
        first = [asyncio.ensure_future(answer(rows(n))) for n in range(2)]
        await settle()
        lone = asyncio.ensure_future(answer({"x": np.ones((1, 2))}))
        gone = [asyncio.ensure_future(answer(rows(n))) for n in range(2)]
        await settle()
        below.let(9)
        for one in gone:
            one.cancel()
        await asyncio.gather(*first, answer({"x": np.ones((1, 2))}), lone)
        assert [batch.shape for batch in below.batches] == [(2, 1), (2, 2)]
        assert endpoint.figures["dynamic_batching"]()["batches"] == 2

    run(scenario)


def test_free_sessions_share_no_batch_that_was_waited_for() -> None:
    """Neither gets the least that was worth waiting for if two sessions take two samples each."""

    async def scenario() -> None:
        below = Doubling(2)
        below.let(9)
        policy = DynamicBatching(max_batch_size=8, min_batch_size=4, max_wait_ms=HOUR_MS)
        answer = policy.wrap(below.endpoint).answer
        await asyncio.gather(*(answer(rows(n)) for n in range(4)))
        assert below.sizes == [4]

    run(scenario)


def test_a_deadline_cuts_the_wait_for_others_short(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        below = Doubling()
        policy = DynamicBatching(min_batch_size=2, max_wait_ms=60_000)
        below.let(9)
        with answered_within(20):
            asked = asyncio.ensure_future(policy.wrap(below.endpoint).answer(rows(1)))
        await settle()
        skip(monkeypatch, 11)
        await asked
        assert below.sizes == [1]

    run(scenario)


def test_shorter_requests_are_filled_up_and_their_answers_cut_back() -> None:
    """By hand: lengths 2 and 3 of a batch go to 4, filled with 7."""

    async def scenario() -> None:
        below = Doubling()
        policy = DynamicBatching(pad_axis=1, pad_to=(4, 8), pad_values={"x": 7}, padded_outputs=("y",))
        answer = policy.wrap(below.endpoint).answer
        feeds = [{"x": np.arange(size, dtype=np.float64)[None]} for size in (4, 2, 3)]
        asked = await line(answer, *feeds)
        await settle()
        below.let(2)
        answers = await asyncio.gather(*asked)
        assert below.batches[1].tolist() == [[0, 1, 7, 7], [0, 1, 2, 7]]
        assert [a["y"].tolist() for a in answers] == [[[0, 2, 4, 6]], [[0, 2]], [[0, 2, 4]]]

    run(scenario)


@pytest.mark.parametrize(
    ("policy", "shapes", "lengths", "filled"),
    [
        (DynamicBatching(pad_axis=1), {}, (5, 7), 7),
        (DynamicBatching(pad_axis=1, pad_to=(8,)), {}, (5, 7), 8),
        (
            DynamicBatching(pad_axis=1, pad_to=(4,)),
            {"image": (-1, 3, 4, 4), "tokens": (-1, -1)},
            (2, 3),
            4,
        ),
    ],
    ids=["to the longest", "to a length", "shorter than the channels, by shapes that are known"],
)
def test_only_inputs_that_are_as_long_as_their_request_are_filled_up(
    policy: DynamicBatching, shapes: Mapping[str, tuple[int, ...]], lengths: tuple[int, int], filled: int
) -> None:
    """An image of three channels beside a text: both requests are one batch, the image as it was."""
    seen = list[tuple[tuple[int, ...], ...]]()

    async def counted(feeds: Mapping[str, np.ndarray]) -> Arrays:
        seen.append((feeds["image"].shape, feeds["tokens"].shape))
        return {"y": feeds["tokens"]}

    async def scenario() -> None:
        answer = policy.wrap(Endpoint(counted, "both", shapes=shapes)).answer
        image = np.ones((1, 3, 4, 4))
        await asyncio.gather(
            *(answer({"image": image, "tokens": np.ones((1, length))}) for length in lengths)
        )

    run(scenario)
    assert seen == [((2, 3, 4, 4), (2, filled))]


def test_an_output_that_a_tier_has_not_is_not_cut_back() -> None:
    """One that embeds stands behind the policies of the model, and has outputs of its own."""
    feeds = [{"x": np.ones((1, length))} for length in (2, 3)]
    first, second = Padding(axis=1, outputs=("y",)).parted({"vector": np.eye(2)}, feeds)
    assert (first["vector"].tolist(), second["vector"].tolist()) == ([[1, 0]], [[0, 1]])


def test_an_output_without_the_batch_is_computed_request_by_request() -> None:
    async def scenario() -> None:
        async def total(feeds: Mapping[str, np.ndarray]) -> Arrays:
            await asyncio.sleep(0.01)
            return {"total": feeds["x"].sum(axis=0)}

        answer = DynamicBatching().wrap(Endpoint(total, "total")).answer
        found = await asyncio.gather(*(answer(rows(n, n)) for n in range(3)))
        assert [float(one["total"][0]) for one in found] == [0, 2, 4]

    run(scenario)


@given(
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    most=st.integers(1, 5),
    concurrency=st.integers(1, 3),
)
def test_every_request_gets_its_own_answer(sizes: list[int], most: int, concurrency: int) -> None:
    """Whatever the sizes, in batches no larger than allowed, and each sample once."""

    async def scenario() -> None:
        below = Doubling(concurrency)
        answer = DynamicBatching(max_batch_size=most).wrap(below.endpoint).answer
        feeds = [rows(*(100 * i + j for j in range(size))) for i, size in enumerate(sizes)]
        asked = [asyncio.ensure_future(answer(one)) for one in feeds]
        await settle()
        assert 1 <= len(below.batches) <= min(concurrency, len(sizes))
        below.let(len(sizes))
        for one, found in zip(feeds, await asyncio.gather(*asked), strict=True):
            assert np.array_equal(found["y"], one["x"] * 2)
        assert sum(below.sizes) == sum(sizes)
        assert all(size <= max(most, *sizes) for size in below.sizes)

    run(scenario)


def test_nobody_hears_what_another_asked() -> None:
    """A batch is computed in the context of whoever came last, or whose batch ended."""

    async def scenario() -> None:
        below, heard = Doubling(), list[object]()

        async def listening(feeds: Mapping[str, np.ndarray]) -> Arrays:
            heard.append(take_listener())
            return await below.answer(feeds)

        answer = DynamicBatching(max_batch_size=1).wrap(Endpoint(listening, "listening")).answer
        asked = []
        for n in range(3):
            with heard_by(print):
                asked.append(asyncio.ensure_future(answer(rows(n))))
        below.let(3)
        await asyncio.gather(*asked)
        assert heard == [None] * 3

    run(scenario)
