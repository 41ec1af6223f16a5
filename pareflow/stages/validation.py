"""The verdict: finalists on the verdict split, timed side by side until the gate can decide."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from pareflow.errors import PareflowError, VariantError
from pareflow.gate import Evidence, Verdict, judge_all
from pareflow.intervals import samples_needed, speedup
from pareflow.measurement import Measurement
from pareflow.measuring.arena import Protocol
from pareflow.search.ties import plainest, tied
from pareflow.stages import fitting
from pareflow.stages.baseline import SCREENING
from pareflow.stages.building import evaluate
from pareflow.stages.loading import under_load
from pareflow.stages.optimization import failed, strong_baseline
from pareflow.stages.run import Row, Run
from pareflow.stages.screening import objective_value, original_of, share_of
from pareflow.stages.timing import measure
from pareflow.variant import digest

BLOCKS = 60
LOOKS = 4
"""How often the gate may look: while a timing clause is inconclusive, it is looked at again with more."""
TIMING = ("latency.", "load.", "throughput.")
"""How the clauses begin that more samples could decide; quality is measured once."""
PROMISED = 2
"""So many looks there are in any case: the search may have used up the budget."""


def final(run: Run, among: int, look: int) -> Protocol:
    """How finalists are timed for their verdict; each look takes as many samples as all before it.

    The first has enough to bound p99 at the confidence that Holm's correction among so many asks for.
    """
    error = (1 - run.spec.sla.confidence) / (2 * among)
    least = math.ceil(1.2 * samples_needed(0.99, 1 - error) / BLOCKS)
    return Protocol(blocks=BLOCKS * 2 ** max(look - 2, 0), fewest=least, least=least, seed=look)


def too_slow(run: Run, baselines: Sequence[Row]) -> str | None:
    """What is told where timing the baselines and one candidate takes more than the budget; None where it
    does not. Candidates are taken to be as slow as the strong baseline beside them."""
    times = [row.measurement.quantile_ms(0.5) for row in baselines if row.measurement is not None]
    candidate = 2 * SCREENING.minutes(times[0])
    needed = sum(map(SCREENING.minutes, times)) + candidate
    if needed <= run.spec.budget.minutes:
        return None
    judged = [*times, *[times[0]] * run.spec.finalists]
    looks = [final(run, len(judged), look) for look in range(1, PROMISED + 1)]
    verdict = sum(look.minutes(ms) for look in looks for ms in judged)
    return (
        f"a request takes {times[0] / 1000:.2g} s: timing the baselines and one candidate takes about "
        f"{needed:.0f} minutes, another candidate {candidate:.1f}, and the budget has "
        f"{run.spec.budget.minutes:g}; the verdict takes up to {verdict:.0f} beyond it. Raise "
        "`budget.minutes`, or let a request hold less"
    )


def last(run: Run, look: int, what: str) -> bool:
    """Whether the budget is used up after this look, and so many were had as there are in any case."""
    return run.late(f"look {look + 1} at {what}") and look >= PROMISED


def extended(measured: Mapping[str, Measurement], more: Mapping[str, Measurement]) -> dict[str, Measurement]:
    """What one more look measured, behind what those before it did."""
    return {key: measured[key].extended(more[key]) if key in measured else more[key] for key in more}


def validate(run: Run, chosen: Sequence[Row], others: int = 0, what: str = "the finalists") -> list[Row]:
    """The finalists with their quality on the verdict split, a longer measurement, and their verdicts.

    `others` share the error, and are judged at another time: each time has a name, `what`.

    More samples are bought while a timing clause is inconclusive for one that could still win (law 3), once
    whatever the budget says, and then within it. A candidate that fails on the way is a failed row (law 7).
    Raises: VariantError where a baseline fails.
    """
    rows = [_evaluated(run, row) for row in chosen]
    which = digest(sorted(str(row.id) for row in chosen), others)[:12]  # a stopped run may have judged others
    measured: dict[str, Measurement] = {}
    for look in range(1, LOOKS + 1):
        protocol = final(run, len(chosen) + others, look)
        rows, more = _measured(run, _under_load(run, rows, protocol), protocol)
        measured = extended(measured, more)
        rows = _judged(run, rows, measured, look, others)
        if last(run, look, f"{what}, {which}") or not any(_may_win(run, row, rows) for row in rows):
            break
    return [fitting.confine(run, row) if row.status == "ok" else row for row in rows]


def _evaluated(run: Run, row: Row) -> Row:
    """The row with its quality on the verdict split, or failed; that the search stopped timing it is over."""
    try:
        return evaluate(run, dataclasses.replace(row, reason=None), "verdict")
    except PareflowError as error:
        return _dropped(row, error)


def _under_load(run: Run, rows: Sequence[Row], protocol: Protocol) -> list[Row]:
    """All rows, measured under the SLA's load too where it names one; those that fail there failed."""
    found = []
    for row in rows:
        try:
            found.append(under_load(run, row, protocol) if row.status == "ok" else row)
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
    """The best by the objective among those that the gate promotes and that fit the device, or None. Of a tie
    it is the plainest."""
    passed = _passed(judged)
    return _best(run, passed) if passed else None


def _passed(judged: Sequence[Row]) -> list[Row]:
    promoted = [row for row in judged if row.verdict is not None and row.verdict.decision == "promote"]
    return [row for row in promoted if row.fit is None or row.fit.decision == "fits"]


def _best(run: Run, rows: Sequence[Row]) -> Row:
    best, *others = sorted(rows, key=lambda row: objective_value(run.spec.objective, row))
    return plainest(tied(best, [best, *others], lambda row: share_of(run, row, best)))


def _judged(
    run: Run, rows: Sequence[Row], measured: Mapping[str, Measurement], look: int, others: int = 0
) -> list[Row]:
    """The rows with their measurements and verdicts; failed ones stay as they are."""
    alive = [row for row in rows if row.status == "ok"]
    shown = [evidence(run, row, alive, measured) for row in alive]
    found = judge_all(run.spec.sla, shown, look, others)
    verdicts = dict(zip((row.id for row in alive), found, strict=True))
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


def evidence(run: Run, row: Row, rows: Sequence[Row], measured: Mapping[str, Measurement]) -> Evidence:
    """What is known of a row. Harm is what is worse than the best of the strong baselines, on however many
    threads that runs: it is what would be served otherwise."""
    timed = [dataclasses.replace(one, measurement=measured[str(one.id)]) for one in rows]
    strong = min(
        (one for one in timed if one.role == "baseline"),
        key=lambda one: objective_value(run.spec.objective, one),
    )
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


def _may_win(run: Run, row: Row, rows: Sequence[Row]) -> bool:
    """Whether more timing could make this row the winner: it is open, and better than what passes already."""
    if row.verdict is None or not needs_time(row.verdict):
        return False
    return _best(run, [*_passed(rows), row]) is row


def needs_time(verdict: Verdict) -> bool:
    """Whether more timing could still decide: only timing clauses are inconclusive, and none rejects."""
    doubtful = [check for check in verdict.checks if check.decision == "inconclusive"]
    return verdict.decision == "inconclusive" and all(
        check.clause.startswith((*TIMING, "do_no_harm")) and check.estimate is not None for check in doubtful
    )
