"""The promotion gate: every clause by hand, and the intervals it rests on."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from pydantic import ValidationError

from pareflow.measurement import Interval, Measurement, Quality
from pareflow.sla import SLA, Evidence, Verdict, drop_interval, judge, throughput_interval, value_interval

Build = Callable[..., Measurement]
Score = Callable[..., Quality]


def pairs(scored: Score, both: int, lost: int, won: int, neither: int = 0) -> tuple[Quality, Quality]:
    """The original and the candidate, with this many samples of each kind."""
    before = [1] * both + [1] * lost + [0] * won + [0] * neither
    after = [1] * both + [0] * lost + [1] * won + [0] * neither
    return scored(before, variant="original"), scored(after)


def test_drop_of_paired_scores_is_agresti_and_mins(scored: Score) -> None:
    """100 pairs, 6 lost, 2 won: (6.5 - 2.5)/102 = 0.0392157, standard error 0.0291543, z = 1.6448536."""
    found = drop_interval(*pairs(scored, 90, 6, 2, 2), 0.95)
    assert found is not None
    assert found.estimate == pytest.approx(0.04)
    assert (found.low, found.high) == pytest.approx((-0.0087389, 0.0871703), abs=1e-7)


def test_drop_of_another_metric_is_a_percentile_of_paired_replicates(scored: Score) -> None:
    """Drops 0.00, 0.01, …, 0.20: the 5 % and 95 % percentiles are 0.01 and 0.19."""
    drops = [i / 100 for i in range(21)]
    original = replace(scored([1], metric="f1"), scores=None, value=0.9, replicates=(0.9,) * 21)
    candidate = replace(original, value=0.8, replicates=tuple(0.9 - drop for drop in drops))
    found = drop_interval(original, candidate, 0.95)
    assert found is not None
    assert (found.estimate, found.low, found.high) == pytest.approx((0.1, 0.01, 0.19))


@pytest.mark.parametrize(
    "changes", [{"split_digest": "others"}, {"metric": "f1"}], ids=["other samples", "other metric"]
)
def test_drop_refuses_what_cannot_be_paired(scored: Score, changes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="same samples and metric"):
        drop_interval(scored([1]), scored([1], **changes), 0.95)


def test_share_has_wilsons_interval(scored: Score) -> None:
    """90 of 100 at 95 % on each side, z = 1.6448536: centre 0.8894629, half width 0.0498184."""
    found = value_interval(scored([1] * 90 + [0] * 10), 0.95)
    assert (found.estimate, found.low, found.high) == pytest.approx((0.9, 0.8396445, 0.9392813), abs=1e-7)


def test_throughput_has_students_interval_over_blocks(measured: Build) -> None:
    """2000 and 1000 per second: mean 1500, standard error 500, t(0.95, 1) = 6.313752."""
    found = throughput_interval(measured([2, 2], [4, 4], batch_size=4), 0.95)
    assert (found.estimate, found.low, found.high) == pytest.approx((1500, -1656.876, 4656.876))


def test_throughput_of_one_block_has_no_bounds(measured: Build) -> None:
    found = throughput_interval(measured([2, 2]), 0.95)
    assert (found.estimate, found.low, found.high) == (500, None, None)


@dataclass(frozen=True)
class Case:
    clause: str
    limit: float
    decision: str
    ms: float = 1.0
    count: int = 20
    lost: int = 0
    peak_memory_mib: float | None = 50.0

    def __str__(self) -> str:
        return f"{self.clause} {self.limit:g} {self.decision}"


CASES = [
    Case("quality.max_drop", 0.02, "promote"),
    Case("quality.max_drop", 0.02, "inconclusive", lost=8),
    Case("quality.max_drop", 0.02, "reject", lost=40),
    Case("quality.min", 0.9, "promote"),
    Case("quality.min", 0.9, "inconclusive", lost=40),
    Case("quality.min", 0.9, "reject", lost=80),
    Case("latency.p50_ms", 2, "promote"),
    Case("latency.p50_ms", 2, "inconclusive", count=4),
    Case("latency.p50_ms", 2, "reject", ms=3),
    Case("latency.p99_ms", 2, "promote", count=299),
    Case("latency.p99_ms", 2, "inconclusive", count=298),
    Case("latency.p99_ms", 2, "reject", ms=3, count=299),
    Case("throughput.min_per_s", 900, "promote"),
    Case("throughput.min_per_s", 900, "inconclusive", count=1),
    Case("throughput.min_per_s", 900, "reject", ms=3),
    Case("size.max_mib", 1, "promote"),
    Case("size.max_mib", 0.9, "reject"),
    Case("memory.max_mib", 50, "promote"),
    Case("memory.max_mib", 50, "inconclusive", peak_memory_mib=None),
    Case("memory.max_mib", 49, "reject"),
    Case("energy.max_j", 1, "inconclusive"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_clause_is_decided_by_its_interval(
    case: Case, good: Evidence, measured: Build, scored: Score
) -> None:
    family, name = case.clause.split(".")
    blocks = [[case.ms]] * case.count
    original, candidate = pairs(scored, 400 - case.lost, case.lost, 0)
    evidence = replace(
        good,
        measurement=measured(*blocks, peak_memory_mib=case.peak_memory_mib),
        original=original,
        quality=candidate,
    )
    verdict = judge(SLA.model_validate({family: {name: case.limit}}), evidence)
    check, harm = verdict.checks
    assert (check.clause, check.limit, check.decision) == (case.clause, case.limit, case.decision)
    assert (harm.clause, harm.decision) == ("do_no_harm", "promote")
    assert verdict.decision == case.decision


@pytest.mark.parametrize(
    ("low", "high", "reason"),
    [
        (1.1, 1.3, "1.1 is at least 1, at 95% confidence"),
        (0.7, 0.9, "0.9 is not at least 1, at 95% confidence"),
        (0.9, 1.3, "the limit 1 lies inside the interval; 12 samples cannot tell"),
        (None, None, "12 samples give no bound on it; more are needed"),
    ],
    ids=["promote", "reject", "inconclusive", "no bound"],
)
def test_reason_names_the_bound_that_decided(
    good: Evidence, low: float | None, high: float | None, reason: str
) -> None:
    evidence = replace(good, gain=Interval(1.0, low, high, samples=12))
    harm = judge(SLA.model_validate({"size": {"max_mib": 5}}), evidence).checks[-1]
    assert harm.reason == reason


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"latency": {"batch_size": 4}},
        {"quality": {"metric": "accuracy"}},
        {"latency": {"p99_ms": float("nan")}},
        {"latency": {"p99_ms": float("inf")}},
        {"latency": {"p99_ms": 0}},
        {"quality": {"max_drop": 1}},
        {"size": {"max_mb": 3}},
        {"size": {"max_mib": 3}, "confidence": 0.5},
    ],
    ids=str,
)
def test_sla_that_promises_nothing_or_nonsense_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SLA.model_validate(document)


def test_clauses_are_named_with_their_limits() -> None:
    sla = SLA.model_validate(
        {
            "quality": {"max_drop": 0, "metric": "accuracy"},
            "latency": {"p50_ms": 1, "p99_ms": 5, "batch_size": 8},
        }
    )
    assert sla.clauses() == {"quality.max_drop": 0, "latency.p50_ms": 1, "latency.p99_ms": 5}
    assert sla.batch_size == 8


def test_verdict_comes_back_from_json(good: Evidence) -> None:
    verdict = judge(SLA.model_validate({"size": {"max_mib": 5}, "energy": {"max_j": 1}}), good)
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict
