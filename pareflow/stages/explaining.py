"""Why each row won or lost, in plain words, with the clause and the interval that decided."""

from collections.abc import Sequence

from pareflow.measurement import Interval
from pareflow.search.training_space import seedless
from pareflow.stages.run import Row, Run
from pareflow.stages.screening import rejected


def explanation(run: Run, row: Row, screened: Sequence[Row], winner: Row | None) -> str:
    """One sentence or two on a row of the final table; `screened` holds all rows as the search left them."""
    if row.status != "ok":
        return f"It is {row.status}: {row.reason}."
    if winner is not None and row.id == winner.id:
        return f"{_won(row)}{_by_other_seeds(row, screened)}"
    if row.verdict is not None and row.verdict.decision != "promote":
        return f"It did not pass: {row.verdict.missed}."
    if row.role == "ablation":
        return "It is the winner without one of its steps, to show what that step gives."
    if row.role != "candidate":
        return "It is what candidates are measured against."
    if row.verdict is not None:
        return f"It meets the SLA, but {_beside(row, winner)}."
    return _not_judged(run, row, screened, winner)


def _won(row: Row) -> str:
    if row.role != "candidate":
        return "It won: no candidate was better by the objective and met the SLA."
    if row.speedup is None:
        return "It won: it meets every clause, and is the best by the objective."
    return f"It won: it meets every clause, and is {_times(row.speedup)} as fast as the strong baseline."


def _by_other_seeds(row: Row, screened: Sequence[Row]) -> str:
    """What the same recipe became with other seeds, if it was trained by any: how much is chance."""
    same = [other for other in screened if seedless(other.recipe) == seedless(row.recipe)]
    own, others = ([o for o in same if (o.label == row.label) is ours] for ours in (True, False))
    found = [(o.speedup.estimate, o.quality.value) for o in others if o.speedup and o.quality]
    here = own[0].quality
    if not found or here is None:
        return ""
    speedups, values = ((min(numbers), max(numbers)) for numbers in zip(*found, strict=True))
    fast, good = f"{speedups[0]:.2f} to {speedups[1]:.2f}", f"{values[0]:.4f} to {values[1]:.4f}"
    return (
        f" Trained by {len(found)} other seeds it is {fast} times as fast, and its {here.metric} {good} "
        f"on the search split, here {here.value:.4f}."
    )


def _not_judged(run: Run, row: Row, screened: Sequence[Row], winner: Row | None) -> str:
    """Of a row that was not chosen for the verdict: which clauses it missed already, or what was better."""
    missed = "; ".join(f"{check.clause}: {check.reason}" for check in rejected(run, row, screened))
    if missed:
        return f"It was not judged, since it missed clauses before: {missed}."
    if row.measurement is None:
        return "It was not judged: it was not timed."
    return f"It was not judged: {_beside(row, winner)}."


def _beside(row: Row, winner: Row | None) -> str:
    """How a row's speed-up compares with the winner's."""
    if winner is None or row.speedup is None or winner.speedup is None:
        return "others are better by the objective"
    ours, theirs = _times(row.speedup), _times(winner.speedup)
    return f"it is {ours} as fast as the strong baseline, and the winner {theirs}"


def _times(interval: Interval) -> str:
    return f"{interval.estimate:.2f} times ({_span(interval)})"


def _span(interval: Interval) -> str:
    low, high = (("unbounded" if b is None else f"{b:.4g}") for b in (interval.low, interval.high))
    return f"{low} to {high}"
