"""The verdict: finalists on the verdict split, timed side by side until the gate can decide."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from pareflow.errors import PareflowError, VariantError
from pareflow.gate import Evidence, drop_interval, judge_all
from pareflow.intervals import samples_needed, speedup
from pareflow.measurement import Interval, Measurement
from pareflow.measuring.arena import Protocol
from pareflow.sla import Objective
from pareflow.stages import fitting
from pareflow.stages.building import evaluate
from pareflow.stages.loading import under_load
from pareflow.stages.optimization import failed, strong_baseline
from pareflow.stages.run import Row, Run
from pareflow.stages.timing import measure

BLOCKS = 60
LOOKS = 4
"""How often the gate may look: while a timing clause is inconclusive, it is looked at again with more."""


def finalists(run: Run, rows: Sequence[Row]) -> list[Row]:
    """The baselines, and the best candidates by the objective whose quality is not already lost.

    Where all of these may yet lose too much, the last place is for the best one that keeps the quality with
    confidence on the search split too: else a run may end with nothing, since all that it judged were bets.
    """
    timed = [row for row in rows if row.status == "ok" and row.measurement is not None]
    baselines = [row for row in timed if row.role != "candidate"]
    hopeful = [row for row in timed if row.role == "candidate" and not _lost(run, row, baselines)]
    ranked = sorted(hopeful, key=lambda row: objective_value(run.spec.objective, row))
    chosen = ranked[: run.spec.finalists]
    safe = [row for row in ranked if _kept(run, row, baselines) and _gains(run, row, baselines)]
    if safe and len(chosen) > 1 and not {row.id for row in safe} & {row.id for row in chosen}:
        chosen[-1] = safe[0]
    return [*baselines, *chosen]


def final(run: Run, among: int, look: int) -> Protocol:
    """How finalists are timed for their verdict; each look takes as many samples as all before it.

    The first has enough to bound p99 at the confidence that Holm's correction among so many asks for.
    """
    error = (1 - run.spec.sla.confidence) / (2 * among)
    least = math.ceil(1.2 * samples_needed(0.99, 1 - error) / BLOCKS)
    return Protocol(blocks=BLOCKS * 2 ** max(look - 2, 0), least=least, seed=look)


def validate(run: Run, chosen: Sequence[Row]) -> list[Row]:
    """The finalists with their quality on the verdict split, a longer measurement, and their verdicts.

    More samples are bought while a timing clause is inconclusive for one that could still win, within the
    budget (law 3). A candidate that fails on the way is a failed row (law 7).
    Raises: VariantError where a baseline fails.
    """
    rows = [_evaluated(run, row) for row in chosen]
    measured: dict[str, Measurement] = {}
    for look in range(1, LOOKS + 1):
        protocol = final(run, len(chosen), look)
        rows, more = _measured(run, _under_load(run, rows, protocol), protocol)
        measured = {key: measured[key].extended(more[key]) if key in measured else more[key] for key in more}
        rows = _judged(run, rows, measured, look)
        if run.late(f"look {look + 1} at the finalists") or not any(_may_win(run, row, rows) for row in rows):
            break
    return [fitting.confine(run, row) if row.status == "ok" else row for row in rows]


def _evaluated(run: Run, row: Row) -> Row:
    """The row with its quality on the verdict split, or failed."""
    try:
        return evaluate(run, row, "verdict")
    except PareflowError as error:
        return _dropped(row, error)


def _under_load(run: Run, rows: Sequence[Row], protocol: Protocol) -> list[Row]:
    """All rows, measured under the SLA's load too where it names one; those that fail there failed."""
    found = []
    for row in rows:
        try:
            queries = protocol.blocks * protocol.least
            found.append(
                under_load(run, row, queries=queries, seed=protocol.seed) if row.status == "ok" else row
            )
        except VariantError as error:
            found.append(_dropped(row, error))
    return found


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
    """The best by the objective among those that the gate promotes and that fit the device, or None."""
    passed = [row for row in judged if row.verdict is not None and row.verdict.decision == "promote"]
    passed = [row for row in passed if row.fit is None or row.fit.decision == "fits"]
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
    drop, limit = search_drop(run, row, baselines, run.spec.sla.confidence)
    return drop is not None and drop.low is not None and drop.low > limit


def _kept(run: Run, row: Row, baselines: Sequence[Row]) -> bool:
    """Whether the search split shows already, at the verdict's confidence, that enough quality is there.

    A gain there is taken for none: candidates were chosen by this split, so that it flatters them.
    """
    among = len(baselines) + run.spec.finalists
    drop, limit = search_drop(run, row, baselines, 1 - (1 - run.spec.sla.confidence) / among)
    return drop is not None and drop.high is not None and drop.high - min(drop.estimate, 0) <= limit


def search_drop(
    run: Run, row: Row, baselines: Sequence[Row], confidence: float
) -> tuple[Interval | None, float]:
    """What a row lost on the search split, and what it may lose; None where that is no clause."""
    clause = run.spec.sla.quality
    if clause is None or clause.max_drop is None:
        return None, math.inf
    drop = drop_interval(original_of(baselines).quality, row.quality, confidence)
    return drop, clause.max_drop


def _gains(run: Run, row: Row, baselines: Sequence[Row]) -> bool:
    """Whether a row is better by the objective than every baseline."""
    values = [objective_value(run.spec.objective, one) for one in (row, *baselines)]
    return values[0] < min(values[1:])


def _judged(run: Run, rows: Sequence[Row], measured: Mapping[str, Measurement], look: int) -> list[Row]:
    """The rows with their measurements and verdicts; failed ones stay as they are."""
    alive = [row for row in rows if row.status == "ok"]
    evidence = [_evidence(run, row, alive, measured) for row in alive]
    verdicts = dict(zip((row.id for row in alive), judge_all(run.spec.sla, evidence, look), strict=True))
    judged = []
    for row in rows:
        if row.status == "ok":
            ours, strong = measured[str(row.id)], measured[str(strong_baseline(row, alive).id)]
            eager = next((r for r in alive if r.role == "original" and r.threads == row.threads), None)
            row = dataclasses.replace(
                row,
                measurement=ours,
                speedup=speedup(strong, ours),
                speedup_over_eager=speedup(measured[str(eager.id)], ours) if eager is not None else None,
                verdict=verdicts[row.id],
            )
        judged.append(row)
    return judged


def _evidence(run: Run, row: Row, rows: Sequence[Row], measured: Mapping[str, Measurement]) -> Evidence:
    strong = strong_baseline(row, rows)
    return Evidence(
        variant=str(row.id),
        objective=run.spec.objective,
        quality=row.quality,
        original=original_of(rows).quality,
        measurement=measured[str(row.id)],
        baseline=measured[str(strong.id)],
        served=row.served,
        fit=row.fit,
    )


def original_of(rows: Sequence[Row]) -> Row:
    """The original; the strong baseline where the original came as an ONNX graph, which is its own export."""
    return next((row for row in rows if row.role == "original"), rows[0])


def _may_win(run: Run, row: Row, rows: Sequence[Row]) -> bool:
    """Whether more timing could make this row the winner: it is open, and better than what passes already."""
    if not _needs_time(row):
        return False
    best = winner(run, rows)
    objective = run.spec.objective
    return best is None or objective_value(objective, row) < objective_value(objective, best)


def _needs_time(row: Row) -> bool:
    """Whether more timing could still decide: only timing clauses are inconclusive, and none rejects."""
    if row.verdict is None:
        return False
    doubtful = [check for check in row.verdict.checks if check.decision == "inconclusive"]
    timing = ("latency.", "load.", "throughput.", "do_no_harm")
    return row.verdict.decision == "inconclusive" and all(
        check.clause.startswith(timing) and check.estimate is not None for check in doubtful
    )
