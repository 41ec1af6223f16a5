"""Pipelining: answers per second with processing on the event loop, in threads, and where a trial put it.

A stage of some 0.4 ms stands before and after a network of 0.8 ms in a session of its own, eight callers at a
time. Three kinds of processing: numpy's, which lets go of Python's lock; Python's own, which does not; and
one of 0.02 ms, which is over before a thread is reached. What is claimed is that the trial loses nothing
against the better of both, its own blocks included.
"""

import asyncio
import statistics
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from claims import Claim, main

from pareflow.measurement import Ran
from pareflow.runtime.pipelining import Pipeline, Pipelining, Stage
from pareflow.runtime.pool import SessionPool
from pareflow.session import Session
from pareflow.workload import Arrays

CALLERS = 8
STAGES: tuple[Stage, ...] = ("preprocess", "postprocess")
STAGE_S, SHORT_S, NETWORK_S = 4e-4, 2e-5, 8e-4
NEVER, ALWAYS = Pipelining(hold_ms=1e6, block=10**9), Pipelining(hold_ms=1e-6)
WAYS: Mapping[str, Pipelining] = {"loop": NEVER, "threads": ALWAYS, "trial": Pipelining()}


class Network(Session):
    """Products of matrices, for about as long as it says."""

    def __init__(self, seconds: float) -> None:
        self._work = _numpy(seconds)

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        self._work()
        return {"output": feeds["input"]}

    def ran(self) -> Ran:
        return Ran("numpy", np.__version__, "float64", "CPU", 1)


def measure(quick: bool) -> Iterator[Claim]:
    """Each kind of processing in interleaved rounds; `quick` takes fewer."""
    kinds = {
        "numpy": _numpy(STAGE_S),
        "Python": _python(STAGE_S),
        "short": _numpy(SHORT_S),
    }
    for kind, work in kinds.items():
        rates = asyncio.run(_rates(work, 5 if quick else 20, 200 if quick else 500))
        better = max(("loop", "threads"), key=lambda way: statistics.median(rates[way]))
        ratios = np.array(rates["trial"]) / np.array(rates[better])
        told = ", ".join(f"{way} {statistics.median(found):.0f}/s" for way, found in rates.items())
        low, high = (float(bound) for bound in np.quantile(ratios, (0.05, 0.95)))
        name = f"pipelining, {kind}: a trial over the better of loop and threads"
        note = f"{better}; {told}; low and high: 5 and 95 % of the rounds"
        yield Claim(name, 0.97, float(np.median(ratios)), "×", len(ratios), "at least", low, high, note)


async def _rates(work: Callable[[], None], rounds: int, answers: int) -> dict[str, list[float]]:
    """Answers per second of each way, in rounds that come in an order by chance; the first warms up."""
    pool, chance = SessionPool([Network(NETWORK_S)]), np.random.default_rng(0)
    pipelines = {way: Pipeline(settings) for way, settings in WAYS.items()}
    for pipeline in pipelines.values():
        for stage in STAGES:
            began = time.thread_time()
            work()
            pipeline.learn(stage, time.thread_time() - began)
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way in chance.permutation(list(WAYS)):
            seconds = await _round(pipelines[str(way)], pool, work, answers)
            if number:
                found[str(way)].append(answers / seconds)
    for pipeline in pipelines.values():
        pipeline.close()
    pool.close()
    return found


async def _round(pipeline: Pipeline, pool: SessionPool, work: Callable[[], None], answers: int) -> float:
    """Seconds in which so many are answered, by callers that each wait for their answer."""
    feeds = {"input": np.zeros((1, 1))}

    async def caller() -> None:
        for _ in range(answers // CALLERS):
            with pipeline.request():
                await pipeline.run("preprocess", 1, work)
                await pool.answer(feeds)
                await pipeline.run("postprocess", 1, work)

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return time.perf_counter() - began


def _numpy(seconds: float) -> Callable[[], None]:
    """Sorting, which lets go of Python's lock: of as many numbers as take about so long here."""
    numbers = np.random.default_rng(0).random(2**12)
    takes_s = statistics.median(_timed(lambda: np.sort(numbers)) for _ in range(50))
    many = np.random.default_rng(0).random(max(16, int(len(numbers) * seconds / takes_s)))

    def work() -> None:
        np.sort(many)

    return work


def _python(seconds: float) -> Callable[[], None]:
    """A loop that holds it."""
    takes_s = statistics.median(_timed(lambda: sum(range(4096))) for _ in range(50))
    count = int(4096 * seconds / takes_s)

    def work() -> None:
        sum(range(count))

    return work


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main("pipelining", measure)
