"""Which candidates are judged: those of which the best that passes is expected to be the best.

Every finalist costs the others confidence (Holm's correction), and time.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

from pareflow.gate import QUALITY_HARM, Check, from_below
from pareflow.search.space import way_of
from pareflow.search.ties import plainest, tied
from pareflow.stages.run import Row, Run
from pareflow.stages.screening import again, checks_of, cost_of, over, rejected

LESS_LIKELY = 0.01
"""A row that stands for another is at most so much less likely to pass: a limit may lie between the two."""


def finalists(run: Run, rows: Sequence[Row], count: int | None = None) -> list[Row]:
    """The baselines, and the most promising candidates of those that miss no clause already, with confidence:
    as many as the pipeline says, unless a `count` is given.

    Where every row misses some, baselines too, the best are judged all the same: the verdict says how much.
    """
    timed = [row for row in rows if row.status == "ok" and row.measurement is not None]
    baselines = [row for row in timed if row.role != "candidate"]
    candidates = [row for row in timed if row.role == "candidate"]
    lost = {row.id for row in timed if rejected(run, row, baselines)}
    hopeless = all(row.id in lost for row in timed)
    left = [row for row in candidates if hopeless or row.id not in lost]
    return [*baselines, *promising(run, left, baselines, count or run.spec.finalists)]


def promising(run: Run, candidates: Sequence[Row], baselines: Sequence[Row], count: int) -> list[Row]:
    """As many as are judged, the best by the objective first; each adds most to what is expected.

    What is expected of some is the cost of the best that passes; where none does, the strong baseline's own,
    or the worst candidate's where none is better than that. Of a tie only the plainest is judged.
    """
    costs = {row.id: cost_of(run, row, baselines) for row in candidates}
    chances = {row.id: chance(run, row, baselines) for row in candidates}
    ranked = _untied(candidates, costs, chances)
    nothing = 1.0 if min(costs.values(), default=0.0) < 1 else max(costs.values())
    chosen: list[Row] = []
    while ranked and len(chosen) < count:
        best = min(ranked, key=lambda row: expected(_bets((*chosen, row), costs, chances), nothing))
        ranked.remove(best)
        chosen.append(best)
    return sorted(chosen, key=lambda row: costs[row.id])


def _untied(
    rows: Sequence[Row], costs: Mapping[str | None, float], chances: Mapping[str | None, float]
) -> list[Row]:
    """The rows, the best first, and of each tie only the plainest that is as likely to pass as its best."""
    left, found = sorted(rows, key=lambda row: costs[row.id]), list[Row]()
    while left:
        best = left[0]
        twins = tied(best, left, lambda row: costs[row.id])
        twins = [row for row in twins if chances[row.id] >= chances[best.id] - LESS_LIKELY]
        stands = plainest(twins)
        found.append(stands)
        gone = {row.id for row in twins if chances[row.id] <= chances[stands.id] + LESS_LIKELY}
        left = [row for row in left if row.id not in gone]
    return found


def _bets(
    rows: Sequence[Row], costs: Mapping[str | None, float], chances: Mapping[str | None, float]
) -> list[tuple[float, float]]:
    """Cost and chance of each way's best: the others of it answer alike, and miss where it does."""
    found: dict[str, tuple[float, float]] = {}
    for row in sorted(rows, key=lambda row: costs[row.id]):
        found.setdefault(way_of(row.recipe).label, (costs[row.id], chances[row.id]))
    return list(found.values())


def expected(options: Sequence[tuple[float, float]], nothing: float) -> float:
    """The cost of the best of some options that passes, each a cost and a chance; `nothing` where none does.

    One that is worse than nothing is not chosen, and adds nothing.
    """
    total, missed = 0.0, 1.0
    for cost, passes in sorted(options):
        total += missed * passes * min(cost, nothing)
        missed *= 1 - passes
    return total + missed * nothing


def chance(run: Run, row: Row, baselines: Sequence[Row]) -> float:
    """How likely a row is to keep every clause at its verdict, by what the search split shows."""
    return math.prod(kept for kept, _ in _chances(run, row, baselines))


def least_sure(run: Run, row: Row, baselines: Sequence[Row]) -> Check | None:
    """The clause that a row is least likely to keep; None where it is as sure to keep each as the SLA is
    confident."""
    kept, check = min(_chances(run, row, baselines), key=lambda found: found[0], default=(1.0, None))
    return check if kept < run.spec.sla.confidence else None


def _chances(run: Run, row: Row, baselines: Sequence[Row]) -> list[tuple[float, Check]]:
    among = len(baselines) + run.spec.finalists
    samples = run.facts.sizes["verdict"]
    return [(_kept(check, samples), check) for check in checks_of(run, row, baselines, among)]


def _kept(check: Check, samples: int) -> float:
    """How likely a clause is to be kept, its error taken for normal.

    The verdict measures quality anew, on so many samples, and asks that the whole interval is on the right
    side; of times it takes as many samples as it needs. A gain of quality is taken for none: candidates were
    chosen by this split, so that it flatters them.
    """
    if check.clause == QUALITY_HARM:
        return float(check.decision != "reject")
    assert check.estimate is not None  # what was not measured is no check of the search split
    side, bound = (-1, check.low) if from_below(check.clause) else (1, check.high)
    estimate = max(check.estimate, 0.0) if check.clause.endswith("max_drop") else check.estimate
    if bound is None or check.confidence is None or bound == check.estimate:
        return float(over(check) == 0)
    width = abs(bound - check.estimate)
    anew = again(check, samples) if check.clause.startswith("quality.") else 0.0
    error = width / NormalDist().inv_cdf(check.confidence) * math.hypot(1, anew)
    return NormalDist().cdf((side * (check.limit - estimate) - width * anew) / error)
