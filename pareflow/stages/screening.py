"""What is known of a row before its verdict: its cost, and what the gate says of it on the search split."""

import math
from collections.abc import Callable, Sequence

from pareflow.errors import VariantError
from pareflow.gate import QUALITY_HARM, Check, Evidence, from_below, judge
from pareflow.measurement import Measurement
from pareflow.sla import Objective
from pareflow.stages.optimization import strong_baseline
from pareflow.stages.run import Row, Run


def original_of(rows: Sequence[Row]) -> Row:
    """The original; the strong baseline where the original came as an ONNX graph, which is its own export."""
    return next((row for row in rows if row.role == "original"), rows[0])


def guessing(run: Run, rows: Sequence[Row]) -> str | None:
    """What is told where the original is right no more often than its commonest answer alone would be."""
    quality, commonest = original_of(rows).quality, run.facts.commonest
    if quality is None or commonest is None or quality.value > commonest:
        return None
    return (
        f"the original is right on {quality.value:.3g} of the search split, and so is who always answers its "
        f"commonest target on {commonest:.3g}: see whether targets and predictions number classes alike"
    )


def objective_value(objective: Objective, row: Row) -> float:
    """What is minimised: the objective's estimate, negated where more is better."""
    assert row.measurement is not None  # only timed rows are ranked
    value = _OBJECTIVES[objective](row.measurement)
    if value is None:
        raise VariantError(f"`{objective}` must be measured to rank by it", "it is unknown", "Choose another")
    return value


_OBJECTIVES: dict[Objective, Callable[[Measurement], float | None]] = {
    "latency_p50": lambda m: m.quantile_ms(0.50),
    "latency_p99": lambda m: m.quantile_ms(0.99),
    "throughput": lambda m: -m.throughput_per_s,
    "size": lambda m: m.size_mib,
    "peak_memory": lambda m: m.peak_memory_mib,
}


def cost_of(run: Run, row: Row, baselines: Sequence[Row]) -> float:
    """The objective as a share of the first strong baseline's; below 1 is better.

    A median latency is compared with that of its own strong baseline: they were timed block by block.
    """
    own = strong_baseline(row, baselines)
    if run.spec.objective == "latency_p50" and row.speedup is not None:
        return share_of(run, own, baselines[0]) / row.speedup.estimate
    return share_of(run, row, baselines[0])


def share_of(run: Run, row: Row, other: Row) -> float:
    """The objective of one row as a share of another's, by their own measurements."""
    ours, theirs = (objective_value(run.spec.objective, one) for one in (row, other))
    return theirs / ours if ours < 0 else ours / theirs


def checks_of(run: Run, row: Row, rows: Sequence[Row], among: int = 1) -> list[Check]:
    """Each clause of the SLA that was measured, judged on the search split; `among` rows share the error.

    So is harm to quality where the SLA says nothing of it. Candidates are not put under load, and of harm by
    the objective their cost tells.
    """
    sla = run.spec.sla
    evidence = Evidence(
        variant=str(row.id),
        objective=run.spec.objective,
        quality=row.quality,
        original=original_of(rows).quality,
        measurement=row.measurement,
        baseline=None,
        fit=row.fit,
    )
    checks = judge(sla, evidence, among=among).checks
    return [check for check in checks if check.clause != "do_no_harm" and check.estimate is not None]


def rejected(run: Run, row: Row, rows: Sequence[Row]) -> list[Check]:
    """The clauses that a row misses already, with confidence."""
    return [check for check in checks_of(run, row, rows) if check.decision == "reject"]


def over(check: Check, doubted: float = 0.0) -> float:
    """How far an estimate, and so much of a loss more, is on the wrong side of its limit: of quality in its
    metric, else as a share.

    Harm to quality has no limit to be near to: it is surely there, or not at all.
    """
    if check.estimate is None or (check.clause == QUALITY_HARM and check.decision != "reject"):
        return 0.0
    found = check.limit - check.estimate if from_below(check.clause) else check.estimate - check.limit
    found += doubted
    return max(found, 0.0) if check.clause.startswith("quality.") else max(found / check.limit, 0.0)


def doubt(run: Run, check: Check) -> float:
    """How much more of a loss the verdict is expected to allow for than the search split's estimate.

    All of its interval must be within `max_drop` there, and is the narrower the more samples it has.

    0 where no loss is seen, and where the verdict split is too small for `max_drop`, which is told: by that
    everything would lose too much.
    """
    loses = check.clause.endswith("max_drop") and (check.estimate or 0.0) > 0
    if not loses or check.high is None or run.samples_lacking is not None:
        return 0.0
    assert check.estimate is not None
    return (check.high - check.estimate) * again(check, run.facts.sizes["verdict"])


def again(check: Check, samples: int) -> float:
    """How wide an interval of so many samples is expected to be, over one of this check's."""
    return math.sqrt(check.samples / samples)
