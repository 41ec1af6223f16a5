"""The thresholds of a plan, calibrated for the versions that it serves: for a process of its own.

The samples are those of the calibration and the search split, which nothing was trained on; the verdict split
stays shut. Tiers that were quantized by the calibration split, or chosen by the search split, may look a
little better on these samples than on others: a workload that can spare samples keeps its splits large.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pareflow.errors import CalibrationError, InputError
from pareflow.measuring.quality import Metric
from pareflow.runtime.caching.calibration import HitCalibration, calibrate
from pareflow.runtime.caching.pairs import pairs
from pareflow.runtime.caching.semantic_cache import SemanticCache
from pareflow.runtime.calibration import (
    FEWEST,
    FULL,
    THRESHOLDS,
    Judged,
    ThresholdCalibration,
    calibrate_threshold,
    require_enough,
)
from pareflow.runtime.cascade import ConfidenceCascade
from pareflow.runtime.complexity import (
    LENGTHS,
    SimplicityScore,
    looked_at,
    simplicity,
    train_score,
)
from pareflow.runtime.complexity_routing import ComplexityRouting
from pareflow.runtime.confidence import confidence
from pareflow.runtime.endpoint import Endpoint
from pareflow.runtime.policy import Policy
from pareflow.runtime.ranking import RankingCascade
from pareflow.serving.executable import Executable, Release
from pareflow.serving.names import check_names
from pareflow.serving.opening import beyond_judged
from pareflow.serving.plan import ServingPlan
from pareflow.workload import Arrays, LoadedWorkload, Samples, Split, SplitName, load

HELD_OUT: tuple[SplitName, ...] = ("calibration", "search")
LEARNING_SHARE = 1 / 3
"""Of the samples, what scores of complexity are learned on where they are asked for."""
BUCKETS = 256
"""In which tokens are counted for them."""
KEPT_SHARE = 0.5
"""Of the samples, what a semantic cache holds while it is calibrated; the others are asked."""
ALONE = ServingPlan(sessions=1, inline_ms=1e9, policies=())
"""How versions are opened for it: one session each, asked one request at a time."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The most of the metric that all cascades and routings of a plan may lose together, and how surely."""

    max_drop: float = 0.01
    confidence: float = 0.95

    def shared_by(self, policies: int) -> "Budget":
        """What each of so many may lose so surely that all together keep to this (Bonferroni)."""
        count = max(1, policies)
        return Budget(self.max_drop / count, 1 - (1 - self.confidence) / count)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of a calibration: its budget, and whether scores that the plan lacks are learned."""

    budget: Budget
    learn_scores: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """Requests of one sample each, and what is right of them; None: what the full model predicts."""

    requests: Sequence[Arrays]
    targets: np.ndarray | None
    main: Executable

    def correct(self, predictions: np.ndarray, full: np.ndarray) -> np.ndarray:
        """Whether each prediction is right, shape (n,). Raises: CalibrationError."""
        targets = full if self.targets is None else self.targets
        if predictions.shape != targets.shape:
            raise CalibrationError(
                "predictions must have the targets' shape, so that each is right or wrong",
                f"they have {predictions.shape}, and the targets {targets.shape}",
                "Serve it without tiers",
            )
        right: np.ndarray = (predictions == targets).reshape(len(targets), -1).all(axis=1)
        return right

    def part(self, rows: np.ndarray) -> "Asked":
        targets = None if self.targets is None else self.targets[rows]
        return Asked([self.requests[i] for i in rows], targets, self.main)


def calibrated(
    releases: Mapping[str, Mapping[str, str]],
    plan: Mapping[str, Any],
    reference: Mapping[str, Any],
    folder: str,
    metric: str,
    budget: Mapping[str, float],
    learn_scores: bool = False,
) -> dict[str, Any]:
    """`plan` with its thresholds, and `found`: per calibrated policy what was decided.

    `releases` are the main one, whose name is empty, and the tiers by name: each `{name, version, package}`.
    Raises: CalibrationError where there are too few samples or they show too little; InputError where a
    version was made with other data, or is asked for larger batches than it was judged in, or the plan names
    what is not there, or has nothing to calibrate; as `Executable`.
    """
    described, workload = ServingPlan(**plan), load(reference, Path(folder))
    versions = {
        name: Release(one["name"], one["version"], Path(one["package"])) for name, one in releases.items()
    }
    _check_batches(described, versions)
    opened = {name: Executable(release, ALONE) for name, release in versions.items()}
    for executable in opened.values():
        _check_data(executable, workload)
    main = opened.pop("")
    check_names(described, main, opened)
    asked = _asked(workload, main, Metric.named(metric, Path(folder)))
    endpoint = replace(main.endpoint, tiers={name: tier.endpoint for name, tier in opened.items()})
    wanted = Wanted(Budget(**budget), learn_scores)
    policies, found = _with_thresholds(described, endpoint, asked, wanted)
    changed = described.to_json() | {"policies": policies}
    return {"plan": changed, "samples": len(asked.requests), "found": found}


def _with_thresholds(
    plan: ServingPlan, endpoint: Endpoint, asked: Asked, wanted: Wanted
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The policies as JSON, and what was found. From the last to the first: each stands before a full model
    that has those behind it, whose answers and identity are theirs.

    Of several that choose tiers, each has samples of its own: what one found must not depend on those that
    decide on the next, else its test is none.
    """
    chosen, tiers = plan.chosen(), endpoint.tiers
    encoders = {policy.encoder for policy in chosen if isinstance(policy, SemanticCache)}
    cascades = {name: tier for name, tier in tiers.items() if name not in encoders}
    count = sum(isinstance(one, (ConfidenceCascade, ComplexityRouting)) for one in chosen)
    share = wanted.budget.shared_by(count)
    order = np.random.default_rng(1).permutation(len(asked.requests))
    parts = iter(np.array_split(order, max(1, count)))
    policies, found = list[dict[str, Any]](), list[dict[str, Any]]()
    for policy in reversed(chosen):
        if isinstance(policy, (ConfidenceCascade, ComplexityRouting)):
            below, judges = replace(endpoint, tiers=cascades), asked.part(next(parts))
            if isinstance(policy, ComplexityRouting) and wanted.learn_scores and not policy.scores:
                policy, judges = _learned(policy, below, judges)
            record = _threshold(policy, below, judges, share)
            policy = policy.model_copy(update={"calibration": record})
            endpoint = replace(policy.wrap(endpoint), tiers=tiers)
            found.append({"policy": policy.name, **record.model_dump(mode="json")})
        elif isinstance(policy, SemanticCache):
            hits = _hits(policy, endpoint, asked.requests, wanted.budget.confidence)
            policy = policy.model_copy(update={"calibration": hits, "threshold": None})
            found.append({"policy": policy.name, **hits.model_dump(mode="json")})
        elif isinstance(policy, RankingCascade):
            raise InputError(
                "a ranking cascade must be calibrated on queries, each with its candidates",
                "a pipeline's workload has single samples",
                "Call `pareflow.runtime.ranking_calibration.calibrate_ranking`, as bench/ranking.py does",
            )
        policies.append(as_json(policy))
    if not found:
        raise InputError(
            "the plan must have a policy with a threshold",
            f"it has {', '.join(policy.name for policy in chosen) or 'no policy'}",
            "Add `confidence_cascade: {}`, `complexity_routing: {input: …}` or `semantic_cache: {}`",
        )
    return policies[::-1], found[::-1]


def _threshold(
    policy: ConfidenceCascade | ComplexityRouting, below: Endpoint, asked: Asked, budget: Budget
) -> ThresholdCalibration:
    """Raises: CalibrationError; InputError where there is no tier to trust."""
    if not below.tiers:
        raise InputError(
            f"`{policy.name}` needs tiers to choose from",
            "the plan names none that is no encoder",
            "Name them in the plan: `tiers: {small: models:/NAME/VERSION}`, cheapest first",
        )
    require_enough(len(asked.requests), FEWEST)  # before minutes are spent on answers
    answers = _answers(below, asked.requests)
    full = _predictions(asked.main, answers)
    judged = []
    for name, tier in below.tiers.items():
        outputs = _answers(tier, asked.requests)
        right = asked.correct(_predictions(asked.main, outputs), full)
        judged.append(Judged(_scores(policy, name, asked.requests, outputs), right))
    return calibrate_threshold(
        {**{name: tier.identity for name, tier in below.tiers.items()}, FULL: below.identity},
        judged,
        asked.correct(full, full),
        max_drop=budget.max_drop,
        confidence=budget.confidence,
        score=policy.kind_of_score,
        thresholds=LENGTHS if isinstance(policy, ComplexityRouting) and not policy.scores else THRESHOLDS,
    )


def _learned(policy: ComplexityRouting, below: Endpoint, asked: Asked) -> tuple[ComplexityRouting, Asked]:
    """With a score for each tier, and the samples that these have not seen, to calibrate thresholds on."""
    order = np.random.default_rng(0).permutation(len(asked.requests))
    learning, others = np.split(order, [int(LEARNING_SHARE * len(order))])
    require_enough(len(others), FEWEST)
    seen = asked.part(learning)
    full, scores = _predictions(asked.main, _answers(below, seen.requests)), dict[str, SimplicityScore]()
    inputs = [looked_at(feeds, policy.input) for feeds in seen.requests]
    buckets = BUCKETS if inputs[0].dtype.kind in "iu" else 0
    for name, tier in below.tiers.items():
        predictions = _predictions(asked.main, _answers(tier, seen.requests))
        scores[name] = train_score(inputs, seen.correct(predictions, full), buckets)
    return policy.model_copy(update={"scores": scores}), asked.part(others)


def _scores(
    policy: ConfidenceCascade | ComplexityRouting,
    tier: str,
    requests: Sequence[Arrays],
    outputs: Sequence[Arrays],
) -> np.ndarray:
    """What the policy holds against its threshold, per sample."""
    if isinstance(policy, ConfidenceCascade):
        return np.concatenate([confidence(one, policy.output, policy.measure) for one in outputs])
    score = policy.scores.get(tier)
    return np.concatenate([simplicity(feeds, policy.input, score) for feeds in requests])


def _hits(policy: SemanticCache, below: Endpoint, requests: Sequence[Arrays], sure: float) -> HitCalibration:
    """Raises: CalibrationError where no threshold keeps the policy's limit."""
    kept, asked = np.split(
        np.random.default_rng(0).permutation(len(requests)), [int(KEPT_SHARE * len(requests))]
    )
    require_enough(len(asked), FEWEST)
    old, new = ([requests[i] for i in rows] for rows in (kept, asked))
    scores, agree, held = asyncio.run(pairs(policy, below, old, new))
    found = calibrate(scores, agree, policy.max_false_hits, sure)
    if found.threshold is None:
        raise CalibrationError(
            f"at most {policy.max_false_hits:g} of the hits may be false, with confidence {sure:g}",
            f"no threshold shows it: {found.reason}",
            "Give more samples, a better encoder or a larger `max_false_hits`, or serve without it",
        )
    encoder = {} if policy.encoder is None else {policy.encoder: below.tiers[policy.encoder].identity}
    return HitCalibration(
        variants={**encoder, FULL: below.identity},
        score=policy.kind_of_score,
        settings=policy.deciding,
        threshold=found.threshold,
        max_false_hits=policy.max_false_hits,
        confidence=sure,
        pairs=found.pairs,
        hits=found.hits,
        false_hits=found.false_hits,
        held_answers=held.answers,
        held_kinds=held.kinds,
    )


def _asked(workload: LoadedWorkload, main: Executable, metric: Metric) -> Asked:
    """Every held-out sample as a request of its own. Raises: CalibrationError."""
    if not metric.share_correct:
        raise CalibrationError(
            "thresholds are calibrated on answers that are right or wrong",
            f"`{metric.name}` is no share of right answers",
            "Serve it without tiers, or name a metric such as `accuracy` in the pipeline",
        )
    splits = [workload.split(name) for name in HELD_OUT]
    labelled = metric.against is None and all(split.targets is not None for split in splits)
    targets = np.concatenate([split.labels() for split in splits]) if labelled else None
    requests = [main.model.preprocess(_one(split, i)) for split in splits for i in range(len(split))]
    return Asked(requests, targets, main)


def _one(split: Split, i: int) -> Samples:
    return split.take(np.array([i])).samples


def _answers(endpoint: Endpoint, requests: Sequence[Arrays]) -> list[Arrays]:
    async def each() -> list[Arrays]:
        return [await endpoint.answer(feeds) for feeds in requests]

    return asyncio.run(each())


def _predictions(main: Executable, outputs: Sequence[Arrays]) -> np.ndarray:
    return np.concatenate([main.model.postprocess(one) for one in outputs])


def as_json(policy: Policy) -> dict[str, Any]:
    """A policy as a plan names it."""
    return {policy.name: policy.model_dump(mode="json", exclude_defaults=True)}


def _check_batches(plan: ServingPlan, releases: Mapping[str, Release]) -> None:
    """Raises: InputError where versions would answer otherwise than while they are calibrated, each alone."""
    if beyond := beyond_judged(plan, releases):
        raise InputError(
            "where answers depend on the samples beside them, a plan with thresholds must make no larger "
            "batches than its versions were judged in",
            "; ".join(beyond),
            "Lower `max_batch_size` to the smallest of these, or leave `dynamic_batching` out",
        )


def _check_data(executable: Executable, workload: LoadedWorkload) -> None:
    """Raises: InputError where a version was made with other data, which may have held these samples."""
    was = executable.model.document.get("data_digest")
    if was != workload.data_digest:
        release = executable.release
        raise InputError(
            f"version {release.version} of {release.name} must have been made with the pipeline's data",
            "it was made with other data, and may have been trained on what is held out now",
            "Name the pipeline YAML that it came from with --config, or optimize again",
        )
