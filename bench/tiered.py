"""A network, cheaper variants of it, and requests to both: what a policy with a threshold saves and loses.

Compute is processor time of this process, all threads, per request of one sample, in interleaved rounds; the
full model is the original in ONNX Runtime fp32 at full graph optimization. Samples are those that nothing was
trained on (the search and the verdict split); no promotion is decided here. Repeated calibrations draw other
halves: a budget is broken where the threshold loses more than allowed on all samples together, which are the
population that each half was drawn from.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import recipes
import token_classifier
from claims import Claim

from pareflow import workload as workloads
from pareflow.catalog import BACKENDS, complete, find
from pareflow.compiler import Backend, OnnxRuntime
from pareflow.errors import CalibrationError, PareflowError
from pareflow.intervals import mean_interval, paired_share_drop
from pareflow.runtime import Policy
from pareflow.runtime.calibration import (
    FULL,
    THRESHOLDS,
    Judged,
    ThresholdCalibration,
    answered,
    calibrate_threshold,
)
from pareflow.runtime.confidence import confidence
from pareflow.runtime.endpoint import Endpoint
from pareflow.runtime.pool import SessionPool
from pareflow.session import Session
from pareflow.stages import optimization
from pareflow.stages.run import Row, Run
from pareflow.variant import Recipe, digest, file_digest
from pareflow.workload import Arrays

BUDGET = 0.01
REPEATS = 200
REQUESTS = 25
"""Of each round, first to the one and then to the other."""


@dataclass(frozen=True)
class Trial:
    """A network of `configs/`, and the recipes of its tiers, cheapest first; `rival` is beside them.

    `tokens` puts a classifier by single tokens before them.
    """

    network: str
    tiers: Mapping[str, list[Any]]
    rival: list[Any]
    tokens: bool = False


INT8 = {"nncf_int8": {"model_type": "transformer"}}
TRIALS = {
    "intent": Trial(
        "intent",
        {
            "small": [
                {"distillation": {"student": "layers_2", "epochs": 8, "learning_rate": 0.0003}},
                INT8,
                "openvino",
            ]
        },
        [INT8, "openvino"],
        tokens=True,
    ),
    "fashion": Trial(
        "fashion",
        {
            "small": [
                {"distillation": {"student": "small", "epochs": 6, "learning_rate": 0.01}},
                "static_int8",
                "onnxruntime",
            ]
        },
        ["static_int8", "onnxruntime"],
    ),
}


@dataclass(frozen=True)
class Variant:
    """A loaded variant, and what it answers to every sample of the pool."""

    identity: str
    load: Callable[[], Session]
    session: Session
    confidence: np.ndarray
    correct: np.ndarray

    @property
    def endpoint(self) -> Endpoint:
        return SessionPool([self.session], inline_rows=math.inf).endpoint(self.identity)


@dataclass(frozen=True)
class Pool:
    """Single requests that nothing was trained on, their labels, and how outputs become classes."""

    requests: Sequence[Arrays]
    labels: np.ndarray
    postprocess: Any


@dataclass(frozen=True)
class Setting:
    """The full model, its tiers, cheapest first, and the requests to them."""

    pool: Pool
    full: Variant
    tiers: Mapping[str, Variant]

    @property
    def below(self) -> Endpoint:
        tiers = {name: tier.endpoint for name, tier in self.tiers.items()}
        return replace(self.full.endpoint, tiers=tiers)

    @property
    def names(self) -> dict[str, str]:
        return {name: tier.identity for name, tier in self.tiers.items()} | {FULL: self.full.identity}


@dataclass(frozen=True)
class Scored:
    """What a threshold is of: per tier a score of every sample of the pool, and the thresholds to test."""

    setting: Setting
    scores: Mapping[str, np.ndarray]
    kind: str = "max_softmax"
    thresholds: Sequence[float] = THRESHOLDS

    def judged(self, samples: np.ndarray) -> list[Judged]:
        tiers = self.setting.tiers
        return [Judged(self.scores[name][samples], tier.correct[samples]) for name, tier in tiers.items()]

    def calibrated(self, samples: np.ndarray) -> ThresholdCalibration:
        """Raises: CalibrationError."""
        return calibrate_threshold(
            self.setting.names,
            self.judged(samples),
            self.setting.full.correct[samples],
            max_drop=BUDGET,
            score=self.kind,
            thresholds=self.thresholds,
        )


def setting(run: Run, trial: Trial) -> Setting:
    """Everything made, loaded and asked once. Raises: PareflowError where a variant cannot be made."""
    pool = _pool(run)
    full = variant(run, recipes.STRONG, pool)
    tiers = {"tokens": _by_tokens(run, pool)} if trial.tokens else {}
    tiers |= {tier: variant(run, Recipe.from_json(steps), pool) for tier, steps in trial.tiers.items()}
    return Setting(pool, full, tiers)


def _pool(run: Run) -> Pool:
    workload = workloads.load(run.spec.workload, run.folder)
    parts = [workload.split("search"), workload.for_validation().split("verdict")]
    definition = workload.definition
    requests = [definition.preprocess(part.samples[i : i + 1]) for part in parts for i in range(len(part))]
    return Pool(requests, np.concatenate([part.labels() for part in parts]), definition.postprocess)


def variant(run: Run, recipe: Recipe, pool: Pool) -> Variant:
    """Made where the store lacks it. Raises: PareflowError where it cannot be."""
    row = optimization.make(run, Row(complete(recipe)))
    if row.status != "ok":
        raise PareflowError(f"{recipe.label} must be made", f"it is {row.status}", str(row.reason))
    backend = find(BACKENDS, row.recipe.backend, "backend")
    artifact = run.store.find(str(row.id))
    assert isinstance(backend, Backend) and artifact is not None  # it has just been made
    return _judged_on(pool, str(row.id), partial(backend.load, artifact))


def _by_tokens(run: Run, pool: Pool) -> Variant:
    """Trained on the training split where the store lacks it."""
    key = digest("token classifier", file_digest(Path(token_classifier.__file__)), run.facts.data_digest)

    def write(into: Path) -> None:
        workload = workloads.load(run.spec.workload, run.folder)
        train = workload.split("train")
        inputs = workload.definition.preprocess(train.samples)
        lengths = inputs["attention_mask"].sum(axis=1)
        ids = [row[:length] for row, length in zip(inputs["input_ids"], lengths, strict=True)]
        with TemporaryDirectory() as source:
            token_classifier.write(*token_classifier.train(ids, train.labels()), Path(source) / "model.onnx")
            OnnxRuntime(threads=1).compile(Path(source), into)

    return _judged_on(pool, key, partial(OnnxRuntime(threads=1).load, run.store.ensure(key, write)))


def _judged_on(pool: Pool, identity: str, load: Callable[[], Session]) -> Variant:
    session = load()
    outputs = [session.run(request) for request in pool.requests]
    return Variant(
        identity,
        load,
        session,
        np.concatenate([confidence(output, "", "max_softmax") for output in outputs]),
        np.concatenate([pool.postprocess(output) for output in outputs]) == pool.labels,
    )


def compute(
    name: str,
    policy: Policy,
    setting: Setting,
    others: Mapping[str, Variant],
    samples: np.ndarray,
    rounds: int,
    claimed: float,
    note: str,
) -> Iterator[Claim]:
    """Processor time of the full model over that behind the policy, and of others over the same."""
    chance = np.random.default_rng(1)
    requests = [setting.pool.requests[i] for i in samples]
    endpoints = [setting.below, policy.wrap(setting.below), *(other.endpoint for other in others.values())]
    cpu, wall = np.empty((rounds, len(endpoints))), np.empty((rounds, len(endpoints)))
    for i in range(rounds):
        asked = [requests[j] for j in chance.integers(len(requests), size=REQUESTS)]
        for j in chance.permutation(len(endpoints)):
            began = time.process_time(), time.perf_counter()
            asyncio.run(_ask(endpoints[j], asked))
            cpu[i, j], wall[i, j] = time.process_time() - began[0], time.perf_counter() - began[1]
    saved = mean_interval(cpu[:, 0] / cpu[:, 1])
    ms = 1000 * np.median(cpu, axis=0) / REQUESTS
    shown = f"{ms[0]:.2f} to {ms[1]:.2f} ms; wall {float(np.median(wall[:, 0] / wall[:, 1])):.2f}×; {note}"
    yield _ratio(f"{name}: less processor time than the full model in fp32", claimed, saved, rounds, shown)
    for j, (kind, other) in enumerate(others.items(), 2):
        over = mean_interval(cpu[:, j] / cpu[:, 1])
        shown = f"{ms[j]:.2f} ms; accuracy {other.correct.mean():.4f}"
        yield _ratio(f"{name}: less processor time than the full model in {kind}", 1, over, rounds, shown)


def _ratio(name: str, claimed: float, found: Any, rounds: int, note: str) -> Claim:
    return Claim(name, claimed, found.estimate, "×", rounds, "at least", found.low, found.high, note)


async def _ask(endpoint: Endpoint, requests: Sequence[Arrays]) -> list[Arrays]:
    return [await endpoint.answer(request) for request in requests]


def lost(name: str, policy: Policy, setting: Setting, samples: np.ndarray) -> Claim:
    """By what the policy itself answers to samples that it was not calibrated on."""
    pool, before = setting.pool, setting.full.correct[samples]
    answers = asyncio.run(_ask(policy.wrap(setting.below), [pool.requests[i] for i in samples]))
    right = np.concatenate([pool.postprocess(answer) for answer in answers]) == pool.labels[samples]
    drop = paired_share_drop(int((before & ~right).sum()), int((~before & right).sum()), len(samples))
    alone = ", ".join(f"{tier} alone {one.correct.mean():.4f}" for tier, one in setting.tiers.items())
    note = f"{before.mean():.4f} to {right.mean():.4f}; {alone}"
    bounds = (drop.low, drop.high)
    return Claim(
        f"{name}: accuracy lost", BUDGET, drop.estimate, "share", len(samples), "at most", *bounds, note
    )


def violations(name: str, scored: Scored, samples: np.ndarray) -> Claim:
    """Of other halves of the samples: how often the budget is broken, by the calibration and plainly."""
    full, judged = scored.setting.full.correct[samples], scored.judged(samples)
    losses = {
        threshold: full.astype(int) - answered(judged, full, threshold)[1] for threshold in scored.thresholds
    }
    broken = naive = on_held_out = refused = 0
    kept = list[float]()
    for seed in range(REPEATS):
        ours, others = np.array_split(np.random.default_rng(1000 + seed).permutation(len(samples)), 2)
        plain = min((t for t in scored.thresholds if losses[t][ours].mean() <= BUDGET), default=None)
        naive += plain is not None and _breaks(losses[plain])
        try:
            found = scored.calibrated(samples[ours])
        except CalibrationError:
            refused += 1
            continue
        broken += _breaks(losses[found.threshold])
        on_held_out += _breaks(losses[found.threshold][others])
        kept.append(1 - sum(found.answered.values()))
    left = f"left to the full model {np.median(kept):.3f} (median); " if kept else ""
    note = (
        f"the plain choice in {naive} of {REPEATS}; on the other half (its own noise counts) {on_held_out}; "
        f"{left}refused {refused}"
    )
    share = broken / REPEATS
    return Claim(
        f"{name}: calibrations that break the budget", 0.05, share, "share", REPEATS, "at most", note=note
    )


def _breaks(losses: np.ndarray) -> bool:
    return bool(losses.mean() > BUDGET)
