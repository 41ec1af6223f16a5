"""Which recipes are tried, in which order, and when to stop: cheap and strong first, then trained ones.

The search asks for waves of recipes and is told what became of them. It draws by its seed, and reads the
clock only to leave out what cannot be done in time: told the same, it asks the same. So a run that was killed
goes on by asking all again, which the store answers at once.
"""

import itertools
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pareflow.catalog import installed_version
from pareflow.compiler import OnnxRuntime
from pareflow.search import bounds, space, training_space
from pareflow.search.effort import LEVELS, Effort, epochs_of, level_of
from pareflow.search.halving import ETA, OF_LIMIT, PASSES, affordable, survivors
from pareflow.search.ties import plainest, tied
from pareflow.search.trial import Trial, best, better, gained, nearest
from pareflow.variant import Recipe, Step

if TYPE_CHECKING:
    from pareflow.search.study import Study

ROUNDS = (2, 3, 5, 9)
"""Recipes with training that are begun together: as many of these as half of the budget suffices for."""
FINISHES = 2
"""Ways to quantize and run a network that are tried after training: the best two without it."""
NEAR = 1.5
"""How many times as long as the best one another way may take for its runtime's settings to be tried too."""
SETTINGS = 1 / 4
"""Share of the time left that trying runtimes' settings may take: training gains more."""
REPAIRS = 1 / 2
"""Share of the time left that the first repairs may take: some of them train."""
LEAST = 2
"""Recipes of a round at least, where the time left suffices; and as many as are built side by side."""
PATIENCE = 2
"""Rounds that may bring nothing better, or nearer, before the search ends."""
SEEDS = 2
"""Other seeds that the best recipe with training is trained by again: how much of it is chance."""
PREFLIGHT_MINUTES = 1.0
"""What is expected to take longer runs on one batch first; what takes less is its own preflight."""


@dataclass(frozen=True, slots=True)
class Wave:
    """Recipes to try next, and why in a line; only on one batch where it is a preflight."""

    words: str
    recipes: tuple[Recipe, ...]
    preflight: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """Why the search ended, and what it would have tried next. What it left out: as hopeless, each recipe
    with how many times as fast as the strong baseline it can be at most; as too long for the limit of one
    recipe, each with the minutes that it is expected to take."""

    words: str
    following: tuple[Recipe, ...] = ()
    hopeless: tuple[tuple[Recipe, float], ...] = ()
    too_long: tuple[tuple[Recipe, float], ...] = ()


Told = Mapping[str, Trial]
"""What became of a wave's recipes, by their labels; those that were known before may be missing."""
Waves = Generator[Wave, Told, Ended]


@dataclass
class Search:
    """A search over one space. `waves` runs it.

    `effort` is what training is expected to take, `minutes` the budget, `file` where the study is shown,
    `recipe_minutes` when building one recipe is stopped, `beside` how many of a wave are built side by side,
    `families` the share of the time that each family of techniques can touch, where the objective is a time;
    `takes` finds out, once something trains, what `training_space.takers` take of the network, by label;
    `known` holds the strong baselines first, and all trials as they come in.
    """

    here: space.Circumstances
    effort: Effort
    minutes: float
    minutes_left: Callable[[], float]
    seed: int
    file: Path
    recipe_minutes: float = math.inf
    beside: int = 1
    families: Mapping[str, float] = field(default_factory=dict)
    takes: Callable[[], Mapping[str, Any]] = dict
    known: list[Trial] = field(default_factory=list)
    _hopeless: list[tuple[Recipe, float]] = field(default_factory=list, init=False)
    _put_off: dict[str, Recipe] = field(default_factory=dict, init=False)
    """By the label of what was asked for, what one recipe's limit allows of it."""
    _cut_off: list[Recipe] = field(default_factory=list, init=False)

    def waves(self) -> Waves:
        """What to try, wave by wave; each is answered by what became of it."""
        techniques = yield from self._suitable(training_space.families(self.here))
        yield from self._tried("without training, what takes least effort first", self._cheap())
        smaller = self._in_time(self._smaller())
        yield from self._tried("the same network in fewer bits yet", smaller)
        repairs = self._in_time(self._repairs(), REPAIRS, space.in_fewer_passes)
        yield from self._tried("to give back the quality that was lost", repairs)
        settings = self._in_time(self._settings(), SETTINGS)
        yield from self._tried("with other settings of the best ones' runtimes", settings)
        if not techniques:
            return self._ended("no technique that trains suits this network")
        if installed_version("optuna") is None:
            return self._ended("recipes that train are chosen by Optuna: install pareflow[training]")
        from pareflow.search.study import Study

        study = Study(techniques, self._finishes(), self.seed, self.takes())
        ended = yield from self._rounds(study)
        study.write(self.file)
        mended = self._in_time(self._repairs(), briefer=space.in_fewer_passes)
        yield from self._tried("to give back the quality that training has lost", mended)
        again = self._in_time(self._by_other_seeds())
        yield from self._tried("the best one trained by other seeds: how much is chance", again)
        return self._ended(ended.words, ended.following)

    def _ended(self, words: str, following: Sequence[Recipe] = ()) -> Ended:
        """The end, with what there was no time for, as far as it would still be asked for: what is better may
        have come since. Apart, what takes longer than one recipe may."""
        asked = (*self._repairs(), *self._smaller(), *self._settings(), *self._by_other_seeds())
        put_off = (self._put_off[r.label] for r in asked if r.label in self._put_off)
        tried, effort = {trial.recipe.label for trial in self.known}, self._effort_now()
        left = {r.label: r for r in (*self._cut_off, *put_off, *following) if r.label not in tried}
        minutes = {label: effort.minutes(recipe) for label, recipe in left.items()}
        long = [label for label in left if minutes[label] > self.recipe_minutes]
        return Ended(
            words,
            tuple(recipe for label, recipe in left.items() if label not in long),
            tuple(self._hopeless),
            tuple((left[label], minutes[label]) for label in long),
        )

    def _rounds(self, study: "Study") -> Generator[Wave, Told, Ended]:
        """Round by round what Optuna suggests, for as long as that brings something better in time; or nearer
        to the limits, where nothing meets them.

        A round takes about half of the time left, so that another can go on from what it found; what does
        not fit in is put off to the next.
        """
        idle, put_off = 0, list[Recipe]()
        while idle < PATIENCE:
            before = nearest(self.known)
            asked = self._promising(study, put_off)
            if not asked:
                return Ended("every recipe of the space that could help, and trains in time, was tried")
            now, put_off = self._fitting(asked)
            if not now:
                following = tuple(training_space.trained_for(r, self._rungs()[0]) for r in asked)
                return Ended(self._no_time_for(following), following)
            study.write(self.file)
            reached = yield from self._halved(now)
            for recipe in now:
                study.tell(recipe, reached.get(recipe.label, Trial(recipe)))
            idle = 0 if gained(nearest(self.known), before) else idle + 1
        following = tuple(training_space.trained_for(r, self._rungs()[0]) for r in put_off)
        lacking = "better" if best(self.known) else "nearer to the limits of the SLA, which nothing meets yet"
        return Ended(f"{PATIENCE} rounds of training in a row brought nothing {lacking}", following)

    def _no_time_for(self, following: Sequence[Recipe]) -> str:
        """Why none of these is begun."""
        left = self.minutes_left()
        if left <= 0:
            return f"the budget of {self.minutes:g} minutes was used up"
        needed = min(map(self._effort_now().minutes, following))
        return f"what comes next takes about {needed:.3g} minutes, and {left:.3g} are left"

    def _tried(self, words: str, recipes: Sequence[Recipe]) -> Generator[Wave, Told, dict[str, Trial]]:
        """What became of a wave, by label; it is known from now on."""
        if not recipes:
            return {}
        told = dict((yield Wave(words, tuple(recipes))))
        self.known += told.values()
        return told

    def _cheap(self) -> list[Recipe]:
        """What needs no training: the least effort first, a device's other runtimes, slow to build, last."""
        others = {recipe.label for recipe in space.for_device(self.here.profile)}
        found = space.untrained(self.here)
        return sorted(found, key=lambda recipe: (recipe.label in others, LEVELS.index(level_of(recipe))))

    def _settings(self) -> list[Recipe]:
        """All other settings of its runtime together, for each way that comes near the best; then the best
        one's one by one."""
        ways = _each_way(t for t in self.known if t.passes)
        near = [way for way in ways if way.cost is not None and way.cost <= NEAR * (ways[0].cost or 0)]
        found = [settings for way in near if (settings := space.settings(way.recipe, self.here))]
        together = [settings[-1] for settings in found]
        return [*together, *(found[0][:-1] if found else ())]

    def _smaller(self) -> tuple[Recipe, ...]:
        """What is smaller than the cheap ways: where that wins, or size is bounded and nothing passes."""
        here = self.here
        wanted = here.smallest_wins or (here.size_bounded and best(self.known) is None)
        return space.smaller(here) if wanted else ()

    def _repairs(self) -> list[Recipe]:
        """Repairs of what is faster than all that passes, and loses too much: of what loses least, as far as
        there are any, and none that was tried, in fewer passes either."""
        leader, tried = best(self.known), {trial.recipe.label for trial in self.known}
        lossy = [t for t in self.known if t.lost and better(t.cost, leader)]
        lossy.sort(key=lambda trial: (trial.lost or 0, trial.cost or 0))
        repairs = [found for t in lossy if (found := space.repairs(t.recipe, self.here))]
        of_each = {r.label: r for r in itertools.chain(*repairs[:FINISHES])}
        ways = ((r, *space.in_fewer_passes(r)) for r in of_each.values())
        return [way[0] for way in ways if tried.isdisjoint(one.label for one in way)]

    def _by_other_seeds(self) -> tuple[Recipe, ...]:
        """The best recipe by other seeds, where it trains."""
        leader = best(self.known)
        seeds = range(self.seed + 1, self.seed + 1 + SEEDS)
        return () if leader is None else training_space.by_seeds(leader.recipe, seeds)

    def _in_time(
        self,
        recipes: Sequence[Recipe],
        share: float = 1,
        briefer: Callable[[Recipe], Sequence[Recipe]] = lambda _: (),
    ) -> list[Recipe]:
        """Those of them, in their order, that this share of the time left is expected to suffice for, each
        within the limit of one recipe, or the first of its `briefer` ways for which it does; the others are
        put off."""
        effort, left = self._effort_now(), self.minutes_left() * share
        found, minutes = list[Recipe](), list[float]()
        for recipe in recipes:
            ways = (recipe, *briefer(recipe))
            allowed = [way for way in ways if effort.minutes(way) <= self.recipe_minutes]
            fitting = (way for way in allowed if self._together([*minutes, effort.minutes(way)]) <= left)
            one = next(fitting, None)
            if one is None:
                self._put_off[recipe.label] = (allowed or ways)[0]
            else:
                found.append(one)
                minutes.append(effort.minutes(one))
        return found

    def _together(self, minutes: Sequence[float]) -> float:
        """What a wave takes whose recipes take so long: of those that are built side by side, the longest."""
        return sum(max(minutes[i : i + self.beside]) for i in range(0, len(minutes), self.beside))

    def _finishes(self) -> list[Recipe]:
        """The best ways without training: those that exceed the SLA's limits least, the fastest first."""
        plain = (t for t in self.known if level_of(t.recipe) != "architecture")
        return [way.recipe for way in _each_way(plain)[:FINISHES]]

    def _suitable(
        self, techniques: Mapping[str, training_space.Settings]
    ) -> Generator[Wave, Told, dict[str, training_space.Settings]]:
        """The techniques that suit the network: seen on one batch, where training takes long.

        One that fails where its search starts may yet suit with as little taken away as it is tried with.
        """
        left = self.minutes_left()
        long = [n for n, s in techniques.items() if PREFLIGHT_MINUTES < self._least_minutes(n, s) <= left]
        middle, mildest = (
            {name: training_space.probe(name, techniques[name], mildest=mild) for name in long}
            for mild in (False, True)
        )
        failed = yield from self._failing("what trains long, on one batch", middle)
        again = {name: mildest[name] for name in failed if mildest[name] != middle[name]}
        still = yield from self._failing("what failed of that, as mild as it is tried", again)
        unfit = {name for name in failed if name not in again or name in still}
        return {name: settings for name, settings in techniques.items() if name not in unfit}

    def _failing(self, words: str, probes: Mapping[str, Step]) -> Generator[Wave, Told, list[str]]:
        """The techniques whose probes fail on one batch."""
        if not probes:
            return []
        runtime = OnnxRuntime(threads=self.here.threads[0]).step
        recipes = {name: Recipe((step,), runtime) for name, step in probes.items()}
        told = yield Wave(words, tuple(recipes.values()), preflight=True)
        return [n for n, r in recipes.items() if r.label in told and told[r.label].reason is not None]

    def _least_minutes(self, name: str, settings: training_space.Settings) -> float:
        """What a technique takes in the first rung."""
        step = training_space.step(name, next(training_space.first(settings)), self._rungs()[0])
        return self.effort.minutes(Recipe((step,), OnnxRuntime().step))

    def _promising(self, study: "Study", put_off: Sequence[Recipe]) -> list[Recipe]:
        """What goes on from the best, or the nearest, and from what loses too much; what was put off; others;
        as far as they could become faster.

        A device's own rates bound nothing: costs are of this machine.
        """
        effort, passes = self._effort_now(), self._rungs()
        each = effort.build_minutes + passes[-1] * effort.epoch_minutes * len(passes) / ETA
        counts = (n for n in ROUNDS if math.ceil(n / self.beside) * each <= self.minutes / 2)
        count = max(counts, default=ROUNDS[0])
        leader = best(self.known)
        near = [] if (start := nearest(self.known)) is None else study.beside(start.recipe)
        near += self._milder(study, leader)
        asked = [*near, *put_off, *study.ask(count - len(near) - len(put_off))]
        while asked:
            found = [recipe for recipe in asked if self._may_help(recipe, study, leader)]
            if found:
                return found
            asked = study.ask(count)
        return []

    def _may_help(self, recipe: Recipe, study: "Study", leader: Trial | None) -> bool:
        """Whether a recipe could become the best, and its training end in time; the study is told if not."""
        bound = bounds.at_most(recipe, self.known[0].recipe.backend, None, self.families)
        if bound is not None and not better(1 / bound, leader):
            self._hopeless.append((recipe, bound))
        elif not self._too_slow(recipe):
            return True
        study.tell(recipe, Trial(recipe))
        return False

    def _milder(self, study: "Study", leader: Trial | None) -> list[Recipe]:
        """Steps back from what would be better than the best and loses too much: what loses least first.

        Where nothing passes yet, what exceeds other limits by more would only get further from those.
        """
        lossy = [t for t in self.known if t.lost and better(t.cost, leader)]
        if leader is None:
            lossy = [t for t in lossy if 2 * (t.lost or 0) > (t.excess or 0)]
        lossy.sort(key=lambda trial: trial.lost or 0)
        found = list[Recipe]()
        for trial in lossy:
            found += study.milder(trial.recipe, FINISHES - len(found)) if len(found) < FINISHES else []
        return found

    def _too_slow(self, recipe: Recipe) -> bool:
        """Whether its technique was stopped by its limit of time, in no more passes than it begins with."""
        first = training_space.trained_for(recipe, self._rungs()[0])
        stopped = (t.recipe for t in self.known if t.stopped and t.recipe.techniques)
        return any(
            training_space.kind(before.techniques[0]) == training_space.kind(first.techniques[0])
            and epochs_of(before) <= epochs_of(first)
            for before in stopped
        )

    def _fitting(self, asked: Sequence[Recipe]) -> tuple[list[Recipe], list[Recipe]]:
        """As many, in their order, as half of the time left is expected to suffice for, and the others.

        A rung trains a third of the recipes three times as long: each takes about as long as the first. As
        many as are built side by side, and two, are begun where the time left suffices for them in the first
        rung, or as many of these as it suffices for.
        """
        effort, rungs_now, left = self._effort_now(), self._rungs(), self.minutes_left()
        minutes = [effort.minutes(training_space.trained_for(r, rungs_now[0])) for r in asked]
        now, later, begun = list[Recipe](), list[Recipe](), list[float]()
        for recipe, needed in zip(asked, minutes, strict=True):
            most = left if len(now) < max(LEAST, self.beside) else left / 2 / len(rungs_now)
            if self._together([*begun, needed]) <= most:
                now.append(recipe)
                begun.append(needed)
            else:
                later.append(recipe)
        if not now and left >= OF_LIMIT * self.recipe_minutes and not any(map(_trains, self.known)):
            return later[:1], later[1:]  # nothing has shown yet how long training takes: it is stopped early
        return now, later

    def _halved(self, asked: Sequence[Recipe]) -> Generator[Wave, Told, dict[str, Trial]]:
        """By label, each recipe as far as it was trained: all a little, the hopeful third more.

        One that is slow to train goes as far as its limit allows; its first rung is tried in any case.
        """
        reached: dict[str, Trial] = {}
        rungs_now, going, before = self._rungs(), list(asked), list(self.known)
        for former, passes in zip((0, *rungs_now), rungs_now, strict=False):
            allowed = [self._within_limit(recipe, passes) if former else passes for recipe in going]
            longer = [(recipe, n) for recipe, n in zip(going, allowed, strict=True) if n > former]
            wave = [training_space.trained_for(recipe, n) for recipe, n in longer]
            if former and self.minutes_left() <= 0:
                self._cut_off += wave
                break
            trained = {one.label: recipe for one, (recipe, _) in zip(wave, longer, strict=True)}
            told = yield from self._tried(f"trained for {passes} of {rungs_now[-1]} passes", wave)
            for label, trial in told.items():
                if trial.cost is not None or trained[label].label not in reached:
                    reached[trained[label].label] = trial
            kept = {t.recipe.label for t in survivors(list(told.values()), before)}
            going = [trained[label] for label in told if label in kept]
            if not going:
                break
        return reached

    def _within_limit(self, recipe: Recipe, passes: int) -> int:
        """As many of these passes as are expected to end before the recipe is stopped, by its own speed."""
        once = training_space.trained_for(recipe, 1).label
        same = [trial for trial in self.known if training_space.trained_for(trial.recipe, 1).label == once]
        effort = self._effort_now().corrected(same)
        most = OF_LIMIT * self.recipe_minutes
        possible = (n for n in PASSES if n <= passes)
        fitting = (n for n in possible if effort.minutes(training_space.trained_for(recipe, n)) <= most)
        return max(fitting, default=0)

    def _effort_now(self) -> Effort:
        """The estimates, corrected by what was seen."""
        return self.effort.corrected(self.known)

    def _rungs(self) -> tuple[int, ...]:
        """The passes of each rung, by what was seen."""
        return affordable(self._effort_now(), self.minutes, self.recipe_minutes)


def _trains(trial: Trial) -> bool:
    return epochs_of(trial.recipe) > 0


def _each_way(trials: Iterable[Trial]) -> list[Trial]:
    """The best of each way to quantize a network and of what runs it, whatever that is set to: those that
    exceed the SLA's limits least, the fastest first. Of a tie it is the plainest."""
    known = [t for t in trials if t.excess is not None and t.cost is not None]
    known.sort(key=lambda trial: (trial.excess, trial.cost))
    first: dict[str, Trial] = {}
    for trial in known:
        first.setdefault(space.way_of(trial.recipe).label, trial)
    return [
        plainest(
            [t for t in tied(best, known, lambda t: t.cost or 0) if (t.excess or 0) <= (best.excess or 0)]
        )
        for best in first.values()
    ]
