"""The verdict: finalists on the verdict split, timed side by side until the gate can decide."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from pareflow.errors import PareflowError, VariantError
from pareflow.measurement import Interval, Measurement, speedup
from pareflow.measuring.arena import Protocol
from pareflow.sla import Evidence, Objective, drop_interval, judge
from pareflow.stages.building import evaluate
from pareflow.stages.optimization import failed, strong_baseline
from pareflow.stages.run import Row, Run
from pareflow.stages.timing import measure

FINAL = Protocol(blocks=24, least=15)
"""At least 360 samples of each finalist: a 95 % upper bound on p99 needs 299."""
ROUNDS = 4
"""How often the gate may ask for more samples while a timing clause is inconclusive."""


def finalists(run: Run, rows: Sequence[Row]) -> list[Row]:
    """The baselines, and the best candidates by the objective whose quality is not already lost."""
    timed = [row for row in rows if row.status == "ok" and row.measurement is not None]
    baselines = [row for row in timed if row.role != "candidate"]
    hopeful = [row for row in timed if row.role == "candidate" and not _lost(run, row, baselines)]
    ranked = sorted(hopeful, key=lambda row: objective_value(run.spec.objective, row))
    return [*baselines, *ranked[: run.spec.finalists]]


def validate(run: Run, chosen: Sequence[Row]) -> list[Row]:
    """The finalists with their quality on the verdict split, a longer measurement, and their verdicts.

    More samples are bought while a timing clause of any is inconclusive, within the budget (law 3). A
    candidate that fails on the way is a failed row (law 7). Raises: VariantError where a baseline fails.
    """
    rows = [_evaluated(run, row) for row in chosen]
    measured: dict[str, Measurement] = {}
    for attempt in range(ROUNDS):
        rows, more = _measured(run, rows, dataclasses.replace(FINAL, seed=attempt))
        measured = {key: measured[key].extended(more[key]) if key in measured else more[key] for key in more}
        rows = [_judged(run, row, rows, measured) if row.status == "ok" else row for row in rows]
        if run.out_of_time or not any(_needs_time(row) for row in rows):
            break
    return rows


def _evaluated(run: Run, row: Row) -> Row:
    """The row with its quality on the verdict split, or failed."""
    try:
        return evaluate(run, row, "verdict")
    except PareflowError as error:
        return _dropped(row, error)


def _measured(
    run: Run, rows: Sequence[Row], protocol: Protocol
) -> tuple[list[Row], Mapping[str, Measurement]]:
    """All rows, those that cannot be timed failed, and the measurements of the others, from one arena."""
    while True:
        try:
            return list(rows), measure(run, [row for row in rows if row.status == "ok"], protocol)
        except VariantError as error:
            if error.variant is None:
                raise
            rows = [_dropped(row, error) if row.id == error.variant else row for row in rows]


def _dropped(row: Row, error: PareflowError) -> Row:
    """The candidate as a failed row. Raises: the error where it is a baseline: all are compared with it."""
    if row.role != "candidate":
        raise error
    return failed(dataclasses.replace(row, verdict=None), error)


def winner(run: Run, judged: Sequence[Row]) -> Row | None:
    """The best by the objective among those that the gate promotes, or None."""
    passed = [row for row in judged if row.verdict is not None and row.verdict.decision == "promote"]
    return min(passed, key=lambda row: objective_value(run.spec.objective, row), default=None)


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


def _lost(run: Run, row: Row, baselines: Sequence[Row]) -> bool:
    """Whether the search split shows already, with confidence, that too much quality is gone."""
    clause = run.spec.sla.quality
    if clause is None or clause.max_drop is None:
        return False
    original = next(baseline for baseline in baselines if baseline.role == "original")
    drop = drop_interval(original.quality, row.quality, run.spec.sla.confidence)
    return drop is not None and drop.low is not None and drop.low > clause.max_drop


def _judged(run: Run, row: Row, rows: Sequence[Row], measured: Mapping[str, Measurement]) -> Row:
    originals = [other for other in rows if other.role == "original"]
    original = next((other for other in originals if other.threads == row.threads), originals[0])
    strong = strong_baseline(row, rows)
    ours, theirs = measured[str(row.id)], measured[str(strong.id)]
    eager = measured[str(original.id)]
    evidence = Evidence(
        variant=str(row.id),
        quality=row.quality,
        original=original.quality,
        measurement=ours,
        gain=gain(run.spec.objective, theirs, ours),
    )
    return dataclasses.replace(
        row,
        measurement=ours,
        speedup=speedup(theirs, ours),
        speedup_over_eager=speedup(eager, ours),
        verdict=judge(run.spec.sla, evidence),
    )


def gain(objective: Objective, baseline: Measurement, ours: Measurement) -> Interval | None:
    """How many times better than `baseline`, on the objective; exactly 1 for the baseline itself."""
    if ours.variant == baseline.variant:
        return Interval(1.0, 1.0, 1.0, samples=len(ours.blocks_ms))
    if objective == "latency_p99":
        return speedup(baseline, ours, quantile=0.99)
    if objective in ("latency_p50", "throughput"):
        return speedup(baseline, ours)
    before, after = _OBJECTIVES[objective](baseline), _OBJECTIVES[objective](ours)
    if before is None or after is None:
        return None
    return Interval(before / after, before / after, before / after, samples=1)


def _needs_time(row: Row) -> bool:
    """Whether more timing could still decide: only timing clauses are inconclusive, and none rejects."""
    if row.verdict is None:
        return False
    open_clauses = [check.clause for check in row.verdict.checks if check.decision == "inconclusive"]
    timing = ("latency.", "throughput.", "do_no_harm")
    return row.verdict.decision == "inconclusive" and all(
        clause.startswith(timing) for clause in open_clauses
    )
