"""Why each row won or lost, in plain words, with the clause and the interval that decided."""

from collections.abc import Mapping, Sequence
from typing import Any

from pareflow.reporting import gains
from pareflow.reporting.formats import quality
from pareflow.reporting.gains import Ratio
from pareflow.search.ties import plainer, tied
from pareflow.search.training_space import seedless
from pareflow.search.trial import NOTICEABLE
from pareflow.sla import OBJECTIVES
from pareflow.stages.finalists import least_sure
from pareflow.stages.optimization import strong_baseline
from pareflow.stages.run import Row, Run
from pareflow.stages.screening import cost_of, objective_value, rejected


def explanation(
    run: Run,
    row: Row,
    screened: Sequence[Row],
    winner: Row | None,
    firsts: Sequence[Mapping[str, Any]] = (),
) -> str:
    """One sentence or two on a row of the final table; `screened` holds all rows as the search left them,
    `firsts` what was judged while it went on."""
    if row.status != "ok":
        return f"It is {row.status}: {row.reason}."
    if winner is not None and row.id == winner.id:
        return f"{_won(run, row, screened)}{_by_other_seeds(row, screened)}"
    if row.verdict is not None and row.verdict.decision != "promote":
        return f"It did not pass: {row.verdict.missed}."
    if row.role == "ablation":
        return "It is the winner without one of its steps, to show what that step gives."
    if row.role != "candidate":
        return "It is what candidates are measured against."
    if row.verdict is not None and row.fit is not None and row.fit.decision != "fits":
        return f"It meets every clause, but does not win: {row.fit.missed}."
    if row.verdict is not None:
        return f"It meets the SLA, but {_beside(run, row, screened, winner)}."
    early = next((one for one in firsts if one["variant"] == row.id), None)
    if early is not None:
        registered = "" if early["version"] is None else f", and is version {early['version']}"
        return f"It was judged while the search went on{registered}: {early['reason']}."
    return _not_judged(run, row, screened, winner)


def _won(run: Run, row: Row, screened: Sequence[Row]) -> str:
    if row.role != "candidate":
        return "It won: no candidate was noticeably better by the objective and met the SLA."
    ratio = _ratio(run, row, screened)
    if ratio is None:
        return "It won: it meets every clause, and is the best by the objective."
    return f"It won: it meets every clause, and {_gained(run, row, ratio)}."


def _by_other_seeds(row: Row, screened: Sequence[Row]) -> str:
    """What the same recipe became with other seeds, if it was trained by any: how much is chance."""
    same = [other for other in screened if seedless(other.recipe) == seedless(row.recipe)]
    own, others = ([o for o in same if (o.label == row.label) is ours] for ours in (True, False))
    found = [(o.speedup.estimate, o.quality.value) for o in others if o.speedup and o.quality]
    here = own[0].quality
    if not found or here is None:
        return ""
    speedups, values = ((min(numbers), max(numbers)) for numbers in zip(*found, strict=True))
    fast, good = f"{speedups[0]:.2f} to {speedups[1]:.2f}", " to ".join(map(quality, values))
    return (
        f" Trained by {len(found)} other seeds it is {fast} times as fast, and its {here.metric} {good} "
        f"on the search split, here {quality(here.value)}."
    )


def _not_judged(run: Run, row: Row, screened: Sequence[Row], winner: Row | None) -> str:
    """Of a row that was not chosen for the verdict: which clauses it missed already, which it was not likely
    enough to keep, or what was better."""
    missed = "; ".join(f"{check.clause}: {check.reason}" for check in rejected(run, row, screened))
    if missed:
        return f"It was not judged, since it missed clauses before: {missed}."
    if row.measurement is None:
        return "It was not judged: it was not timed."
    if winner is None or (_better(run, row, winner, screened) and not _tied(run, row, winner, screened)):
        return f"It was not judged: {_promised_less(run, row, screened)}."
    return f"It was not judged: {_beside(run, row, screened, winner)}."


def _promised_less(run: Run, row: Row, screened: Sequence[Row]) -> str:
    """Why others were chosen where none of them became better: they were likelier to pass."""
    doubt = least_sure(run, row, [other for other in screened if other.role in ("baseline", "original")])
    twins = [
        other for other in screened if plainer(other.recipe, row.recipe) and other.measurement is not None
    ]
    as_fast = tied(row, twins, lambda one: cost_of(run, one, screened))
    if as_fast:
        within = f"{NOTICEABLE - 1:.0%}"
        return f"{as_fast[0].label} stands for it, which is as fast within {within} in fewer settings"
    if doubt is None:
        return "others promised more"
    return f"it was less likely to keep {doubt.clause}: on the search split {doubt.reason}"


def _beside(run: Run, row: Row, screened: Sequence[Row], winner: Row | None) -> str:
    """How a row compares with the winner, both beside the strong baseline: of other threads, the first."""
    tie = winner is not None and _tied(run, row, winner, screened)
    fewer = f" with fewer settings: what gains less than {NOTICEABLE - 1:.0%} is left out" if tie else ""
    if winner is not None and winner.threads != row.threads:
        ours, theirs = (cost_of(run, one, screened) for one in (row, winner))
        if run.spec.objective == "throughput":
            ours, theirs = 1 / ours, 1 / theirs
        same = f"that of {screened[0].label}, and the winner's {theirs:.2f} times{fewer}"
        return f"its {OBJECTIVES[run.spec.objective]} is {ours:.2f} times {same}"
    beside = _ratio(run, row, screened)
    best = None if winner is None else _ratio(run, winner, screened)
    if beside is None or best is None:
        return "others are better by the objective"
    return f"it {_gained(run, row, beside)}, and the winner {_times(best)}{fewer}"


def _tied(run: Run, row: Row, winner: Row, screened: Sequence[Row]) -> bool:
    """Whether a row is the winner in more settings and was left for that, though it looked better: at the
    verdict, or in the search where it was not judged."""
    then = winner
    if row.verdict is None:
        then = next((other for other in screened if other.id == winner.id), winner)
    as_fast = tied(row, [then], lambda one: cost_of(run, one, screened))
    return plainer(winner.recipe, row.recipe) and _better(run, row, then, screened) and bool(as_fast)


def _better(run: Run, row: Row, winner: Row, screened: Sequence[Row]) -> bool:
    return cost_of(run, row, screened) < cost_of(run, winner, screened)


def _gained(run: Run, row: Row, ratio: Ratio) -> str:
    """What a row gains by the objective, and then what that is in speed."""
    objective = run.spec.objective
    if objective == "latency_p50":
        return f"is {_times(ratio)} as fast as the strong baseline"
    speed = "" if row.speedup is None else f" and is {gains.in_speed(row.speedup.bounds(), _times)}"
    return f"has {_times(ratio)} the {OBJECTIVES[objective]} of the strong baseline{speed}"


def _ratio(run: Run, row: Row, screened: Sequence[Row]) -> Ratio | None:
    """A row beside the strong baseline by the objective: as it was judged, else as the search measured it."""
    objective, checks = run.spec.objective, () if row.verdict is None else row.verdict.checks
    if objective == "latency_p50":
        return None if row.speedup is None else row.speedup.bounds()
    for check in checks:
        if check.clause == "do_no_harm" and check.estimate is not None:
            gain = {"estimate": check.estimate, "low": check.low, "high": check.high}
            return gains.share(objective, gain)
    if row.measurement is None:
        return None
    ours, theirs = (objective_value(objective, one) for one in (row, strong_baseline(row, screened)))
    return {"estimate": ours / theirs, "low": None, "high": None}


def _times(ratio: Ratio) -> str:
    """`2.87 times (2.78 to 2.95)`; without an interval where there is none, or where it is exact."""
    low, high = (("unbounded" if b is None else f"{b:.4g}") for b in (ratio["low"], ratio["high"]))
    span = "" if low == high else f" ({low} to {high})"
    return f"{ratio['estimate']:.2f} times{span}"
