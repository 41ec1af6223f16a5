"""The search of one run: which rows to try next, and what their results tell the search."""

import itertools
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pareflow.catalog import complete
from pareflow.compiler import OnnxRuntime
from pareflow.errors import InputError, TimedOutError, VariantError
from pareflow.hardware.needs import Machine, held
from pareflow.model import QatInt8
from pareflow.search import Circumstances, Ended, Search, Trial, Wave, training_space
from pareflow.search.effort import Effort, level_of
from pareflow.search.halving import affordable
from pareflow.search.search import PREFLIGHT_MINUTES, ROUNDS
from pareflow.search.space import smaller, smallest, untrained, way_of
from pareflow.search.ties import plainer
from pareflow.search.trial import NOTICEABLE, best
from pareflow.sla import Objective
from pareflow.stages import fitting, taking
from pareflow.stages.building import is_made, needs_of
from pareflow.stages.optimization import strong_baseline, unrunnable
from pareflow.stages.room import check_room
from pareflow.stages.run import Row, Run
from pareflow.stages.screening import checks_of, cost_of, doubt, objective_value, original_of, over, share_of
from pareflow.variant import Recipe


@dataclass(frozen=True)
class Asked:
    """Rows to try next, and why in a line; only on one batch where it is a preflight.

    `listed` says that the user named them: what is not begun is shown too.
    """

    words: str
    rows: tuple[Row, ...]
    preflight: bool = False
    listed: bool = False


TIMES: tuple[Objective, ...] = ("latency_p50", "latency_p99", "throughput")
"""The objectives that shares of the time bound."""
SIZES: tuple[Objective, ...] = ("size", "peak_memory")

EARLY = 2
"""Verdicts before the end at most: each takes confidence from all others, and a minute or two."""
LONG = 20.0
"""Minutes. A search that may go on for so long, by training, has what is best so far judged and registered
first: the verdict takes a minute or two of them."""

Asking = Generator[Asked, Sequence[Row], Ended]
"""What to try; it is sent the rows as they became, of a preflight those that failed."""
Named = Generator[Asked, Sequence[Row], list[Row]]
"""The same, which returns what became of them."""


def searching(
    run: Run,
    baselines: Sequence[Row],
    profile: Mapping[str, Any] | None,
    machines: Sequence[Machine] = (),
) -> Asking:
    """The YAML's recipes; where it has none, the search's, which plans for these machines. Smaller ones yet
    where nothing fits the device.

    Raises: InputError where the objective is not measured here, EnvironmentUnfitError where the disk is too
    small for the candidates.
    """
    check_objective(run, baselines)
    check_room(run, baselines, sure_rows(run, baselines, profile))
    wanted = run.spec.recipes()
    rows: list[Row] = []
    if wanted is not None:
        rows += yield from _listed(run, baselines[0], _new(wanted, baselines))
        ended = Ended("the pipeline names its candidates")
    else:
        search = search_of(run, baselines, profile, machines)
        ended = yield from _searched(run, baselines, search, rows)
    if fitting.nothing_fits(run, [*baselines, *rows]):
        smaller = _new(last_resort(run), [*baselines, *rows])
        words = f"nothing fits the device yet: {len(smaller)} smaller variants"
        rows += yield Asked(words, smaller)
    return _nothing_tried(run, rows) or replace(ended, following=(*_late(rows), *ended.following))


def _listed(run: Run, strong: Row, rows: Sequence[Row]) -> Named:
    """The candidates that the pipeline names: what cannot run here, and what trains for long and fails on one
    batch, is told before hours are spent."""
    absent = {row.label: unrunnable(run, row.recipe) for row in rows}
    able = [row for row in rows if absent[row.label] is None]
    others = [replace(row, status="unavailable", reason=absent[row.label]) for row in rows if row not in able]
    effort = effort_of(run, strong)
    long = [row for row in able if effort.minutes(row.recipe) > PREFLIGHT_MINUTES and not is_made(run, row)]
    if long and run.late("the pipeline's own candidates on one batch"):
        long = []  # each is left out where it would begin
    of_them = "of the pipeline's own candidates, what"
    told = yield from _named(f"{of_them} cannot run here", others)
    told += yield from _named(f"{of_them} trains long, on one batch", long, preflight=True)
    unfit = {row.label for row in told}
    left = [row for row in able if row.label not in unfit]
    return told + (yield from _named("the pipeline's own candidates", left))


def _named(words: str, rows: Sequence[Row], *, preflight: bool = False) -> Named:
    """Rows that the user named, where there are any."""
    return list((yield Asked(words, tuple(rows), preflight, listed=True))) if rows else []


def _late(rows: Sequence[Row]) -> tuple[Recipe, ...]:
    """What was asked for when the budget was used up, and not begun."""
    return tuple(row.recipe for row in rows if row.status == "pruned")


def check_objective(run: Run, baselines: Sequence[Row]) -> None:
    """Raises: InputError where what is to be minimised could not be measured on the baseline."""
    try:
        objective_value(run.spec.objective, baselines[0])
    except VariantError as error:
        remedy = "Choose another `objective`, or run where it is measured"
        raise InputError(
            f"`objective: {run.spec.objective}` must be measured here", error.found, remedy
        ) from error


def _nothing_tried(run: Run, rows: Sequence[Row]) -> Ended | None:
    """What is said where no candidate was begun, or none can run here; None where some were."""
    recipes = tuple(row.recipe for row in rows)
    if rows and all(row.status == "unavailable" for row in rows):
        return Ended(f"none of {len(rows)} candidates can run here; of the first: {rows[0].reason}", recipes)
    if rows and all(row.status in ("pruned", "unavailable") for row in rows):
        used = run.spec.budget.minutes - run.minutes_left
        return Ended(
            f"no candidate was begun: the budget of {run.spec.budget.minutes:g} minutes was used up by the "
            f"baseline; raise `budget.minutes` above {used:.1f}",
            recipes,
        )
    return None


def last_resort(run: Run) -> list[Recipe]:
    """Small variants that the device runs and that can be made here."""
    found = map(complete, smallest(circumstances(run)))
    return [recipe for recipe in found if unrunnable(run, recipe) is None]


def first_rows(
    run: Run, known: Sequence[Row] = (), profile: Mapping[str, Any] | None = None, passes: int = 1
) -> list[Row]:
    """What can be named before anything was tried: the YAML's candidates; else the cheap ones, and where the
    search for trained ones starts, with so many `passes` of training; without those that are known."""
    wanted = run.spec.recipes()
    if wanted is not None:
        return list(_new(wanted, known))
    here = circumstances(run, profile, trainable="onnx" not in run.spec.workload)
    runtime = OnnxRuntime(threads=run.threads[0]).step
    trained = [
        Recipe((training_space.step(name, start, passes),), runtime)
        for name, settings in training_space.families(here).items()
        for start in training_space.first(settings)
    ]
    few = smaller(here) if here.smallest_wins else ()
    return list(_new([*untrained(here), *few, *trained], known))


def first_passes(run: Run, effort: Effort) -> int:
    """The passes that the search trains for first."""
    budget = run.spec.budget
    return affordable(effort, budget.minutes, budget.variant_minutes)[0]


def sure_rows(run: Run, known: Sequence[Row], profile: Mapping[str, Any] | None) -> list[Row]:
    """Of the first rows those that are made for sure: what can run here; of what the search trains, one. The
    strong baseline is the first of those that are known."""
    first = first_rows(run, known, profile, first_passes(run, effort_of(run, known[0])))
    found = [row for row in first if unrunnable(run, row.recipe) is None]
    if run.spec.candidates is not None:
        return found
    trained = [row for row in found if level_of(row.recipe) == "architecture"]
    return [row for row in found if row not in trained[1:]]


def circumstances(
    run: Run, profile: Mapping[str, Any] | None = None, *, trainable: bool = True
) -> Circumstances:
    """What the space of a run depends on. Only a profile tells whether there are shortcuts, and whether a
    network over anything else than tokens attends: a classifier's last softmax is one, and not many."""
    facts, spec = run.facts, run.spec
    nodes = {} if profile is None else profile["graph"]["before"]
    return Circumstances(
        threads=run.threads,
        transformer=facts.tokens or nodes.get("Softmax", 0) > 1,
        students=facts.students,
        trainable=trainable,
        shortcuts=nodes.get("Add", 0) > 0,
        profile=spec.target.profile,
        chosen=spec.space,
        max_drop=run.share_lost,
        smallest_wins=spec.objective in SIZES,
        size_bounded=spec.sla.size is not None or spec.sla.memory is not None,
        varied=facts.varied,
    )


def _searched(run: Run, baselines: Sequence[Row], search: Search, rows: list[Row]) -> Asking:
    """The search's waves as rows; all that were tried are appended to `rows`."""
    waves = search.waves()
    told: Mapping[str, Trial] | None = None
    while True:
        try:
            wave = next(waves) if told is None else waves.send(told)
        except StopIteration as end:
            found: Ended = end.value
            return found
        asked = _new(map(complete, wave.recipes), [*baselines, *rows])
        tried = yield Asked(wave.words, asked, wave.preflight)
        rows += tried
        told = _told(run, wave, [*baselines, *rows], baselines)


def search_of(
    run: Run,
    baselines: Sequence[Row],
    profile: Mapping[str, Any] | None,
    machines: Sequence[Machine] = (),
) -> Search:
    """The search for this run's baselines, told of the strong ones. It plans for these machines; without any,
    for one recipe at a time."""
    strong, original = baselines[0], original_of(baselines)
    here = circumstances(run, profile, trainable=original.role == "original")
    looks = itertools.count(1)
    return Search(
        here=here,
        effort=effort_of(run, strong),
        minutes=run.spec.budget.minutes,
        minutes_left=lambda: run.left(f"look {next(looks)} of the search"),
        seed=run.facts.seed,
        file=run.output / "study.log",
        recipe_minutes=run.spec.budget.variant_minutes,
        beside=_beside(run, machines) if machines else 1,
        families=_shares(profile) if run.spec.objective in TIMES else {},
        takes=lambda: taking.takes(run, here),
        known=[trial_of(run, row, baselines) for row in _strong(baselines)],
    )


def _beside(run: Run, machines: Sequence[Machine]) -> int:
    """How many of a round these machines build side by side; what a run began with holds when it goes on."""
    trained = Recipe((QatInt8().step,), OnnxRuntime(threads=run.threads[0]).step)
    return run.settled("built side by side", held([needs_of(run, trained)] * ROUNDS[-1], machines))


def _strong(baselines: Sequence[Row]) -> list[Row]:
    """The strong baseline of each thread count, the first one first."""
    return [row for row in baselines if row.role == "baseline"]


def effort_of(run: Run, strong: Row) -> Effort:
    """What training is expected to take, by how fast the strong baseline answers."""
    assert strong.measurement is not None  # baselines are timed
    per_sample = strong.measurement.quantile_ms(0.5) / run.spec.sla.batch_size
    return Effort.of(run.facts.sizes["train"], per_sample)


def _shares(profile: Mapping[str, Any] | None) -> dict[str, float]:
    """The share of inference that each family can touch: what is timed is inference alone."""
    if profile is None:
        return {}
    of_request = {row["family"]: row["share"] for row in profile["advice"]["families"]}
    inference = of_request["distillation"]
    return {name: min(share / inference, 1.0) for name, share in of_request.items()} if inference else {}


def _new(recipes: Iterable[Recipe], known: Iterable[Row]) -> tuple[Row, ...]:
    """A row per recipe, each once, and none that is known already."""
    before = {row.label for row in known}
    rows = {row.label: row for row in map(Row, map(complete, recipes))}
    return tuple(row for label, row in rows.items() if label not in before)


def _told(run: Run, wave: Wave, rows: Sequence[Row], baselines: Sequence[Row]) -> dict[str, Trial]:
    """What became of a wave's recipes, by the labels that the search gave them."""
    known = {row.label: row for row in rows}
    found = [(recipe, known.get(Row(complete(recipe)).label)) for recipe in wave.recipes]
    return {recipe.label: trial_of(run, row, baselines, recipe) for recipe, row in found if row is not None}


def trial_of(run: Run, row: Row, baselines: Sequence[Row], recipe: Recipe | None = None) -> Trial:
    """A row as the search sees it: the objective over its strong baseline's, and how far the SLA is."""
    minutes = None if row.build_s is None else row.build_s / 60
    reason = None if row.status == "ok" else row.reason
    late = reason is not None and reason.startswith(TimedOutError.__name__)
    stopped = late and row.build_s is None  # what was built hung later, as while it was timed
    trial = Trial(recipe or row.recipe, minutes=minutes, reason=reason, stopped=stopped)
    if row.status != "ok" or row.measurement is None:
        return trial
    trial = replace(trial, cost=cost_of(run, row, baselines))
    excess = excess_of(run, row, baselines)
    if excess is None:
        return trial
    lost = sum(much for clause, much in excess.items() if clause.startswith("quality."))
    return replace(trial, excess=sum(excess.values()), lost=lost)


@dataclass
class Contest:
    """What a row must beat to become the best: the best so far of those that pass, baselines among them."""

    run: Run
    baselines: Sequence[Row]
    leader: Trial | None = None

    def __post_init__(self) -> None:
        for row in _strong(self.baselines):
            self.ran(row)

    def needed(self, row: Row) -> float | None:
        """How many times as fast as its strong baseline a row must be to become the best, or to stand for it
        in a tie; None if unknown.

        Known where the median latency is what is minimised, and something passes.
        """
        if self.run.spec.objective != "latency_p50" or self.leader is None or self.leader.cost is None:
            return None
        own = strong_baseline(row, self.baselines)
        as_good = share_of(self.run, own, self.baselines[0]) / self.leader.cost
        return as_good / NOTICEABLE if plainer(row.recipe, self.leader.recipe) else as_good

    def ran(self, row: Row) -> None:
        """A row as it was timed."""
        found = trial_of(self.run, row, self.baselines)
        self.leader = best([found] if self.leader is None else [self.leader, found])


def first_to_register(run: Run, asked: Asked, contest: Contest, failed: Sequence[Recipe] = ()) -> bool:
    """Whether what is best so far is worth a version before the search goes on with this; `failed` are those
    that were judged for that before, and did not pass.

    Not under a load, which the served path keeps: its plan is tuned at the end; nor where the pipeline names
    its candidates.
    """
    leader = contest.leader
    if asked.preflight or asked.listed or run.spec.sla.load is not None or len(failed) >= EARLY:
        return False
    if leader is not None and of_ways(failed, leader.recipe):
        return False
    unaided = min(cost_of(run, row, contest.baselines) for row in _strong(contest.baselines))
    if leader is None or leader.cost is None or leader.cost >= unaided:
        return False
    trains = any(level_of(row.recipe) == "architecture" for row in asked.rows)
    look = "a first version" if not failed else f"first version {len(failed) + 1}"
    return trains and run.left(look) >= LONG


def of_ways(known: Iterable[Recipe], recipe: Recipe) -> bool:
    """Whether a recipe is one of these networks, whatever its runtime is set to: they answer alike."""
    return way_of(recipe) in [way_of(one) for one in known]


def excess_of(run: Run, row: Row, baselines: Sequence[Row]) -> dict[str, float] | None:
    """Per clause of the SLA, by how much its estimate exceeds the limit: quality in its metric, all else as a
    share. Of a loss what the verdict is expected to doubt counts too: a bet is no pass. The clause of load is
    not among them. None where quality is not known.
    """
    if run.spec.sla.quality is not None and row.quality is None:
        return None
    found = checks_of(run, row, baselines)
    doubts = (doubt(run, check) for check in found)
    return {check.clause: over(check, much) for check, much in zip(found, doubts, strict=True)}
