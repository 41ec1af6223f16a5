"""Pipelining: what is long leaves the event loop, what is short stays, and what lies between is tried."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pareflow.errors import DeadlineError, OverloadedError
from pareflow.hardware import probe
from pareflow.runtime import pool
from pareflow.runtime.endpoint import answered_within
from pareflow.runtime.pipelining import BLOCKS, Pipeline, Pipelining, Trial
from tests.concurrency import run, settle


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def tried(alone_s: float, overlapped_s: float, **settings: Any) -> tuple[Trial, Clock]:
    """A trial to its end, in which answers take so long without and with overlapping."""
    clock = Clock()
    trial = Trial(Pipelining(block=4, **settings), clock)
    trial.begun()
    for _ in range(4 * BLOCKS):
        clock.now += overlapped_s if trial.overlapping else alone_s
        trial.answered()
    return trial, clock


def test_what_answers_sooner_is_chosen() -> None:
    """By hand: 3 ms to 2 ms are 1.5 times as many; 3 to 2.9 are 1.03, which is less than 1.05."""
    trial, _ = tried(0.003, 0.002)
    assert (trial.overlapping, trial.trials) == (True, 1)
    assert trial.gain == pytest.approx(1.5)
    for overlapped in (0.0029, 0.003, 0.004):
        trial, _ = tried(0.003, overlapped)
        assert trial.overlapping is False
        assert trial.gain == pytest.approx(0.003 / overlapped)
    trial, _ = tried(0.003, 0.0029, min_gain=1.0)
    assert trial.overlapping


def test_one_slow_moment_decides_nothing() -> None:
    """Neither in a block of each kind, nor at the beginning."""
    clock = Clock()
    trial = Trial(Pipelining(block=4), clock)
    trial.begun()
    for answer in range(4 * BLOCKS):
        held_up = answer in (0, 5, 12)
        clock.now += 1.0 if held_up else 0.002 if trial.overlapping else 0.003
        trial.answered()
    assert trial.overlapping is True
    assert trial.gain == pytest.approx(1.5)


def test_what_a_trial_found_is_trusted_for_a_while_and_then_tried_again() -> None:
    """The time of its rest counts in no block."""
    trial, clock = tried(0.003, 0.002, rest_s=10)
    for _ in range(9):
        clock.now += 1
        trial.answered()
    assert (trial.overlapping, trial.trials) == (True, 1)
    clock.now += 1
    for _ in range(4 * BLOCKS):
        clock.now += 0.004 if trial.overlapping else 0.003
        trial.answered()
    assert (trial.overlapping, trial.trials) == (False, 2)
    assert trial.gain == pytest.approx(0.75)


def test_time_in_which_nobody_waits_does_not_count() -> None:
    clock = Clock()
    trial = Trial(Pipelining(block=4), clock)
    trial.answered()
    for _ in range(2 * BLOCKS):
        clock.now += 100
        trial.begun()
        for _ in range(2):
            clock.now += 0.002 if trial.overlapping else 0.003
            trial.answered()
        trial.idle()
        trial.answered()
    assert trial.gain == pytest.approx(1.5)


@pytest.fixture
def pipeline() -> Iterator[Pipeline]:
    made = Pipeline(Pipelining())
    yield made
    made.close()


def threads_of(pipeline: Pipeline, counts: tuple[int, ...], others: int = 0) -> list[bool]:
    """Whether stages for so many samples ran on the event loop, while others are in flight."""

    async def scenario() -> list[bool]:
        loop, found = threading.get_ident(), []
        for count in counts:
            found.append(await pipeline.run("preprocess", count, threading.get_ident) == loop)
        return found

    def inside(more: int) -> list[bool]:
        if not more:
            return asyncio.run(scenario())
        with pipeline.request():
            return inside(more - 1)

    return inside(others)


@pytest.mark.parametrize(
    ("seconds", "on_loop"), [(0.00001, True), (0.0009, True), (0.0011, False), (1, False)]
)
def test_what_holds_the_loop_for_long_leaves_it(pipeline: Pipeline, seconds: float, on_loop: bool) -> None:
    pipeline.learn("preprocess", seconds)
    assert threads_of(pipeline, (1,)) == [on_loop]


def test_many_samples_are_long_where_one_is_short(pipeline: Pipeline) -> None:
    """By hand: 0.1 ms each, so that 9 hold the loop for 0.9 ms, and 20 would for 2 ms."""
    pipeline.learn("preprocess", 0.0001)
    assert threads_of(pipeline, (9,)) == [True]
    for hold_ms, on_loop in ((1, False), (10, True)):
        other = Pipeline(Pipelining(hold_ms=hold_ms))
        other.learn("preprocess", 0.0001)
        assert threads_of(other, (20,)) == [on_loop]
        other.close()


def test_short_stages_are_overlapped_only_beside_others_and_where_it_pays(pipeline: Pipeline) -> None:
    """Of 0.5 ms; and one of 0.01 ms is over before a thread is reached."""
    for seconds, moves in ((0.0005, True), (0.00001, False)):
        one = Pipeline(Pipelining())
        one.learn("preprocess", seconds)
        assert threads_of(one, (1,), others=2) == [True]
        one.close()
        two = Pipeline(Pipelining())
        two.learn("preprocess", seconds)
        two._trial.overlapping = True
        assert threads_of(two, (1,), others=2) == [not moves]
        two.close()
        three = Pipeline(Pipelining())
        three.learn("preprocess", seconds)
        three._trial.overlapping = True
        assert threads_of(three, (1,), others=1) == [True]
        three.close()


def test_what_fails_is_the_callers_and_counts_as_no_answer(pipeline: Pipeline) -> None:
    def broken() -> None:
        raise ValueError("no picture")

    async def scenario() -> None:
        for seconds in (0.00001, 1.0):
            pipeline.learn("preprocess", seconds)
            with pytest.raises(ValueError, match="no picture"), pipeline.request():
                await pipeline.run("preprocess", 1, broken)

    asyncio.run(scenario())
    figures = pipeline.figures()
    assert (figures["trials"], figures["overlapping"]) == (0, False)
    with pipeline.request():  # nobody is in flight from before
        pass
    assert pipeline._in_flight == 0


class Held:
    """A stage that runs until it is let; it counts how often it was begun."""

    def __init__(self) -> None:
        self.begun = self.ended = 0
        self._let = threading.Event()

    def __call__(self) -> str:
        self.begun += 1
        self._let.wait(20)
        self.ended += 1
        return "done"

    def let(self) -> None:
        self._let.set()


Full = tuple[Pipeline, Held, list[asyncio.Task[str]]]


async def full(stage_s: float, **settings: Any) -> Full:
    """A pipeline whose preprocessing takes so long, with all its threads held."""
    pipeline, held = Pipeline(Pipelining(**settings)), Held()
    pipeline.learn("preprocess", stage_s)
    pipeline.learn("postprocess", stage_s)
    threads = max(2, probe.usable_cores())
    tasks = [asyncio.create_task(pipeline.run("preprocess", 1, held)) for _ in range(threads)]
    while held.begun < threads:
        await asyncio.sleep(0.001)
    return pipeline, held, tasks


async def ended(pipeline: Pipeline, held: Held, tasks: list[asyncio.Task[str]]) -> None:
    held.let()
    assert set(await asyncio.gather(*tasks)) == {"done"}
    pipeline.close()


def test_samples_that_would_be_late_are_refused_before_they_are_processed() -> None:
    """By hand: as many stages of 10 s run as there are threads, so that one more ends after 20."""

    async def scenario() -> None:
        pipeline, held, tasks = await full(10)
        called = Held()
        with answered_within(15), pytest.raises(DeadlineError) as refused:
            await pipeline.run("preprocess", 1, called)
        assert refused.value.retry_after_s == pytest.approx(20)
        with answered_within(25):
            tasks.append(asyncio.create_task(pipeline.run("preprocess", 1, held)))
            await settle()
        figures = pipeline.figures()
        assert (called.begun, figures["waiting"], figures["late"]) == (0, 1, 1)
        await ended(pipeline, held, tasks)

    run(scenario)


def test_what_comes_after_preprocessing_counts_too() -> None:
    async def scenario() -> None:
        pipeline, held, tasks = await full(0.002)
        pipeline.learn_rest(10)
        called = Held()
        with answered_within(5), pytest.raises(DeadlineError):
            await pipeline.run("preprocess", 1, called)
        assert called.begun == 0
        await ended(pipeline, held, tasks)

    run(scenario)


def test_the_line_before_the_threads_is_bounded() -> None:
    """Without a deadline, too."""

    async def scenario() -> None:
        pipeline, held, tasks = await full(10, max_waiting=1)
        tasks.append(asyncio.create_task(pipeline.run("preprocess", 1, held)))
        await settle()
        called = Held()
        with pytest.raises(OverloadedError, match="at most 1 requests may wait") as refused:
            await pipeline.run("preprocess", 1, called)
        assert type(refused.value) is OverloadedError
        assert (called.begun, pipeline.figures()["refused"]) == (0, 1)
        await ended(pipeline, held, tasks)
        assert pipeline.figures()["waiting"] == 0

    run(scenario)


def test_samples_whose_time_is_over_in_line_are_not_processed() -> None:
    """Their turn comes later than was thought when they came."""

    async def scenario() -> None:
        pipeline, held, tasks = await full(0.002)
        called = Held()
        with answered_within(0.05):
            late = asyncio.create_task(pipeline.run("preprocess", 1, called))
        await asyncio.sleep(0.1)
        await ended(pipeline, held, tasks)
        with pytest.raises(DeadlineError, match="it waited"):
            await late
        assert called.begun == 0

    run(scenario)


def test_who_finds_nobody_before_him_is_processed_whatever_took_how_long_before() -> None:
    async def scenario() -> None:
        pipeline = Pipeline(Pipelining())
        pipeline.learn("preprocess", 10)
        with answered_within(5):
            assert await pipeline.run("preprocess", 1, str) == ""
        pipeline.close()

    run(scenario)


def test_what_is_nearly_done_does_not_wait_for_what_has_just_come() -> None:
    async def scenario() -> None:
        pipeline, held, tasks = await full(0.002)
        with answered_within(10):
            assert await pipeline.run("postprocess", 1, str) == ""
        await ended(pipeline, held, tasks)

    run(scenario)


def test_who_gives_up_leaves_the_line_and_no_thread_before_it_is_free() -> None:
    async def scenario() -> None:
        pipeline, held, tasks = await full(10)
        called = Held()
        gone = asyncio.create_task(pipeline.run("preprocess", 1, called))
        await settle()
        gone.cancel()
        tasks.pop().cancel()  # it runs on
        await settle()
        assert pipeline.figures()["waiting"] == 0
        with answered_within(15), pytest.raises(DeadlineError):
            await pipeline.run("preprocess", 1, called)
        await ended(pipeline, held, tasks)
        assert called.begun == 0

    run(scenario)


def test_a_stage_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "HANGS_S", 0.05)

    async def scenario() -> None:
        pipeline, held, tasks = await full(10)
        pipeline.close()
        assert held.ended == 0
        await ended(pipeline, held, tasks)
        assert held.ended == len(tasks)

    run(scenario, 40)


HANGING = """
import asyncio, threading
from pareflow.runtime import pool
from pareflow.runtime.pipelining import Pipeline, Pipelining
from pareflow.serving.server import _leave_what_hangs

async def given_up():
    try:
        await asyncio.wait_for(pipeline.run("preprocess", 1, threading.Event().wait), 0.1)
    except TimeoutError:
        print("given up", flush=True)

pool.HANGS_S = 0.05
pipeline = Pipeline(Pipelining())
pipeline.learn("preprocess", 1)
asyncio.run(given_up())
pipeline.close()
_leave_what_hangs()
"""


def test_a_server_ends_though_a_stage_hangs() -> None:
    done = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stdout) == (1, "given up\n"), done.stderr
