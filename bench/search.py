"""The search beside an exhaustive grid of the same space: how near it comes, in which share of the time.

Both start from the same trained network and its baseline, each in a data folder of its own, and build and
time one candidate after the other. The grid has no time limit: it tries all that needs no training, and
trains every point as long as the search's last rung, or as that may have been where nothing was trained. What
follows the training are the ways that the grid itself finds fastest, as many as the search goes on from, and
those that the search trained towards; all would be several times as many points. The best of either is the
fastest that meets the SLA's estimates. The space is `search.yaml`'s. Names of workloads on the command line
run those alone.
"""

import math
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import yaml
from claims import Claim, main
from pipeline_run import DATA_DIR

from pareflow import spec
from pareflow.catalog import complete
from pareflow.intervals import speedup
from pareflow.measuring.arena import Protocol
from pareflow.search import space, training_space
from pareflow.search.halving import affordable
from pareflow.search.search import FINISHES
from pareflow.search.trial import Trial, best
from pareflow.stages import baseline, optimization, profiling, searching
from pareflow.stages.clock import Meter
from pareflow.stages.jobs import original
from pareflow.stages.run import Row, Run
from pareflow.stages.timing import measure as timed
from pareflow.store import Store
from pareflow.variant import Recipe

CONFIGS = Path(__file__).parents[1] / "configs"
WORKLOADS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
WITHIN = 1.05
"""The search's best may take so many times as long as the grid's."""
SHARE = 0.25
"""Of the grid's time, that the search may take."""
BOOKKEEPING = 0.03
"""Share of the run that planning and sampling may take."""


@dataclass
class Tried:
    """What one way of searching tried, its seconds in all, and those not spent on building and timing."""

    rows: list[Row]
    seconds: float
    own_seconds: float = 0.0


def measure(name: str, quick: bool) -> Iterator[Claim]:
    """One workload's rows; `quick` runs no grid beside the search."""
    path, folder, wanted = CONFIGS / name / "pipeline.yaml", DATA_DIR / f"search-{name}", WORKLOADS[name]
    shutil.rmtree(folder, ignore_errors=True)
    budget = {"budget": {"minutes": wanted["minutes"], "variant_minutes": wanted["minutes"]}}
    described = {**spec.read(path).to_json(), **budget, "space": wanted["space"]}
    described["workload"]["file"]["settings"] |= wanted.get("settings", {})
    run = Run.open(spec.parse(described, str(path)), path, folder / "ours")
    _bring_original(run)
    baselines = baseline.baseline(run)
    profile = profiling.profile(run, baselines)
    grid = replace(run, data_dir=shutil.copytree(run.data_dir, folder / "grid"), meter=Meter(math.inf))
    ours = _searched(replace(run, meter=Meter()), baselines, profile)
    found, own = _best(run, ours.rows, baselines), ours.own_seconds / ours.seconds
    best_found = "nothing" if found is None else found.label
    note = f"{len(ours.rows)} candidates in {ours.seconds:.0f} s; found {best_found}"
    yield Claim(f"{name}: the search's own time", BOOKKEEPING, own, "share", 1, "at most", note=note)
    if not quick:
        yield from _beside_the_grid(name, grid, baselines, ours, found)


def _beside_the_grid(
    name: str, run: Run, baselines: Sequence[Row], ours: Tried, found: Row | None
) -> Iterator[Claim]:
    """How near the search came to the grid, and in which share of its time; where it found nothing both are
    rows all the same, and not measured."""
    best_of = f"{name}: best of the search over the grid's"
    nearness = Claim(best_of, WITHIN, None, "× the latency", 0, "at most")
    taken = Claim(f"{name}: time of the search", SHARE, None, "of the grid's", 0, "at most")
    if found is None:
        note = "the search found nothing that meets the SLA"
        yield from (replace(claim, note=note) for claim in (nearness, taken))
        return
    theirs = _exhaustive(run, baselines, ours.rows)
    other = _best(run, theirs.rows, baselines)
    assert other is not None  # what the search found is a point of the grid, or without training
    yield _compared(nearness, run, found, other)
    note = f"grid: {len(theirs.rows)} candidates in {theirs.seconds:.0f} s"
    yield replace(taken, measured=ours.seconds / theirs.seconds, samples=1, note=note)


def _bring_original(run: Run) -> None:
    """The trained network, where other benchmarks have trained it already."""
    variant = original(run.facts.digest).id
    trained = Store(DATA_DIR / "store").find(variant)
    if trained is not None:
        run.store.bring(variant, trained)


def _searched(run: Run, baselines: Sequence[Row], profile: dict[str, object]) -> Tried:
    """What the search tries, asked and told as the flow does it."""
    rows, working, began = list[Row](), 0.0, time.monotonic()
    asking, contest = searching.searching(run, baselines, profile), searching.Contest(run, baselines)
    asked = next(asking)
    with suppress(StopIteration):
        while True:
            before = time.monotonic()
            if asked.preflight:
                flown = [optimization.preflight(run, row) for row in asked.rows]
                done = [row for row in flown if row.status != "ok"]
            else:
                done = [_tried(contest, row) for row in asked.rows]
            working += time.monotonic() - before
            rows += done
            asked = asking.send(done)
    seconds = time.monotonic() - began
    return Tried(rows, seconds, seconds - working)


def _tried(contest: searching.Contest, row: Row) -> Row:
    run, row = contest.run, optimization.begun(contest.run, row, "make")
    made = optimization.kept(run, optimization.make(run, row), "make") if row.status == "ok" else row
    timed = optimization.time(run, made, contest.baselines, contest.needed(made))
    contest.ran(timed)
    return timed


def _exhaustive(run: Run, baselines: Sequence[Row], rows: Sequence[Row]) -> Tried:
    """Every point of the space: without training; and each setting of each technique, trained as long as the
    search's longest, or as it may have been, with each finish."""
    here = searching.circumstances(run, trainable=baselines[-1].role == "original")
    families = training_space.families(here)
    trained = [
        row.recipe for row in rows if row.recipe.techniques and row.recipe.techniques[0].name in families
    ]
    passes = [int(recipe.techniques[0].settings["epochs"]) for recipe in trained]
    epochs = max(passes, default=_longest(run, baselines[0]))
    began, contest, tried = time.monotonic(), searching.Contest(run, baselines), list[Row]()

    def attempt(recipe: Recipe) -> Row:
        tried.append(_tried(contest, Row(complete(recipe))))
        minutes = (time.monotonic() - began) / 60
        print(f"grid: {len(tried)} candidates in {minutes:.1f} minutes", file=sys.stderr)
        return tried[-1]

    for recipe in space.untrained(here):
        attempt(recipe)
    finishes = [Recipe(r.techniques[1:], r.backend) for r in trained]
    finishes += _fastest_ways(searching.trial_of(run, row, baselines) for row in (baselines[0], *tried))
    for finish in {one.label: one for one in finishes}.values():
        plain = space.unfused(finish.techniques)
        for name, settings in families.items():
            for chosen in training_space.grid(settings):
                first = training_space.step(name, chosen, epochs)
                row = attempt(Recipe((first, *finish.techniques), finish.backend))
                if row.status != "ok" and plain != finish.techniques:
                    attempt(Recipe((first, *plain), finish.backend))
    return Tried(tried, time.monotonic() - began)


def _longest(run: Run, strong: Row) -> int:
    """The passes that the search may train for at most, by its first estimate of what one takes."""
    return affordable(searching.effort_of(run, strong), run.spec.budget.minutes, math.inf)[-1]


def _fastest_ways(trials: Iterable[Trial]) -> list[Recipe]:
    """Of those that meet the SLA's estimates the fastest of each way, and of the ways as many as the search
    goes on from."""
    found: dict[str, Recipe] = {}
    for trial in sorted((t for t in trials if t.passes), key=lambda t: t.cost or 0):
        found.setdefault(space.way_of(trial.recipe).label, trial.recipe)
    return list(found.values())[:FINISHES]


def _best(run: Run, rows: Sequence[Row], baselines: Sequence[Row]) -> Row | None:
    trials = {id(row): searching.trial_of(run, row, baselines) for row in rows}
    chosen: Trial | None = best(trials.values())
    return next((row for row in rows if trials[id(row)] is chosen), None)


def _compared(claim: Claim, run: Run, found: Row, other: Row) -> Claim:
    """How much longer the search's best takes than the grid's, timed again side by side."""
    rows = [optimization.make(run, row) for row in (found, other)]
    measured = timed(run, rows, Protocol(blocks=60))
    slower = speedup(measured[str(rows[0].id)], measured[str(rows[1].id)])
    return replace(
        claim,
        measured=slower.estimate,
        samples=slower.samples,
        low=slower.low,
        high=slower.high,
        note=f"{found.label} beside {other.label}",
    )


if __name__ == "__main__":
    main("search", {name: partial(measure, name) for name in WORKLOADS})
