"""The gate's error rates and power: simulated, and with real processes beside an idle and a loaded core."""

import functools
import itertools
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from claims import Claim, main
from pipeline_run import DATA_DIR
from scipy import stats

from pareflow import gate, spec
from pareflow.compiler.onnxruntime import OnnxRuntime
from pareflow.gate import Decision, Evidence, judge
from pareflow.hardware.device import device_lock
from pareflow.intervals import pooled_quantile_interval, samples_needed
from pareflow.measurement import Measurement, Quality, Ran
from pareflow.measuring import load
from pareflow.measuring.arena import Arena, Contestant, Protocol
from pareflow.measuring.load import queries_worth
from pareflow.sla import SLA, Objective
from pareflow.stages import baseline, building
from pareflow.stages.jobs import feeds_key
from pareflow.stages.run import Row, Run
from pareflow.stages.validation import BLOCKS, LOOKS
from pareflow.variant import Recipe, Step

CONFIG = Path(__file__).parents[1] / "configs" / "digits" / "pipeline.yaml"
PER_LOAD = Protocol().blocks_per_load
SLOWED = Path(__file__).with_name("slowed.py")
ANY = SLA.model_validate({"size": {"max_mib": 1e6}})
Series = Callable[[int], tuple[Measurement, Measurement]]
"""The baseline and the candidate, timed at the given look."""


def measure(quick: bool) -> Sequence[Claim]:
    """Simulations, then real processes; `quick` takes fewer of both."""
    simulated, real = (60, 2) if quick else (500, 30)
    return [
        *simulated_alike(simulated),
        *quality_error_and_power(simulated),
        *lines(simulated),
        *tails(simulated),
        *real_alike(real),
        *real_slowdown(real, loaded=False),
        *real_slowdown(real, loaded=True),
    ]


def simulated_alike(times: int) -> list[Claim]:
    """The same model against itself on a machine that drifts and stutters, looked at up to four times."""
    claims = []
    objectives: tuple[Objective, ...] = ("latency_p50", "latency_p99", "throughput")
    for objective in objectives:
        generator = np.random.default_rng(0)
        series = functools.partial(drifting, generator)
        decisions = [decided(objective, series)[0] for _ in range(times)]
        claims += [
            share(f"A/A simulated, {objective}: promoted", 0.05, decisions, "promote", "at most"),
            share(f"A/A simulated, {objective}: rejected", 0.05, decisions, "reject", "at most"),
        ]
    return claims


def drifting(
    generator: np.random.Generator, look: int, slower: float = 1.0
) -> tuple[Measurement, Measurement]:
    """Two series of blocks: a random walk hits both alike; loads and blocks differ; requests have spikes."""
    blocks, samples = BLOCKS * 2 ** max(look - 2, 0), 20
    loads = blocks // PER_LOAD
    drift = np.exp(np.cumsum(generator.normal(0, 0.03, blocks)))
    found = []
    for name in ("baseline", "candidate"):
        lasting = np.repeat(generator.normal(0, 0.005, loads), PER_LOAD)
        level = drift * np.exp(lasting + generator.normal(0, 0.03, blocks))
        ms = level[:, None] * (1 + generator.gamma(1, 0.03, (blocks, samples)))
        ms += (generator.random(ms.shape) < 0.02) * generator.exponential(1, ms.shape)
        found.append(measurement(name, ms))
    return found[0], found[1]


def measurement(variant: str, ms: np.ndarray) -> Measurement:
    ran = Ran("simulated", "0", "float32", "CPU", 1)
    blocks = tuple(tuple(block) for block in ms.tolist())
    return Measurement(variant, "simulated", 1, ran, blocks, None, None, None, 1.0, PER_LOAD)


def decided(objective: Objective, series: Series, looks: int = LOOKS) -> tuple[Decision, int]:
    """The decision of `do_no_harm`, looked at again with more until it is made; and the looks it took."""
    baseline_ms: Measurement | None = None
    candidate_ms: Measurement | None = None
    decision: Decision = "inconclusive"
    for look in range(1, looks + 1):
        more, theirs = series(look)
        baseline_ms = more if baseline_ms is None else baseline_ms.extended(more)
        candidate_ms = theirs if candidate_ms is None else candidate_ms.extended(theirs)
        evidence = Evidence("candidate", objective, None, None, candidate_ms, baseline_ms)
        decision = judge(ANY, evidence, look=look).checks[-1].decision
        if decision != "inconclusive":
            return decision, look
    return decision, looks


def quality_error_and_power(times: int) -> list[Claim]:
    """Accuracy on 2,000 samples: a true drop at the limit passes rarely; one of two points is rejected."""
    at_limit = quality_decisions(times, lost=0.02, won=0.01, max_drop=0.01)
    two_points = quality_decisions(times, lost=0.03, won=0.01, max_drop=0.005)
    tolerant = quality_decisions(times, lost=0.03, won=0.01, max_drop=0.01)
    return [
        share("quality, true drop = max_drop = 0.01: promoted", 0.05, at_limit, "promote", "at most"),
        share("quality, true drop 0.02, max_drop 0.005: rejected", 0.95, two_points, "reject", "at least"),
        share("quality, true drop 0.02, max_drop 0.01: promoted", 0.05, tolerant, "promote", "at most"),
    ]


def quality_decisions(times: int, *, lost: float, won: float, max_drop: float) -> list[Decision]:
    generator = np.random.default_rng(0)
    sla = SLA.model_validate({"quality": {"max_drop": max_drop}})
    found: list[Decision] = []
    for _ in range(times):
        kind = generator.choice(4, size=2000, p=[lost, won, 0.04, 0.96 - lost - won])
        before, after = np.isin(kind, (0, 3)), np.isin(kind, (1, 3))
        quality, original = scored("candidate", after), scored("original", before)
        evidence = Evidence("candidate", "latency_p50", quality, original, None, None)
        found.append(judge(sla, evidence).checks[0].decision)
    return found


def scored(variant: str, right: np.ndarray) -> Quality:
    scores = tuple(right.astype(int).tolist())
    return Quality(variant, "accuracy", "verdict", "same", float(right.mean()), len(scores), scores)


def lines(times: int) -> list[Claim]:
    """Requests that come at random to one session, whose true p99 is the limit: rarely promoted."""
    generator, claims = np.random.default_rng(0), []
    services: dict[str, Callable[[int], np.ndarray]] = {
        "that always takes as long": np.ones,
        "of exponential times": lambda count: generator.exponential(1.0, count),
    }
    for (said, service), busy in itertools.product(services.items(), (0.3, 0.5, 0.8)):
        limit = float(np.quantile(waited(generator, service(2_000_000), busy), 0.99))
        queries = queries_worth(math.ceil(1.2 * samples_needed(0.99)), busy)
        runs = (waited(generator, service(queries), busy) for _ in range(times // 2))
        found = [
            pooled_quantile_interval(np.array_split(run, load.BLOCKS), 0.99, in_line=True) for run in runs
        ]
        decisions = [gate.decided(one, limit, upper=True) for one in found]
        name = f"load.p99_ms at its limit, a session busy {busy:.0%} {said}: promoted"
        claims.append(share(name, 0.05, decisions, "promote", "at most"))
    return claims


def waited(generator: np.random.Generator, service: np.ndarray, busy: float) -> np.ndarray:
    """Latencies of one session in the order of arrival, in units of its mean service (Lindley, 1952)."""
    free = generator.exponential(1 / busy, len(service))
    steps = np.concatenate([[0], np.cumsum(service[:-1] - free[1:])])
    latencies: np.ndarray = steps - np.minimum.accumulate(steps) + service
    return latencies


def tails(times: int) -> list[Claim]:
    """Pauses in 1.2 % of as many requests as seven finalists are timed by; p99 is as long as allowed."""
    generator, among = np.random.default_rng(0), 7
    error = 0.05 / among / 2
    samples = math.ceil(1.2 * samples_needed(0.99, 1 - error) / BLOCKS)

    def drawn(pauses: float, blocks: int = BLOCKS, of: int = samples) -> np.ndarray:
        calm: np.ndarray = 1 + generator.gamma(1, 0.03, (blocks, of))
        return calm + (generator.random(calm.shape) < pauses) * generator.exponential(3, calm.shape)

    p50, p99 = np.quantile(drawn(0.012, 1, 2_000_000), [0.5, 0.99])
    slower = p99 / np.quantile(drawn(0, 1, 2_000_000), 0.99)
    sla = SLA.model_validate({"latency": {"p99_over_p50": float(p99 / p50)}})
    decisions: list[list[Decision]] = []
    for _ in range(times):
        baseline = measurement("baseline", slower * drawn(0))
        candidate = measurement("candidate", drawn(0.012))
        evidence = Evidence("candidate", "latency_p99", None, None, candidate, baseline)
        tail, *_, harm = judge(sla, evidence, among=among, look=1).checks
        decisions.append([tail.decision, harm.decision])
    names = ("latency.p99_over_p50 at its limit", "do_no_harm, p99 as long as the baseline's")
    return [
        share(f"{name}, {BLOCKS * samples} requests: promoted", error, found, "promote", "at most")
        for name, found in zip(names, zip(*decisions, strict=True), strict=True)
    ]


def real_alike(times: int) -> list[Claim]:
    """The digits baseline against itself, in processes of their own; looked at twice."""
    decisions = [real_decision(None, looks=2)[0] for _ in range(times)]
    return [
        share("A/A real: promoted", 0.05, decisions, "promote", "at most"),
        share("A/A real: rejected", 0.05, decisions, "reject", "at most"),
    ]


def real_slowdown(times: int, *, loaded: bool) -> list[Claim]:
    """The digits baseline against itself slowed by a tenth; rejected within 30 s of measuring."""
    with busy_core() if loaded else nothing():
        found = [real_decision(0.1, looks=LOOKS) for _ in range(times)]
    seconds = [s for _, s in found]
    decisions: list[Decision] = [d if s <= 30 else "inconclusive" for d, s in found]
    where = "beside a process that loads one core" if loaded else "on an idle machine"
    note = f"median {np.median(seconds):.1f} s, longest {max(seconds):.1f} s of measuring"
    return [share(f"10 % slower, {where}: rejected", 0.95, decisions, "reject", "at least", note)]


def real_decision(slower: float | None, looks: int) -> tuple[Decision, float]:
    """What the gate says of the baseline against itself (slowed by a share), and its requests' seconds.

    Each look has processes of its own, as in the validation.
    """
    seconds = 0.0
    prepared()  # before the device is locked for timing

    def series(look: int) -> tuple[Measurement, Measurement]:
        nonlocal seconds
        with device_lock("cpu", exclusive=True) as descriptor, arena(slower, descriptor) as running:
            found = running.measure(Protocol(blocks=BLOCKS * 2 ** max(look - 2, 0), seed=look))
            for error in running.failures.values():
                raise error
        seconds += sum(float(one.samples_ms.sum()) for one in found.values()) / 1000
        return found["baseline"], found["candidate"]

    decision, _ = decided("latency_p50", series, looks)
    return decision, seconds


@contextmanager
def arena(slower: float | None, descriptor: int) -> Iterator[Arena]:
    """The digits baseline and itself, slowed by a share."""
    run, strong = prepared()
    artifact = run.store.find(str(strong.id))
    feeds = run.store.find(feeds_key(run.facts.digest, 1))
    assert artifact is not None and feeds is not None  # just made
    backend = strong.recipe.backend
    candidate = backend if slower is None else Step("slowed", {**backend.settings, "by": slower})
    settings = {"model": "", "arrays": "", "input_name": ""}
    with (
        tempfile.TemporaryDirectory() as logs,
        Arena(
            [
                Contestant("baseline", artifact, backend, 1.0),
                Contestant("candidate", artifact, candidate, 1.0),
            ],
            feeds=feeds / "feeds.npz",
            batch_size=1,
            environment=run.environment.fingerprint,
            workload=({"file": {"path": SLOWED.name, "settings": settings}}, SLOWED.parent),
            limits=run.limits,
            logs=Path(logs),
            descriptors=(descriptor,),
        ) as running,
    ):
        yield running


_PREPARED: list[tuple[Run, Row]] = []


def prepared() -> tuple[Run, Row]:
    """The digits run, and its strong baseline, built."""
    if not _PREPARED:
        run = Run.open(spec.read(CONFIG), CONFIG, DATA_DIR)
        baseline.train(run)
        strong = Row(Recipe((), OnnxRuntime(threads=1).step), "baseline")
        _PREPARED.append((run, building.make(run, strong)))
    return _PREPARED[0]


@contextmanager
def busy_core() -> Iterator[None]:
    """A process that keeps one core busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@contextmanager
def nothing() -> Iterator[None]:
    yield


def share(
    name: str, claimed: float, decisions: Sequence[Decision], which: Decision, side: str, note: str = ""
) -> Claim:
    """How often a decision was made, with its exact 95 % interval (Clopper and Pearson, 1934)."""
    hits, n = decisions.count(which), len(decisions)
    bounds = stats.binomtest(hits, n).proportion_ci(0.95, method="exact")
    low, high = float(bounds.low), float(bounds.high)
    if n * min(claimed, 1 - claimed) < 1:
        note = f"{hits} of {n}, too few to tell; run it without --quick. {note}"
        return Claim(name, claimed, None, "share", n, side, low, high, note)  # type: ignore[arg-type]
    return Claim(name, claimed, hits / n, "share", n, side, low, high, note)  # type: ignore[arg-type]


if __name__ == "__main__":
    main("the gate: error rates and power", measure)
