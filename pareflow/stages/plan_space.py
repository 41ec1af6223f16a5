"""The space of serving plans: sessions and batches; and which of them a simulation finds worth serving."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pareflow.runtime.batching import DynamicBatching
from pareflow.runtime.simulation import Setting, poisson, simulate
from pareflow.serving.plan import ServingPlan

BATCHES = (1, 2, 4, 8, 16)
"""Requests that are computed together, at most."""
HELD_BACK = ((1, 0.0), (2, 2.0), (4, 5.0))
"""Requests worth waiting for, and the ms that one waits for them at most."""
ARRIVALS = 4000

Simulated = tuple[ServingPlan, float]
"""A plan, and its p99 in ms by simulation."""


def ranked(
    times: Mapping[str, Mapping[str, float]], per_s: float, samples: int, seed: int
) -> list[Simulated]:
    """Every plan, that of the lowest p99 first.

    `times` are the seconds that so many samples take, by sessions and samples; a request holds `samples`.
    What was timed is what batches may hold.
    """
    return sorted(_simulated(times, per_s, samples, seed), key=lambda one: one[1])


def _simulated(
    times: Mapping[str, Mapping[str, float]], per_s: float, samples: int, seed: int
) -> Iterator[Simulated]:
    """The line is one of whole requests, as many as come together."""
    arrivals = poisson(per_s, ARRIVALS, seed)
    for sessions, known in times.items():
        service = {int(size) // samples: seconds for size, seconds in known.items()}
        for most in service:
            for least, wait_ms in HELD_BACK:
                if least <= most:
                    line = Setting(int(sessions), _batching(most, least, wait_ms))
                    found = simulate(line, service, arrivals)
                    batching = _batching(most * samples, least * samples, wait_ms)
                    plan = ServingPlan(sessions=int(sessions), policies=(batching.step.to_json(),))
                    yield plan, 1000 * float(np.quantile(found, 0.99))


def sizes(samples: int, judged: int | None, default: ServingPlan) -> list[int]:
    """The samples of each batch that is tried, of requests of so many: those of the default plan among them.

    `judged`: the most where answers depend on their batch, and one request at least.
    """
    small = {size for size in BATCHES if size == 1 or judged is None or samples * size <= judged}
    return [samples * size for size in sorted(small | {_together(default, samples)})]


def usual(default: ServingPlan, sessions: int, samples: int) -> ServingPlan:
    """What `serve` does with such requests by the default plan; its batches hold whole requests."""
    batching = _batching(_together(default, samples) * samples, 1, 0)
    return ServingPlan(sessions=sessions, policies=(batching.step.to_json(),))


def _together(default: ServingPlan, samples: int) -> int:
    """Requests of so many samples that the default plan computes together, at most."""
    (batching,) = default.chosen()
    assert isinstance(batching, DynamicBatching)
    return max(1, batching.max_batch_size // samples)


def worth_serving(found: Sequence[Simulated], without: ServingPlan, count: int) -> list[Simulated]:
    """The best by simulation, and what is served `without` tuning: that must do no harm (law 1).

    Of plans that the simulation cannot tell apart one is served, the usual one or the first.
    """
    first, others = ([one for one in found if (one[0] == without) is same] for same in (True, False))
    distinct = {ms: plan for plan, ms in reversed([*first, *others])}
    best = [(plan, ms) for plan, ms in others if distinct[ms] == plan]
    return sorted([*first, *best[: count - len(first)]], key=lambda one: one[1])


def _batching(most: int, least: int, wait_ms: float) -> DynamicBatching:
    least = least if wait_ms else 1  # nobody waits for more
    settings = {"max_batch_size": most, "min_batch_size": least, "max_wait_ms": wait_ms}
    return DynamicBatching.model_validate(settings)
