"""The promotion gate: every clause by hand, and the intervals it rests on."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from pydantic import ValidationError

from pareflow.gate import (
    Evidence,
    Verdict,
    drop_interval,
    judge,
    judge_all,
    throughput_interval,
    value_interval,
    worst_slice_drop,
)
from pareflow.intervals import paired_share_drop, share_interval
from pareflow.measurement import Measurement, Quality
from pareflow.sla import SLA, QualityClause

Build = Callable[..., Measurement]
Score = Callable[..., Quality]


def pairs(scored: Score, both: int, lost: int, won: int, neither: int = 0) -> tuple[Quality, Quality]:
    """The original and the candidate, with this many samples of each kind."""
    before = [1] * both + [1] * lost + [0] * won + [0] * neither
    after = [1] * both + [0] * lost + [1] * won + [0] * neither
    return scored(before, variant="original"), scored(after)


def test_drop_of_paired_scores_counts_lost_and_won(scored: Score) -> None:
    """100 pairs, 6 lost, 2 won: the score interval of test_intervals."""
    found = drop_interval(*pairs(scored, 90, 6, 2, 2), 0.95)
    assert found == paired_share_drop(6, 2, 100, 0.95)


def bootstrapped(scored: Score, value: float, replicates: Sequence[float], **changes: Any) -> Quality:
    """Another metric than a share of correct answers, with a jackknife that is not skewed."""
    plain = scored([1], metric="f1")
    fields = {"value": value, "replicates": tuple(replicates), "jackknife": (value,) * 4, "scores": None}
    return replace(plain, samples=50, **{**fields, **changes})


def test_drop_of_another_metric_is_bca_of_paired_replicates(scored: Score) -> None:
    """Drops 0.00 to 0.20 around 0.10, no bias, no skew: percentiles of Student's t of 50 samples, which is
    1.6766 times the root of 50/49: 4.52 % and 95.48 % instead of 5 and 95.
    """
    drops = [i / 100 for i in range(21)]
    original = bootstrapped(scored, 0.9, (0.9,) * 21, variant="original")
    candidate = bootstrapped(scored, 0.8, [0.9 - drop for drop in drops])
    found = drop_interval(original, candidate, 0.95)
    assert found is not None
    assert (found.estimate, found.low, found.high) == pytest.approx((0.1, 0.00903, 0.19097), abs=1e-5)


def test_drop_of_an_error_is_its_rise(scored: Score) -> None:
    error: dict[str, Any] = {"higher_is_better": False}
    original = bootstrapped(scored, 2.0, (2.0,) * 21, variant="original", **error)
    candidate = bootstrapped(scored, 2.5, [2.4 + i / 100 for i in range(21)], **error)
    found = drop_interval(original, candidate, 0.95)
    assert found is not None
    assert (found.estimate, found.low, found.high) == pytest.approx((0.5, 0.40903, 0.59097), abs=1e-5)


def sliced(scored: Score, variant: str, **slices: Sequence[int]) -> Quality:
    parts = {name: scored(scores, variant=variant) for name, scores in slices.items()}
    return replace(scored([one for part in slices.values() for one in part], variant=variant), slices=parts)


def test_worst_slice_is_the_one_that_lost_most(scored: Score) -> None:
    """One class of two loses 10 of 100, which the whole of 1000 hides."""
    original = sliced(scored, "original", rare=[1] * 100, common=[1] * 900)
    candidate = sliced(scored, "candidate", rare=[1] * 90 + [0] * 10, common=[1] * 900)
    found = worst_slice_drop(original, candidate, 0.95)
    assert found is not None
    assert (found.estimate, found.samples) == (0.1, 100)
    assert found.high == paired_share_drop(10, 0, 100, 0.95).high
    assert found.low == paired_share_drop(10, 0, 100, 0.975).low


def test_worst_slice_without_slices_is_not_measured(scored: Score) -> None:
    assert worst_slice_drop(scored([1]), scored([1]), 0.95) is None


@pytest.mark.parametrize(
    "changes", [{"split_digest": "others"}, {"metric": "f1"}], ids=["other samples", "other metric"]
)
def test_drop_refuses_what_cannot_be_paired(scored: Score, changes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="same samples and metric"):
        drop_interval(scored([1]), scored([1], **changes), 0.95)


def test_throughput_is_the_mean_over_loads(measured: Build) -> None:
    """Batches of four in 2 ms, once in 8: 2000 per second, once 500.

    In logarithms to base 2, below 2000, that is 0, 0, 0, 0, -2: mean -0.4, deviation 0.8944, t = 2.1318.
    """
    found = throughput_interval(measured(*[[2, 2]] * 4, [8, 8], batch_size=4), 0.95)
    expected = [2000 * 2**power for power in (-0.4, -0.4 - 2.1318 * 0.4, -0.4 + 2.1318 * 0.4)]
    assert [found.estimate, found.low, found.high] == pytest.approx(expected, rel=1e-4)


def test_throughput_of_one_load_has_no_bounds(measured: Build) -> None:
    found = throughput_interval(measured([2, 2]), 0.95)
    assert (found.low, found.high) == (None, None)
    assert found.estimate == pytest.approx(500)


def test_value_of_a_share_is_exact_and_of_another_metric_bca(scored: Score) -> None:
    assert value_interval(scored([1] * 90 + [0] * 10), 0.95) == share_interval(90, 100, 0.95)
    other = value_interval(bootstrapped(scored, 0.1, [i / 100 for i in range(21)]), 0.95)
    assert (other.low, other.high) == pytest.approx((0.00903, 0.19097), abs=1e-5)


@dataclass(frozen=True)
class Case:
    clause: str
    limit: float
    decision: str
    ms: float = 1.0
    count: int = 20
    lost: int = 0
    peak_memory_mib: float | None = 50.0
    energy_j: float | None = None
    slow: float = 1.0

    def __str__(self) -> str:
        return f"{self.clause} {self.limit:g} {self.decision}"


CASES = [
    Case("quality.max_drop", 0.02, "promote"),
    Case("quality.max_drop", 0.02, "inconclusive", lost=6),
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
    Case("energy.max_j", 1, "promote", energy_j=0.9),
    Case("energy.max_j", 1, "reject", energy_j=1.1),
    Case("energy.max_w", 1000, "inconclusive"),
    Case("energy.max_w", 1000, "promote", energy_j=0.9),  # 0.9 J in 1 ms
    Case("energy.max_w", 1000, "reject", energy_j=1.1),
    Case("latency.p99_over_p50", 2, "promote", slow=1.5),
    Case("latency.p99_over_p50", 2, "inconclusive", count=4),
    Case("latency.p99_over_p50", 2, "reject", slow=3),
    Case("quality.max", 0.99, "reject"),
    Case("quality.max", 0.99, "promote", lost=20),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_clause_is_decided_by_its_interval(
    case: Case, good: Evidence, measured: Build, scored: Score
) -> None:
    family, name = case.clause.split(".")
    blocks = [[case.ms]] * case.count if case.slow == 1 else [[case.ms] * 19 + [case.slow]] * 20
    original, candidate = pairs(scored, 400 - case.lost, case.lost, 0)
    ours = measured(*blocks, peak_memory_mib=case.peak_memory_mib, energy_j=case.energy_j)
    evidence = replace(good, measurement=ours, baseline=ours, original=original, quality=candidate)
    verdict = judge(SLA.model_validate({family: {name: case.limit}}), evidence)
    check, *_, harm = verdict.checks
    assert (check.clause, check.limit, check.decision) == (case.clause, case.limit, case.decision)
    assert (harm.clause, harm.decision) == ("do_no_harm", "promote")
    assert verdict.decision == case.decision


def test_load_is_judged_by_what_was_served(good: Evidence, measured: Build) -> None:
    sla = SLA.model_validate({"load": {"per_s": 100, "p99_ms": 5}})
    verdicts = {
        served: judge(sla, replace(good, served=measured([served] * 400, load="Server 100/s"))).decision
        for served in (4.0, 6.0)
    }
    assert verdicts == {4.0: "promote", 6.0: "reject"}
    assert judge(sla, good).checks[0].reason == "not measured"


@pytest.mark.parametrize(
    ("ms", "reason"),
    [
        ([2.0] * 12, "2 is at least 1, at 0.95 confidence"),
        ([0.5] * 12, "0.5 is not at least 1, at 0.95 confidence"),
        (
            [0.5] * 4 + [2.0] * 8,
            "the limit 1 lies inside the interval; 12 loads cannot tell, about 14 more could",
        ),
        ([2.0], "1 loads give no bound on it; more are needed"),
    ],
    ids=["promote", "reject", "inconclusive", "no bound"],
)
def test_reason_names_the_bound_that_decided(
    good: Evidence, measured: Build, ms: list[float], reason: str
) -> None:
    """The baseline's blocks take `ms`, the candidate's 1 ms."""
    evidence = replace(
        good,
        baseline=measured(*[[each] for each in ms], variant="baseline"),
        measurement=measured(*[[1.0]] * len(ms)),
    )
    harm = judge(SLA.model_validate({"size": {"max_mib": 5}}), evidence).checks[-1]
    assert harm.reason == reason


@pytest.mark.parametrize(
    ("clause", "reason"),
    [
        ({"size": {"max_mib": 2}}, "1 is at most 2"),
        ({"memory": {"max_mib": 40}}, "50 is not at most 40, measured once"),
        ({"energy": {"max_j": 2}}, "1.5 is at most 2, measured once"),
        ({"energy": {"max_w": 2000}}, "1500 is at most 2000, measured once"),
        ({"latency": {"p50_ms": 2}}, "1 is at most 2, at 0.95 confidence"),
    ],
    ids=["size", "memory", "energy", "power", "sampled"],
)
def test_one_value_claims_no_confidence(
    good: Evidence, measured: Build, clause: dict[str, Any], reason: str
) -> None:
    """A size is read off the files; peak memory and energy vary, and are measured once."""
    evidence = replace(good, measurement=measured(*[[1.0] * 20] * 20, energy_j=1.5))
    assert judge(SLA.model_validate(clause), evidence).checks[0].reason == reason


def test_more_samples_are_as_many_as_would_move_the_limit_out(good: Evidence, scored: Score) -> None:
    """Estimate 0.9, bound 0.8666, limit 0.88: the distance is 0.6 of the half width, so (1/0.6)² as many."""
    evidence = replace(good, quality=scored([1] * 270 + [0] * 30))
    check = judge(SLA.model_validate({"quality": {"min": 0.88}}), evidence).checks[0]
    assert check.low is not None
    assert check.more_samples == pytest.approx(300 * (((0.9 - check.low) / 0.02) ** 2 - 1), abs=1)


@pytest.mark.parametrize(
    ("limits", "more"),
    [({"max_drop": 0.01}, 199), ({"max_drop": 0.001}, 2895), ({"min": 0.99}, 199)],
    ids=str,
)
def test_where_none_was_lost_more_samples_are_as_many_as_bound_what_is_unseen(
    good: Evidence, scored: Score, limits: dict[str, float], more: int
) -> None:
    """100 of 299, since 0.99^299 is the first below 5 %; of 2995 for a thousandth."""
    original, candidate = pairs(scored, 100, 0, 0)
    evidence = replace(good, original=original, quality=candidate)
    check = judge(SLA.model_validate({"quality": limits}), evidence).checks[0]
    assert (check.decision, check.more_samples) == ("inconclusive", more)


def test_too_few_for_a_p99_says_how_many_are_lacking(good: Evidence, measured: Build) -> None:
    evidence = replace(good, measurement=measured(*[[1.0]] * 200), baseline=measured(*[[2.0]] * 200))
    check = judge(SLA.model_validate({"latency": {"p99_ms": 2}}), evidence).checks[0]
    assert (check.decision, check.more_samples) == ("inconclusive", 99)


def test_looking_again_spends_the_error_bit_by_bit(good: Evidence) -> None:
    """Half of 5 % at the first look, a sixth at the second; quality is looked at once."""
    sla = SLA.model_validate({"latency": {"p50_ms": 2}, "quality": {"max_drop": 0.1}})
    found = [
        [c.confidence for c in judge(sla, good, look=look).checks if c.clause != "do_no_harm"]
        for look in (None, 1, 2)
    ]
    assert found == [
        pytest.approx([0.95, 0.95]),
        pytest.approx([0.95, 0.975]),
        pytest.approx([0.95, 1 - 0.05 / 6]),
    ]


def test_looks_spend_no_more_than_the_error() -> None:
    assert sum(1 / (look * (look + 1)) for look in range(1, 10**5)) < 1


def losers(scored: Score, good: Evidence, *lost: int) -> list[Evidence]:
    """Finalists that lost this many of 1000 samples."""
    original = scored([1] * 1000, variant="original")
    return [
        replace(
            good,
            variant=str(n),
            quality=scored([1] * (1000 - n) + [0] * n, variant=str(n)),
            original=original,
        )
        for n in lost
    ]


def test_finalists_share_the_error_by_holms_steps(good: Evidence, scored: Score) -> None:
    """Upper bounds on the drop of 3, 4 and 20 lost in 1000, at one third, one half and all of the error.

    The first two pass at a third of the error, so that the third is judged at all of it.
    """
    sla = SLA.model_validate({"quality": {"max_drop": 0.02}})
    verdicts = judge_all(sla, losers(scored, good, 3, 20, 4))
    assert [verdict.decision for verdict in verdicts] == ["promote", "inconclusive", "promote"]
    assert [verdict.checks[0].confidence for verdict in verdicts] == pytest.approx(
        [1 - 0.05 / 3, 0.95, 1 - 0.05 / 3]
    )


def test_what_is_judged_at_another_time_shares_the_error_to_the_end(good: Evidence, scored: Score) -> None:
    """As above, among one more, which is never set aside: a quarter of the error, then a half."""
    sla = SLA.model_validate({"quality": {"max_drop": 0.02}})
    verdicts = judge_all(sla, losers(scored, good, 3, 20, 4), others=1)
    assert [verdict.decision for verdict in verdicts] == ["promote", "inconclusive", "promote"]
    assert [verdict.checks[0].confidence for verdict in verdicts] == pytest.approx(
        [1 - 0.05 / 4, 1 - 0.05 / 2, 1 - 0.05 / 4]
    )


def test_what_passes_alone_may_fail_among_many(good: Evidence, scored: Score) -> None:
    sla = SLA.model_validate({"quality": {"max_drop": 0.02}})
    (alone,) = judge_all(sla, losers(scored, good, 12))
    among = judge_all(sla, losers(scored, good, 12, *[30] * 9))[0]
    assert (alone.decision, among.decision) == ("promote", "inconclusive")


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"latency": {"batch_size": 4}},
        {"quality": {"metric": "accuracy"}},
        {"latency": {"p99_ms": float("nan")}},
        {"latency": {"p99_ms": float("inf")}},
        {"latency": {"p99_ms": 0}},
        {"quality": {"max_drop": -0.1}},
        {"load": {"per_s": 100}},
        {"latency": {"p99_over_p50": 0.9}},
        {"size": {"max_mb": 3}},
        {"size": {"max_mib": 3}, "confidence": 0.5},
    ],
    ids=str,
)
def test_sla_that_promises_nothing_or_nonsense_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SLA.model_validate(document)


@pytest.mark.parametrize(
    ("limits", "scale", "said"),
    [
        pytest.param({"max_drop": 1}, (0, 1), ["max_drop"], id="one per cent, meant"),
        pytest.param({"worst_slice_max_drop": 5}, (0, 1), ["worst_slice_max_drop"], id="five on a slice"),
        pytest.param({"min": 95, "max_drop": 2}, (0, 1), ["max_drop", "min"], id="both are told"),
        pytest.param({"min": 1}, (0, 1), ["min"], id="nothing proves that none is wrong"),
        pytest.param({"min": 0}, (0, 1), ["min"], id="none is below"),
        pytest.param({"min": -0.5}, (-1, 1), [], id="a correlation may be negative"),
        pytest.param({"max": 1}, (-1, 1), ["max"], id="every error is as small"),
        pytest.param({"max_drop": 0.99, "min": 0.95}, (0, 1), [], id="shares"),
        pytest.param({"max_drop": 1}, (-1, 1), [], id="half of a wider scale"),
    ],
)
def test_limit_must_lie_on_the_metrics_scale(
    limits: dict[str, float], scale: tuple[float, float], said: list[str]
) -> None:
    problems = QualityClause.model_validate(limits).problems("accuracy", scale)
    assert [problem.split(":")[0] for problem in problems] == [f"sla.quality.{name}" for name in said]
    assert all("0.01" in problem for problem in problems)


@pytest.mark.parametrize(
    ("limit", "higher_is_better", "way_out"),
    [
        pytest.param("min", True, None, id="a share of at least"),
        pytest.param("max", False, None, id="an error of at most"),
        pytest.param("max", True, "write `min`", id="a share of at most"),
        pytest.param("min", False, "write `max`", id="an error of at least"),
    ],
)
def test_limit_that_the_worst_would_meet_is_told(
    limit: str, higher_is_better: bool, way_out: str | None
) -> None:
    clause = QualityClause.model_validate({limit: 0.5, "max_drop": 0.1})
    problems = clause.wrong_way("metric", higher_is_better=higher_is_better)
    assert all(f"sla.quality.{limit}: " in problem and str(way_out) in problem for problem in problems)
    assert len(problems) == (way_out is not None)


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


def test_what_a_newer_pareflow_says_in_a_verdict_is_left_out(good: Evidence) -> None:
    verdict = judge(SLA.model_validate({"size": {"max_mib": 5}}), good)
    document = verdict.to_json()
    newer = {**document, "new": 1, "checks": [{**check, "new": 1} for check in document["checks"]]}
    assert Verdict.from_json(newer) == verdict


@pytest.mark.parametrize(
    ("baseline_ms", "least_gain", "decision"),
    [(0.98, 1.0, "reject"), (0.98, 0.95, "promote"), (0.90, 0.95, "reject"), (1.0, 1.0, "promote")],
)
def test_harm_within_a_stated_margin_is_none(
    good: Evidence, measured: Build, baseline_ms: float, least_gain: float, decision: str
) -> None:
    """1 ms against the baseline's: a gain of 0.98, 0.90 or 1, without scatter."""
    evidence = replace(good, baseline=measured(*[[baseline_ms] * 20] * 20, variant="baseline"))
    sla = SLA.model_validate({"size": {"max_mib": 10}})
    *_, harm = judge(sla, evidence, least_gain=least_gain).checks
    assert (harm.clause, harm.limit, harm.decision) == ("do_no_harm", least_gain, decision)
    assert harm.estimate == pytest.approx(baseline_ms)
