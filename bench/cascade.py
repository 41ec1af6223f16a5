"""Cascades on real data: the compute that they save, the quality that they lose, and how often a calibration
breaks its budget.

Compute is processor time of this process, all threads, per request of one sample, in interleaved rounds; the
full model is the original in ONNX Runtime fp32 at full graph optimization. A classifier's samples are those
that nothing was trained on (the search and the verdict split), half for calibration and half held out; no
promotion is decided here. 200 calibrations draw other halves: a budget is broken where the threshold loses
more than allowed on all samples together, which are the population that each half was drawn from.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import ranking
import recipes
import token_classifier
from claims import Claim, main

from pareflow.catalog import BACKENDS, complete, find
from pareflow.compiler import Backend, OnnxRuntime
from pareflow.errors import CalibrationError, PareflowError
from pareflow.intervals import mean_interval, paired_share_drop
from pareflow.runtime import ConfidenceCascade
from pareflow.runtime.calibration import FULL, THRESHOLDS, Judged, answered, calibrate_threshold
from pareflow.runtime.confidence import confidence
from pareflow.runtime.endpoint import Endpoint
from pareflow.runtime.pool import SessionPool
from pareflow.session import Session
from pareflow.stages import optimization
from pareflow.stages.run import Row, Run
from pareflow.variant import Recipe, digest, file_digest
from pareflow.workload import Arrays, load

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
    session: Session
    confidence: np.ndarray
    correct: np.ndarray

    @property
    def endpoint(self) -> Endpoint:
        return SessionPool([self.session], inline=True).endpoint(self.identity)


@dataclass(frozen=True)
class Pool:
    """Single requests that nothing was trained on, their labels, and how outputs become classes."""

    requests: Sequence[Arrays]
    labels: np.ndarray
    postprocess: Any


def measure(name: str, quick: bool) -> Iterator[Claim]:
    """What one cascade saves and loses; `quick` times fewer rounds."""
    trial = TRIALS[name]
    run = recipes.run_of(trial.network, 0)
    pool = _pool(run)
    full = _variant(run, recipes.STRONG, pool)
    tiers = {"tokens": _by_tokens(run, pool)} if trial.tokens else {}
    tiers |= {tier: _variant(run, Recipe.from_json(steps), pool) for tier, steps in trial.tiers.items()}
    order = np.random.default_rng(0).permutation(len(pool.labels))
    calibration, held_out = np.array_split(order, 2)
    identities = {tier: variant.identity for tier, variant in tiers.items()} | {FULL: full.identity}
    judged = [_judged(variant, calibration) for variant in tiers.values()]
    record = calibrate_threshold(identities, judged, full.correct[calibration], max_drop=BUDGET)
    below = replace(full.endpoint, tiers={tier: variant.endpoint for tier, variant in tiers.items()})
    policy = ConfidenceCascade(calibration=record)
    rival = _variant(run, Recipe.from_json(trial.rival), pool)
    shares = ", ".join(f"{tier} {share:.3f}" for tier, share in record.answered.items())
    note = f"threshold {record.threshold:.4f}; answered by {shares}"
    rounds = 20 if quick else 80
    yield from _compute(name, policy, below, rival, [pool.requests[i] for i in held_out], rounds, note)
    yield _lost(name, policy, below, pool, held_out, full, tiers)
    yield _violations(name, tiers, full)


def _pool(run: Run) -> Pool:
    workload = load(run.spec.workload, run.folder)
    parts = [workload.split("search"), workload.for_validation().split("verdict")]
    definition = workload.definition
    requests = [definition.preprocess(part.samples[i : i + 1]) for part in parts for i in range(len(part))]
    return Pool(requests, np.concatenate([part.labels() for part in parts]), definition.postprocess)


def _variant(run: Run, recipe: Recipe, pool: Pool) -> Variant:
    """Made where the store lacks it. Raises: PareflowError where it cannot be."""
    row = optimization.make(run, Row(complete(recipe)))
    if row.status != "ok":
        raise PareflowError(f"{recipe.label} must be made", f"it is {row.status}", str(row.reason))
    backend = find(BACKENDS, row.recipe.backend, "backend")
    artifact = run.store.find(str(row.id))
    assert isinstance(backend, Backend) and artifact is not None  # it has just been made
    return _judged_on(pool, str(row.id), backend.load(artifact))


def _by_tokens(run: Run, pool: Pool) -> Variant:
    """Trained on the training split where the store lacks it."""
    key = digest("token classifier", file_digest(Path(token_classifier.__file__)), run.facts.data_digest)

    def write(into: Path) -> None:
        workload = load(run.spec.workload, run.folder)
        train = workload.split("train")
        inputs = workload.definition.preprocess(train.samples)
        lengths = inputs["attention_mask"].sum(axis=1)
        ids = [row[:length] for row, length in zip(inputs["input_ids"], lengths, strict=True)]
        with TemporaryDirectory() as source:
            token_classifier.write(*token_classifier.train(ids, train.labels()), Path(source) / "model.onnx")
            OnnxRuntime(threads=1).compile(Path(source), into)

    return _judged_on(pool, key, OnnxRuntime(threads=1).load(run.store.ensure(key, write)))


def _judged_on(pool: Pool, identity: str, session: Session) -> Variant:
    outputs = [session.run(request) for request in pool.requests]
    return Variant(
        identity,
        session,
        np.concatenate([confidence(output, "", "max_softmax") for output in outputs]),
        np.concatenate([pool.postprocess(output) for output in outputs]) == pool.labels,
    )


def _judged(variant: Variant, samples: np.ndarray) -> Judged:
    return Judged(variant.confidence[samples], variant.correct[samples])


def _compute(
    name: str,
    policy: ConfidenceCascade,
    below: Endpoint,
    rival: Variant,
    requests: Sequence[Arrays],
    rounds: int,
    note: str,
) -> Iterator[Claim]:
    """Processor time of the full model over that of the cascade, and of its int8 form over the cascade's."""
    chance = np.random.default_rng(1)
    endpoints = [below, policy.wrap(below), rival.endpoint]
    cpu, wall = np.empty((rounds, 3)), np.empty((rounds, 3))
    for i in range(rounds):
        asked = [requests[j] for j in chance.integers(len(requests), size=REQUESTS)]
        for j in chance.permutation(3):
            began = time.process_time(), time.perf_counter()
            asyncio.run(_ask(endpoints[j], asked))
            cpu[i, j], wall[i, j] = time.process_time() - began[0], time.perf_counter() - began[1]
    saved = mean_interval(cpu[:, 0] / cpu[:, 1])
    ms = 1000 * np.median(cpu, axis=0) / REQUESTS
    shown = f"{ms[0]:.2f} to {ms[1]:.2f} ms; wall {float(np.median(wall[:, 0] / wall[:, 1])):.2f}×; {note}"
    yield _ratio(f"{name}: less processor time than the full model in fp32", 3, saved, rounds, shown)
    over_int8 = mean_interval(cpu[:, 2] / cpu[:, 1])
    shown = f"{ms[2]:.2f} ms; accuracy {rival.correct.mean():.4f}"
    yield _ratio(f"{name}: less processor time than the full model in int8", 1, over_int8, rounds, shown)


def _ratio(name: str, claimed: float, found: Any, rounds: int, note: str) -> Claim:
    return Claim(name, claimed, found.estimate, "×", rounds, "at least", found.low, found.high, note)


async def _ask(endpoint: Endpoint, requests: Sequence[Arrays]) -> list[Arrays]:
    return [await endpoint.answer(request) for request in requests]


def _lost(
    name: str,
    policy: ConfidenceCascade,
    below: Endpoint,
    pool: Pool,
    samples: np.ndarray,
    full: Variant,
    tiers: Mapping[str, Variant],
) -> Claim:
    """By what the policy itself answers to the samples that it was not calibrated on."""
    answers = asyncio.run(_ask(policy.wrap(below), [pool.requests[i] for i in samples]))
    right = np.concatenate([pool.postprocess(answer) for answer in answers]) == pool.labels[samples]
    before = full.correct[samples]
    drop = paired_share_drop(int((before & ~right).sum()), int((~before & right).sum()), len(samples))
    alone = ", ".join(f"{tier} alone {variant.correct.mean():.4f}" for tier, variant in tiers.items())
    note = f"{before.mean():.4f} to {right.mean():.4f}; {alone}"
    return Claim(
        f"{name}: accuracy lost",
        BUDGET,
        drop.estimate,
        "share",
        len(samples),
        "at most",
        drop.low,
        drop.high,
        note,
    )


def _violations(name: str, tiers: Mapping[str, Variant], full: Variant) -> Claim:
    """Of other halves: how often the budget is broken, by the calibration and by the plain choice."""
    everyone = np.arange(len(full.correct))
    judged = [_judged(variant, everyone) for variant in tiers.values()]
    names = {name: variant.identity for name, variant in tiers.items()} | {FULL: full.identity}
    lost = {
        threshold: full.correct.astype(int) - answered(judged, full.correct, threshold)[1]
        for threshold in THRESHOLDS
    }
    broken = naive = on_held_out = refused = 0
    kept = list[float]()
    for seed in range(REPEATS):
        ours, others = np.array_split(np.random.default_rng(1000 + seed).permutation(everyone), 2)
        plain = min((t for t in THRESHOLDS if lost[t][ours].mean() <= BUDGET), default=None)
        naive += plain is not None and _breaks(lost[plain])
        try:
            parts = [_judged(variant, ours) for variant in tiers.values()]
            found = calibrate_threshold(names, parts, full.correct[ours], max_drop=BUDGET)
        except CalibrationError:
            refused += 1
            continue
        broken += _breaks(lost[found.threshold])
        on_held_out += _breaks(lost[found.threshold][others])
        kept.append(1 - sum(found.answered.values()))
    note = (
        f"the plain choice in {naive} of {REPEATS}; on the other half (its own noise counts) {on_held_out}; "
        f"left to the full model {np.median(kept):.3f} (median); refused {refused}"
    )
    return Claim(
        f"{name}: calibrations that break the budget",
        0.05,
        broken / REPEATS,
        "share",
        REPEATS,
        "at most",
        note=note,
    )


def _breaks(losses: np.ndarray) -> bool:
    return bool(losses.mean() > BUDGET)


if __name__ == "__main__":
    main(
        "cascade",
        {
            "intent": partial(measure, "intent"),
            "fashion": partial(measure, "fashion"),
            "cranfield": ranking.measure,
        },
    )
