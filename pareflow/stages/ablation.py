"""What each step of the winner contributes: the winner beside itself without that step, both measured."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from pareflow.catalog import members
from pareflow.compiler import OnnxRuntime
from pareflow.errors import PareflowError, SpecError
from pareflow.gate import drop_interval
from pareflow.intervals import speedup
from pareflow.search import Trial
from pareflow.search.effort import Effort
from pareflow.spec import check_recipe
from pareflow.stages import optimization
from pareflow.stages.baseline import SCREENING
from pareflow.stages.building import evaluate, is_made
from pareflow.stages.run import Row, Run
from pareflow.stages.searching import effort_of
from pareflow.stages.timing import measure
from pareflow.variant import Recipe

NO_TIME = "not measured: it would be trained anew, and there was no time left for that"


def ablations(run: Run, winner: Row | None, known: Sequence[Row], *, stopped: bool = False) -> list[Row]:
    """A row per step of the winner, made without it; the backend gives way to plain ONNX Runtime.

    None where no candidate won, where the rest of the recipe cannot run, where it is known already, or where
    it must be trained: longer than what is left of the budget, or at all in a run that was `stopped`.
    """
    if winner is None or winner.role != "candidate":
        return []
    rows = [Row(recipe, "ablation") for _, recipe in _without(winner.recipe)]
    labels = {row.label for row in known}
    new = [r for r in rows if r.label not in labels and optimization.unrunnable(run, r.recipe) is None]
    return _in_time(run, winner, new, known, stopped) if new else []


def _in_time(run: Run, winner: Row, rows: Sequence[Row], known: Sequence[Row], stopped: bool) -> list[Row]:
    """The rows but for those that train anew, as far as the time left is not expected to suffice for them."""
    effort, found = _effort(run, known), list[Row]()
    left = 0.0 if stopped else run.left(f"the winner {winner.label} without its steps")
    for row in rows:
        needed = 0.0 if is_made(run, row) or not effort.trains(row.recipe) else effort.minutes(row.recipe)
        if needed <= max(left, 0):
            found.append(row)
            left -= needed
    return found


def _effort(run: Run, known: Sequence[Row]) -> Effort:
    """What training takes, as seen in this run."""
    seen = [Trial(row.recipe, minutes=row.build_s / 60) for row in known if row.build_s is not None]
    return effort_of(run, known[0]).corrected(seen)


def contributions(run: Run, winner: Row | None, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Per step: `step`, `without` (the recipe), `speedup` and `quality_lost` by it, `size` with over without.

    `rows` are those known and the ablations, with their quality on the search split. What could not be made
    or timed has its `reason`, and no numbers.
    """
    if winner is None or winner.role != "candidate":
        return []
    known = {row.label: row for row in rows}
    return [
        {
            "step": step,
            "without": Row(recipe).label,
            **_contribution(run, winner, recipe, known.get(Row(recipe).label)),
        }
        for step, recipe in _without(winner.recipe)
    ]


def _without(recipe: Recipe) -> list[tuple[str, Recipe]]:
    """Each step's label, with the recipe that lacks it; none whose forms do not follow each other."""
    labels = [member.label for member in members(recipe)]
    steps = recipe.techniques
    shorter = [Recipe((*steps[:i], *steps[i + 1 :]), recipe.backend) for i in range(len(steps))]
    plain = OnnxRuntime(threads=int(recipe.backend.settings.get("threads", 1))).step
    found = [*zip(labels, shorter, strict=False), (labels[-1], Recipe(steps, plain))]
    return [(label, less) for label, less in found if less != recipe and _runs(less)]


def _runs(recipe: Recipe) -> bool:
    try:
        check_recipe(recipe)
    except SpecError:
        return False
    return True


def _contribution(run: Run, winner: Row, recipe: Recipe, without: Row | None) -> dict[str, Any]:
    unknown: dict[str, Any] = {"speedup": None, "quality_lost": None, "size": None, "reason": None}
    if without is None:
        able = optimization.unrunnable(run, recipe) is None
        return {**unknown, "reason": NO_TIME if able else "it cannot run here without this step"}
    if without.status != "ok" or without.size_mib is None or winner.size_mib is None:
        return {**unknown, "reason": without.reason}
    try:
        found = measure(run, [without, winner], SCREENING)
    except PareflowError as error:
        return {**unknown, "reason": optimization.failed(without, error).reason}
    lost = drop_interval(without.quality, _on_search(run, winner).quality, run.spec.sla.confidence)
    return {
        "speedup": speedup(found[str(without.id)], found[str(winner.id)]).bounds(),
        "quality_lost": None if lost is None else lost.bounds(),
        "size": winner.size_mib / without.size_mib,
        "reason": None,
    }


def _on_search(run: Run, winner: Row) -> Row:
    """The winner with its quality on the search split, where the others were evaluated."""
    once = dataclasses.replace(run, remeasure=False)  # the search has evaluated it
    return evaluate(once, dataclasses.replace(winner, quality=None), "search")
