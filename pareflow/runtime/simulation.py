"""What a line of requests does, without serving it: which batching settings are worth a real run.

A simulation of `dynamic_batching` before some sessions, event by event, from measured service times. It
leaves candidates out, and never stands in for a measurement (law 4).
"""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pareflow.runtime.batching import DynamicBatching

ServiceTimes = Mapping[int, float]
"""Seconds that a batch of so many samples takes, while all sessions are busy."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What is simulated: the sessions, and the batching before them."""

    sessions: int
    batching: DynamicBatching


def poisson(per_s: float, count: int, seed: int = 0) -> np.ndarray:
    """When so many requests arrive at random, in seconds: shape (count,), rising."""
    return np.cumsum(np.random.default_rng(seed).exponential(1 / per_s, count))


def simulate(setting: Setting, times: ServiceTimes, arrivals_s: np.ndarray) -> np.ndarray:
    """Seconds from each request's arrival to its answer, in their order; a request is one sample.

    `times` must have the size 1; a size between two known ones takes what lies between on the line, a larger
    one in proportion to the largest.
    """
    policy, count = setting.batching, len(arrivals_s)
    sizes = np.array(sorted(times))
    known = np.array([times[int(size)] for size in sizes])
    free = [0.0] * setting.sessions
    taken, found = 0, np.empty(count)
    while taken < count:
        start = max(heapq.heappop(free), float(arrivals_s[taken]))
        start = max(start, _worth_waiting(policy, arrivals_s, taken))
        waiting = int(np.searchsorted(arrivals_s, start, side="right")) - taken
        size = min(policy.max_batch_size, waiting)
        end = start + _service_s(sizes, known, size)
        found[taken : taken + size] = end - arrivals_s[taken : taken + size]
        heapq.heappush(free, end)
        taken += size
    return found


def _worth_waiting(policy: DynamicBatching, arrivals_s: np.ndarray, first: int) -> float:
    """Until when a line that is too short for a batch is held back."""
    last = min(first + policy.min_batch_size, len(arrivals_s)) - 1
    return min(float(arrivals_s[last]), float(arrivals_s[first]) + policy.max_wait_ms / 1000)


def _service_s(sizes: np.ndarray, known: np.ndarray, size: int) -> float:
    if size > sizes[-1]:
        return float(known[-1] * size / sizes[-1])
    return float(np.interp(size, sizes, known))
