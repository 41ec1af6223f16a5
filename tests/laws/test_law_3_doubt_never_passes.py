"""Law 3: what is missing, NaN, failed or inconclusive is not a pass; and better is never judged worse."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pareflow.gate import Evidence, judge, judge_all
from pareflow.measurement import Measurement, Quality
from pareflow.sla import SLA

NAN, INFINITY = float("nan"), float("inf")
EVERYTHING = SLA.model_validate(
    {
        "quality": {"max_drop": 0.05, "min": 0.5},
        "latency": {"p50_ms": 100, "p99_ms": 200},
        "throughput": {"min_per_s": 1},
        "size": {"max_mib": 10},
        "memory": {"max_mib": 100},
    }
)
ANY_SIZE = SLA.model_validate({"size": {"max_mib": 10}})
latencies = st.floats(0.01, 500)


def test_evidence_without_doubt_is_promoted(good: Evidence) -> None:
    assert judge(EVERYTHING, good).decision == "promote"


@pytest.mark.parametrize("part", ["quality", "original", "measurement", "baseline"])
def test_missing_part_is_not_a_pass(good: Evidence, part: str) -> None:
    nothing: dict[str, Any] = {part: None}
    verdict = judge(EVERYTHING, replace(good, **nothing))
    assert verdict.decision == "inconclusive"
    assert "not measured" in {check.reason for check in verdict.checks}


@given(st.sampled_from(["size_mib", "peak_memory_mib"]), st.sampled_from([None, NAN, INFINITY]))
def test_unknown_size_or_memory_is_not_a_pass(
    good: Evidence, measured: Callable[..., Measurement], name: str, value: float | None
) -> None:
    evidence = replace(good, measurement=measured(*[[1.0] * 20] * 20, **{name: value}))
    assert judge(EVERYTHING, evidence).decision != "promote"


@given(st.lists(st.lists(latencies | st.just(NAN), max_size=30), max_size=20))
def test_samples_that_are_missing_or_nan_are_not_a_pass(
    good: Evidence, measured: Callable[..., Measurement], blocks: list[list[float]]
) -> None:
    """Fewer than 299 samples, empty blocks, none at all, NaN among them: p99 has no bound."""
    samples = [ms for block in blocks for ms in block]
    if len(samples) >= 299 and NAN not in samples:
        blocks[0].append(NAN)
    ours, theirs = measured(*blocks), measured(*blocks, variant="baseline")
    assert judge(EVERYTHING, replace(good, measurement=ours, baseline=theirs)).decision != "promote"


@given(st.lists(st.sampled_from([NAN, INFINITY, 0.0]), min_size=20, max_size=20))
def test_baseline_that_is_no_number_is_not_a_pass(
    good: Evidence, measured: Callable[..., Measurement], times: list[float]
) -> None:
    baseline = measured(*[[ms] for ms in times], variant="baseline")
    assert judge(EVERYTHING, replace(good, baseline=baseline)).decision != "promote"


@given(st.sampled_from(["value", "replicates", "jackknife"]))
def test_quality_that_is_no_number_is_not_a_pass(good: Evidence, part: str) -> None:
    assert good.original is not None
    original = replace(good.original, scores=None, replicates=(1.0,) * 100, jackknife=(1.0,) * 10)
    nan: dict[str, Any] = {part: NAN if part == "value" else (NAN,) * len(getattr(original, part))}
    broken = replace(original, variant="candidate", **nan)
    assert judge(EVERYTHING, replace(good, original=original, quality=broken)).decision != "promote"


@pytest.mark.parametrize(
    "unknown", [("original",), ("candidate",), ("original", "candidate")], ids=" and ".join
)
def test_slice_on_which_quality_is_unknown_is_not_a_pass(
    good: Evidence, scored: Callable[..., Quality], unknown: tuple[str, ...]
) -> None:
    """It may be the worst, whatever the others have lost."""
    found = {}
    for variant in ("original", "candidate"):
        known = scored([1] * 400, variant=variant)
        broken = replace(known, value=NAN, scores=None) if variant in unknown else known
        found[variant] = replace(known, slices={"rare": broken, "common": known})
    sla = SLA.model_validate({"quality": {"worst_slice_max_drop": 0.5}})
    evidence = replace(good, original=found["original"], quality=found["candidate"])
    check = judge(sla, evidence).checks[0]
    assert (check.clause, check.decision, check.estimate) == (
        "quality.worst_slice_max_drop", "inconclusive", None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("samples", "replicates"),
    [(500, (*[0.9] * 99, NAN)), (9, tuple(i / 100 for i in range(100)))],
    ids=["no number on a resample", "few samples of what has no range"],
)
def test_harm_to_quality_that_nothing_bounds_is_not_a_pass(
    good: Evidence, scored: Callable[..., Quality], samples: int, replicates: tuple[float, ...]
) -> None:
    """An AUC of five positives has resamples without any; the estimate alone says that nothing is lost."""
    original = replace(
        scored([1] * samples, variant="original"), scores=None, replicates=(0.9,) * 100, jackknife=(0.9,) * 10
    )
    candidate = replace(original, variant="candidate", replicates=replicates)
    harm = judge(ANY_SIZE, replace(good, original=original, quality=candidate)).checks[1]
    assert (harm.clause, harm.estimate, harm.decision) == ("quality.harm", 0.0, "inconclusive")
    assert harm.reason.startswith(f"{samples} samples give no bound on it")


@given(st.integers(1, 2000), st.sampled_from([(0.0, 1.0), None]))
def test_metric_that_never_varied_passes_only_on_enough_samples(
    good: Evidence, samples: int, limits: tuple[float, float] | None
) -> None:
    """A bootstrap of samples that are all right, and of none that is lost, has no width at any n."""
    sla = SLA.model_validate({"quality": {"max_drop": 0.01, "min": 0.99}})
    assert good.original is not None
    alike: dict[str, Any] = {"scores": None, "replicates": (1.0,) * 100, "jackknife": (1.0,) * 10}
    perfect = replace(good.original, **alike, samples=samples, value_range=limits)
    ours = replace(perfect, variant="candidate")
    verdict = judge(sla, replace(good, original=perfect, quality=ours))
    assert verdict.decision == ("promote" if samples >= 299 else "inconclusive")


@given(st.integers(1, 2000), st.integers(0, 200))
def test_drop_passes_only_if_its_upper_bound_does(
    good: Evidence, scored: Callable[..., Quality], same: int, lost: int
) -> None:
    original = scored([1] * (same + lost), variant="original")
    candidate = scored([1] * same + [0] * lost)
    verdict = judge(EVERYTHING, replace(good, original=original, quality=candidate))
    check = verdict.checks[0]
    assert check.clause == "quality.max_drop"
    assert check.high is not None
    assert check.low is not None
    assert (check.decision == "promote") == (check.high <= 0.05)
    assert (check.decision == "reject") == (check.low > 0.05)


@given(
    st.lists(st.lists(latencies, min_size=3, max_size=30), min_size=2, max_size=20),
    st.lists(st.booleans(), min_size=20, max_size=200),
    st.data(),
)
def test_better_is_never_turned_from_promote_to_reject(
    good: Evidence,
    measured: Callable[..., Measurement],
    scored: Callable[..., Quality],
    blocks: list[list[float]],
    right: list[bool],
    data: st.DataObject,
) -> None:
    """Every request at most as slow, every prediction at least as right, no larger, no more memory."""
    share = st.floats(0.01, 1)
    faster = [[ms * data.draw(share) for ms in block] for block in blocks]
    righter = [was or data.draw(st.booleans()) for was in right]
    baseline = measured(*blocks, variant="baseline")
    before = replace(
        good, measurement=measured(*blocks), baseline=baseline, quality=scored(list(map(int, right)))
    )
    after = replace(
        before, measurement=measured(*faster, size_mib=0.9), quality=scored(list(map(int, righter)))
    )
    original = scored([1] * len(right), variant="original")
    pairs = zip(
        judge(EVERYTHING, replace(before, original=original)).checks,
        judge(EVERYTHING, replace(after, original=original)).checks,
        strict=True,
    )
    assert not [(b, a) for b, a in pairs if (b.decision, a.decision) == ("promote", "reject")]


@given(st.permutations([0, 3, 9, 12, 13, 30, 60]))
def test_verdicts_do_not_depend_on_the_order_of_finalists(
    good: Evidence, scored: Callable[..., Quality], order: list[int]
) -> None:
    sla = SLA.model_validate({"quality": {"max_drop": 0.02}})
    original = scored([1] * 1000, variant="original")
    finalists = [
        replace(good, variant=str(n), quality=scored([1] * (1000 - n) + [0] * n), original=original)
        for n in order
    ]
    decisions = {v.variant: v.decision for v in judge_all(sla, finalists)}
    assert decisions == {
        "0": "promote", "3": "promote", "9": "promote", "12": "inconclusive", "13": "inconclusive",
        "30": "reject", "60": "reject",
    }  # fmt: skip
