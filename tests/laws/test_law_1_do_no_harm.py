"""Law 1: what is slower or worse than the original or its plain export is never promoted."""

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pareflow.gate import Evidence, judge
from pareflow.measurement import Measurement, Quality
from pareflow.sla import SLA, Objective

ANYTHING_GOES = SLA.model_validate({"latency": {"p50_ms": 1e9}})


@given(st.floats(1.01, 100), st.integers(5, 30))
def test_slower_than_the_strong_baseline_is_rejected(
    measured: Callable[..., Measurement], good: Evidence, factor: float, blocks: int
) -> None:
    baseline = measured(*[[1.0, 1.1, 1.2]] * blocks, variant="baseline")
    slower = measured(*[[factor, 1.1 * factor, 1.2 * factor]] * blocks)
    evidence = replace(good, measurement=slower, baseline=baseline)
    verdict = judge(ANYTHING_GOES, evidence)
    assert [check.decision for check in verdict.checks] == ["promote", "promote", "reject"]
    assert verdict.decision == "reject"


@given(st.integers(0, 4))
def test_too_few_blocks_to_tell_are_no_gain(
    measured: Callable[..., Measurement], good: Evidence, blocks: int
) -> None:
    """Twice as fast in each of four blocks still leaves the median ratio without a bound."""
    baseline, faster = measured(*[[2.0]] * blocks, variant="baseline"), measured(*[[1.0]] * blocks)
    verdict = judge(ANYTHING_GOES, replace(good, measurement=faster, baseline=baseline))
    assert verdict.decision == "inconclusive"


def test_worse_than_the_original_is_rejected_however_fast(
    good: Evidence, scored: Callable[..., Quality]
) -> None:
    worse = replace(good, quality=scored([1] * 300 + [0] * 100))
    sla = SLA.model_validate({"quality": {"max_drop": 0.01}})
    assert judge(sla, worse).decision == "reject"


def test_surely_worse_than_the_original_is_harm_where_the_sla_says_nothing_of_quality(
    good: Evidence, scored: Callable[..., Quality]
) -> None:
    """Three quarters of 400 right where all were; two lost, which may be chance; nothing measured."""
    worse, unsure = scored([1] * 300 + [0] * 100), scored([1] * 398 + [0] * 2)
    found = [judge(ANYTHING_GOES, replace(good, quality=one)) for one in (worse, unsure, None)]
    assert [verdict.decision for verdict in found] == ["reject", "promote", "inconclusive"]
    clause, limit, reason = (getattr(found[0].checks[1], name) for name in ("clause", "limit", "reason"))
    assert (clause, limit) == ("quality.harm", 0.0)
    assert "worse than the original" in reason
    assert reason.endswith("`quality: {max_drop: …}` in the SLA states a limit")


@pytest.mark.parametrize("among", [1, 7])
def test_harm_to_quality_is_no_smaller_for_there_being_more_finalists(
    good: Evidence, scored: Callable[..., Quality], among: int
) -> None:
    """30 of 1000 lost and 15 won are 15 / √45 = 2.24 standard errors: more than the 1.645 of the whole error,
    less than the 2.45 of a seventh."""
    original = scored([1] * 985 + [0] * 15, variant="original")
    worse = scored([1] * 955 + [0] * 30 + [1] * 15)
    verdict = judge(ANYTHING_GOES, replace(good, original=original, quality=worse), among=among)
    assert (verdict.checks[1].clause, verdict.decision) == ("quality.harm", "reject")


@pytest.mark.parametrize("clause", [{"max_drop": 0.01}, {"worst_slice_max_drop": 0.01}, None], ids=str)
def test_the_original_has_lost_nothing_beside_itself(
    good: Evidence, scored: Callable[..., Quality], clause: dict[str, float] | None
) -> None:
    """Of what answers 30 samples as the original does unseen inputs may lose 10 %; of the original, none."""
    rare = scored([1] * 14 + [0], variant="original")
    original = replace(scored([1] * 28 + [0] * 2, variant="original"), slices={"rare": rare, "other": rare})
    other = replace(rare, variant="candidate")
    alike = replace(original, variant="candidate", slices={"rare": other, "other": other})
    sla = ANYTHING_GOES if clause is None else SLA.model_validate({"quality": clause, "size": {"max_mib": 5}})
    found = {
        quality.variant: [
            check
            for check in judge(sla, replace(good, original=original, quality=quality)).checks
            if check.clause.startswith("quality.")
        ]
        for quality in (original, alike)
    }
    (itself,), (another,) = found["original"], found["candidate"]
    assert (itself.estimate, itself.low, itself.high, itself.decision) == (0.0, 0.0, 0.0, "promote")
    assert itself.samples == (15 if clause == {"worst_slice_max_drop": 0.01} else 30)
    assert another.decision == ("promote" if clause is None else "inconclusive")


def test_an_original_that_is_no_number_is_in_doubt_beside_itself_too(
    good: Evidence, scored: Callable[..., Quality]
) -> None:
    broken = replace(scored([1] * 30, variant="original"), value=float("nan"), scores=None)
    verdict = judge(ANYTHING_GOES, replace(good, original=broken, quality=broken))
    assert (verdict.checks[1].clause, verdict.decision) == ("quality.harm", "inconclusive")


def test_a_limit_of_quality_that_is_stated_is_the_only_one(
    good: Evidence, scored: Callable[..., Quality]
) -> None:
    sla = SLA.model_validate({"quality": {"max_drop": 0.5}})
    assert judge(sla, replace(good, quality=scored([1] * 300 + [0] * 100))).decision == "promote"


def test_strong_baseline_competes_and_may_win(measured: Callable[..., Measurement], good: Evidence) -> None:
    baseline = measured(*[[1.0, 3.0]] * 20, variant="baseline")
    for objective in get_args(Objective):
        evidence = replace(good, objective=objective, measurement=baseline, baseline=baseline)
        assert judge(ANYTHING_GOES, evidence).decision == "promote"


def test_larger_than_the_strong_baseline_is_rejected_where_size_is_the_objective(
    measured: Callable[..., Measurement], good: Evidence
) -> None:
    baseline = measured(*[[1.0]] * 20, variant="baseline", size_mib=2.0)
    larger = measured(*[[1.0]] * 20, size_mib=2.5)
    evidence = replace(good, objective="size", measurement=larger, baseline=baseline)
    verdict = judge(ANYTHING_GOES, evidence)
    assert (verdict.decision, verdict.checks[-1].estimate) == ("reject", 0.8)


@pytest.mark.parametrize(("mib", "decision"), [(49.9, "reject"), (49.0, "promote")])
def test_less_memory_by_no_more_than_noise_is_no_gain(
    measured: Callable[..., Measurement], good: Evidence, mib: float, decision: str
) -> None:
    """Of 50 MiB 0.1 less, and 1: peak memory is measured once, and no interval tells noise apart."""
    baseline = measured(*[[1.0]] * 20, variant="baseline", peak_memory_mib=50.0)
    ours = measured(*[[1.0]] * 20, peak_memory_mib=mib)
    evidence = replace(good, objective="peak_memory", measurement=ours, baseline=baseline)
    check = judge(ANYTHING_GOES, evidence).checks[-1]
    assert (check.limit, check.decision) == (1.01, decision)
    assert check.reason.endswith(" at least 1.01, measured once")


def test_pauses_that_no_median_shows_are_no_gain_of_throughput(
    measured: Callable[..., Measurement], good: Evidence
) -> None:
    """5 % faster, but for one pause of 20 ms in every third block: 150 requests in 182.5 ms, not in 150."""
    calm = [[0.95] * 25] * 2
    baseline = measured(*[[1.0] * 25] * 60, variant="baseline", blocks_per_load=6)
    paused = measured(*[*calm, [0.95] * 24 + [20.95]] * 20, blocks_per_load=6)
    evidence = replace(good, objective="throughput", measurement=paused, baseline=baseline)
    check = judge(ANYTHING_GOES, evidence).checks[-1]
    assert check.estimate == pytest.approx(150 / 182.5)
    assert (check.decision, check.samples) == ("reject", 10)
