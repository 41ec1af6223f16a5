"""Pipelining: the processing of one request beside the network's and the processing of others."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from pareflow.runtime.processing import StageThreads
from pareflow.runtime.service_time import ServiceTime

_Result = TypeVar("_Result")
Stage = Literal["preprocess", "postprocess"]
STAGES: tuple[Stage, ...] = ("preprocess", "postprocess")
HOPS_S = 2e-4
"""Going to a thread and back, both before the network and after it: what takes less cannot gain by it."""
BLOCKS = 10
"""Of a trial, by turns without and with overlapping. Medians count: neither the first, which may still run as
the last trial found, nor one that something else held up decides."""


class Pipelining(BaseModel):
    """Whether what is done before and after the network is done in threads, beside what others wait for.

    A stage that takes longer than `hold_ms` never holds the event loop: whoever else is connected would wait
    for it. One that is over sooner than a thread is reached stays there. Between the two it is measured:
    while requests wait, some are processed on the loop and some in threads, by turns; they are overlapped
    where that answers `min_gain` times as many, else they are not, and it is tried again after `rest_s`.
    A request that is alone has nobody to overlap with, and stays on the loop. No answer depends on it.

    The line before the threads is bounded, and what would be late is refused before it is processed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    hold_ms: float = Field(default=1, gt=0, description="the longest that processing holds the event loop")
    min_gain: float = Field(
        default=1.05, ge=1, description="requests answered, over those without, to overlap"
    )
    block: int = Field(default=40, ge=2, description="answers in each of a trial's blocks")
    rest_s: float = Field(default=300, gt=0, description="how long what a trial found is trusted")
    max_waiting: int = Field(default=256, ge=1, description="requests in line for a thread; more are refused")


class Pipeline:
    """The stages of one model's requests, in their places.

    Each has threads of its own: what is nearly done does not wait for what has just come.
    """

    def __init__(self, settings: Pipelining, clock: Callable[[], float] = time.perf_counter) -> None:
        self._settings, self._clock = settings, clock
        self._times: dict[Stage, ServiceTime] = {stage: ServiceTime() for stage in STAGES}
        self._rest = ServiceTime()
        self._trial = Trial(settings, clock)
        self._threads = {stage: StageThreads(stage, settings.max_waiting) for stage in STAGES}
        self._in_flight = self._held = self._aside = 0

    def learn(self, stage: Stage, seconds: float) -> None:
        """What a stage takes for one sample, measured before the first request."""
        self._times[stage].observe(1, seconds)
        self._threads[stage].learn(1, seconds)

    def learn_rest(self, seconds: float) -> None:
        """What a request took from the end of its preprocessing to its end."""
        self._rest.observe(1, seconds)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Around a request, from its first stage to its last; one that fails counts as no answer."""
        self._in_flight += 1
        if self._in_flight > 1:
            self._trial.begun()
        answered = False
        try:
            yield
            answered = True
        finally:
            self._in_flight -= 1
            if answered and self._may_gain:
                self._trial.answered()
            if not self._in_flight:
                self._trial.idle()

    async def run(self, stage: Stage, count: int, work: Callable[[], _Result]) -> _Result:
        """What `work` gives for so many samples, done where it should be.

        Raises: what it raises; where threads are to do it, as `StageThreads.run`.
        """
        if self._aside_is_better(stage, count):
            self._aside += 1
            rest_s = self._rest.predict(1) if stage == "preprocess" else 0.0
            found, seconds = await self._threads[stage].run(count, lambda: _timed(work), rest_s)
        else:
            self._held += 1
            found, seconds = _timed(work)
        self._times[stage].observe(count, seconds)
        return found

    def figures(self) -> Mapping[str, float]:
        """Stages on the loop and in threads, what waits for those, what was refused; what a trial found."""
        lines = [threads.figures() for threads in self._threads.values()]
        found: dict[str, float] = {"held": self._held, "aside": self._aside, "trials": self._trial.trials}
        if self._trial.gain is not None:
            found["gain"] = self._trial.gain
        times = {f"{stage}_s": time.predict(1) for stage, time in self._times.items()}
        found |= {name: sum(line[name] for line in lines) for name in ("waiting", "refused", "late")}
        return {**found, "overlapping": self._trial.overlapping, **{k: t for k, t in times.items() if t == t}}

    def close(self) -> None:
        """Take no more, and let what runs end; what hangs is left behind."""
        for threads in self._threads.values():
            threads.close()

    @property
    def _may_gain(self) -> bool:
        """Whether both stages of one sample take longer than reaching threads does; false while unknown."""
        return sum(one.predict(1) for one in self._times.values()) > HOPS_S

    def _aside_is_better(self, stage: Stage, count: int) -> bool:
        takes_s = self._times[stage].predict(count)
        if 1000 * takes_s > self._settings.hold_ms:
            return True
        return self._in_flight > 1 and takes_s > HOPS_S / 2 and self._trial.overlapping


def _timed(work: Callable[[], _Result]) -> tuple[_Result, float]:
    """With its own seconds: those for which it waited for a core or for Python's lock are not its own."""
    began = time.thread_time()
    return work(), time.thread_time() - began


class Trial:
    """Whether overlapping pays, by how fast answers come while several are wanted, with it and without."""

    def __init__(self, settings: Pipelining, clock: Callable[[], float]) -> None:
        self._settings, self._clock = settings, clock
        self.overlapping = False
        self.gain: float | None = None
        self.trials = 0
        self._rested_until = -float("inf")
        self._since: float | None = None
        self._blocks: list[float] = []
        self._busy_s, self._answers = 0.0, 0

    def begun(self) -> None:
        """Somebody came while another waited."""
        if self._since is None:
            self._since = self._clock()

    def answered(self) -> None:
        """Somebody was answered; what it took counts if others waited meanwhile."""
        if self._since is None:
            return
        before, self._since = self._since, self._clock()
        now = self._since
        if now < self._rested_until:
            return
        self._busy_s += now - before
        self._answers += 1
        if self._answers >= self._settings.block:
            self._block(now)

    def idle(self) -> None:
        """Nobody waits."""
        self._since = None

    def _block(self, now: float) -> None:
        """Keep what an answer took in this block, and take turns; after the last one decide."""
        self._blocks.append(self._busy_s / self._answers)
        self._busy_s, self._answers = 0.0, 0
        if len(self._blocks) < BLOCKS:
            self.overlapping = len(self._blocks) % 2 == 1
            return
        alone, overlapped = self._blocks[0::2], self._blocks[1::2]
        self.gain = statistics.median(alone) / statistics.median(overlapped)
        self.overlapping = self.gain >= self._settings.min_gain
        self.trials += 1
        self._blocks, self._rested_until = [], now + self._settings.rest_s
