"""Routing on real data: by how complex a request is, and by what its deadline leaves.

Complexity: the rule (the fewer tokens, the simpler) and a learned score. A third of the samples trains the
scores; of the others half calibrate and half are held out. Cascades look at a cheap answer before they
decide; routing looks at the request alone, and can save less: what is claimed is that the guarantee holds.

Deadlines: requests of one sample arrive at random, half as many again as the full model can answer on all
cores, and each is worth something for three of its service times. Beside it, under the same arrivals: the
same policy without tiers, by which the full model in as many sessions refuses at once what would be late.
There is no guarantee of quality here: what is bounded is that no more is lost than by the cheapest variant
alone.
"""

import asyncio
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import recipes
from claims import Claim
from tiered import BUDGET, TRIALS, Scored, Setting, Variant, compute, lost, setting, violations

from pareflow.errors import CalibrationError, OverloadedError
from pareflow.hardware import probe
from pareflow.intervals import share_interval
from pareflow.runtime import ComplexityRouting, DeadlineRouting
from pareflow.runtime.calibration import THRESHOLDS
from pareflow.runtime.complexity import LENGTHS, simplicity, train_score
from pareflow.runtime.endpoint import Endpoint, answered_within
from pareflow.runtime.pool import SessionPool
from pareflow.runtime.simulation import poisson
from pareflow.session import Session

INPUTS = {"intent": ("attention_mask", "input_ids"), "fashion": ("images", "images")}
"""What the rule counts, and what the score is learned on."""
BUCKETS = {"intent": 256, "fashion": 0}
OVERLOAD = 1.5
WORTH = 3.0
"""Service times of the full model that a request may wait, all in all."""
LATE = 0.05
"""Of what is answered, the most that may come after its deadline."""
TIMED = 50


def by_complexity(network: str, quick: bool) -> Iterator[Claim]:
    """The rule, and the learned score; `quick` times fewer rounds."""
    made = setting(recipes.run_of(TRIALS[network].network, 0), TRIALS[network])
    order = np.random.default_rng(0).permutation(len(made.pool.labels))
    learning, others = np.split(order, [len(order) // 3])
    counted, learned = INPUTS[network]
    seen = [made.pool.requests[i][learned] for i in learning]
    scores = {
        name: train_score(seen, tier.correct[learning], BUCKETS[network]) for name, tier in made.tiers.items()
    }
    policies = {
        "by length": ComplexityRouting(input=counted),
        "by a learned score": ComplexityRouting(input=learned, scores=scores),
    }
    for kind, policy in policies.items():
        yield from _routed(f"{network}, {kind}", policy, made, others, 20 if quick else 80)


def _routed(
    name: str, policy: ComplexityRouting, made: Setting, samples: np.ndarray, rounds: int
) -> Iterator[Claim]:
    simple = {
        tier: np.concatenate(
            [simplicity(one, policy.input, policy.scores.get(tier)) for one in made.pool.requests]
        )
        for tier in made.tiers
    }
    scored = Scored(made, simple, policy.kind_of_score, THRESHOLDS if policy.scores else LENGTHS)
    calibration, held_out = np.array_split(samples, 2)
    try:
        record = scored.calibrated(calibration)
    except CalibrationError as error:
        told, count = f"refused: {error.found}", len(calibration)
        yield Claim(f"{name}: less processor time", 1, None, "×", count, "at least", note=told)
        yield Claim(f"{name}: accuracy lost", BUDGET, None, "share", count, "at most", note=told)
    else:
        shares = ", ".join(f"{tier} {share:.3f}" for tier, share in record.answered.items())
        chosen = policy.model_copy(update={"calibration": record})
        note = f"threshold {record.threshold:.4g}; answered by {shares}"
        yield from compute(name, chosen, made, {}, held_out, rounds, 1, note)
        yield lost(name, chosen, made, held_out)
    yield violations(name, scored, samples)


@dataclass(frozen=True)
class Served:
    """What became of requests under load: whether each was answered, in time, and rightly, shape (n,)."""

    answered: np.ndarray
    in_time: np.ndarray
    correct: np.ndarray
    cpu_ms: float
    """Processor time per answer, that of asking and of the event loop included."""
    figures: Mapping[str, float]


def by_deadline(network: str, quick: bool) -> Iterator[Claim]:
    """The best variant that is in time, beside the full model alone; `quick` asks fewer."""
    made = setting(recipes.run_of(TRIALS[network].network, 0), TRIALS[network])
    full_s = _service_s(made.full.session, made)
    chosen = np.random.default_rng(0).integers(len(made.pool.labels), size=400 if quick else 3000)
    arrivals = poisson(OVERLOAD * len(probe.cores()) / full_s, len(chosen), 1)
    ways: tuple[Mapping[str, Variant], ...] = ({}, made.tiers)
    alone, routed = (
        asyncio.run(_under_load(replace(made, tiers=tiers), chosen, arrivals, WORTH * full_s))
        for tiers in ways
    )
    before, after, count = alone.in_time.mean(), routed.in_time.mean(), int(routed.answered.sum())
    by = ", ".join(f"{name} {routed.figures[f'answered_{name}']:.0f}" for name in made.names)
    note = f"{before:.3f} to {after:.3f}; by {by}; {1000 * full_s:.2f} ms alone"
    gain = float(after / before)
    yield _claim(network, "in time over the full model alone", 1, gain, "×", len(chosen), "at least", note)
    late = share_interval(int((routed.answered & ~routed.in_time).sum()), count)
    note = f"{late.low:.3f} to {late.high:.3f}"
    yield _claim(network, "answers that came late", LATE, late.estimate, "share", count, "at most", note)
    saved, note = alone.cpu_ms / routed.cpu_ms, f"{alone.cpu_ms:.2f} to {routed.cpu_ms:.2f} ms"
    yield _claim(network, "less processor time per answer", 1, saved, "×", count, "at least", note)
    full, right = made.full.correct[chosen][routed.answered].mean(), routed.correct[routed.answered].mean()
    worst = float(made.full.correct.mean() - min(one.correct.mean() for one in made.tiers.values()))
    name, note = "accuracy lost, where the cheapest loses that much", f"{full:.4f} to {right:.4f}"
    yield _claim(network, name, worst, float(full - right), "share", count, "at most", note)


def _claim(
    network: str,
    name: str,
    claimed: float,
    measured: float,
    unit: str,
    samples: int,
    side: Literal["at least", "at most"],
    note: str,
) -> Claim:
    return Claim(f"{network}, deadlines: {name}", claimed, measured, unit, samples, side, note=note)


def _service_s(session: Session, made: Setting) -> float:
    """The median second of a request alone."""
    times = []
    for feeds in made.pool.requests[:TIMED]:
        began = time.perf_counter()
        session.run(feeds)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


async def _under_load(made: Setting, chosen: np.ndarray, arrivals: np.ndarray, worth_s: float) -> Served:
    """Requests at their moments, none of which waits for another to be sent; after some that warm it up."""
    tiers = {name: SessionPool([one.session]).endpoint(one.identity) for name, one in made.tiers.items()}
    sessions = [made.full.session, *(made.full.load() for _ in range(len(probe.cores()) - 1))]
    full = SessionPool(sessions).endpoint(made.full.identity)
    policy = DeadlineRouting()
    endpoint = policy.wrap(replace(full, tiers=tiers))
    for i in range(TIMED):
        with answered_within(None if i % 2 else worth_s):
            await _unless_refused(endpoint, made, i)
    before, cpu, began = endpoint.figures[policy.name](), time.process_time(), time.perf_counter()
    answered, in_time, correct = (np.zeros(len(chosen), bool) for _ in range(3))

    async def ask(place: int) -> None:
        due = began + arrivals[place] + worth_s
        with answered_within(due - time.perf_counter()):
            prediction = await _unless_refused(endpoint, made, int(chosen[place]))
        if prediction is not None:
            answered[place], in_time[place] = True, time.perf_counter() <= due
            correct[place] = prediction == made.pool.labels[chosen[place]]

    tasks = []
    for place, moment in enumerate(arrivals):
        await asyncio.sleep(max(0.0, began + moment - time.perf_counter()))
        tasks.append(asyncio.create_task(ask(place)))
    await asyncio.gather(*tasks)
    spent_s = time.process_time() - cpu
    figures = {key: value - before[key] for key, value in endpoint.figures[policy.name]().items()}
    return Served(answered, in_time, correct, 1000 * spent_s / max(1, answered.sum()), figures)


async def _unless_refused(endpoint: Endpoint, made: Setting, sample: int) -> object:
    """The prediction for a sample of the pool; None where it was refused."""
    try:
        outputs = await endpoint.answer(made.pool.requests[sample])
    except OverloadedError:
        return None
    prediction: object = made.pool.postprocess(outputs)[0]
    return prediction
