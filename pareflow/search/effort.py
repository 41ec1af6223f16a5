"""What a recipe takes: its level, and the minutes that building and timing it are expected to need."""

import itertools
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pareflow.catalog import TECHNIQUES, find
from pareflow.model.training import TrainedTechnique
from pareflow.search.trial import Trial
from pareflow.variant import Recipe, Step

Level = Literal["hardware", "compiler", "runtime", "model", "architecture"]
LEVELS: tuple[Level, ...] = ("hardware", "compiler", "runtime", "model", "architecture")
"""In the order of the effort that they take: less is tried first."""

EFFORT: Mapping[Level, str] = {
    "hardware": "a setting",
    "compiler": "another executable of the same network",
    "runtime": "another way to serve it",
    "model": "the network changed, without training",
    "architecture": "a network that is trained",
}

BUILD_MINUTES = 0.15
"""A process that imports what it needs, changes or compiles a network, and is evaluated."""

SUBNET = 0.4
"""Of a build: a subnet of an architecture search is exported, timed and evaluated, all in one process."""

PASSES = 3
"""A training step takes about as long as three answers: forwards, and twice that back. Many samples at once
in torch take about as long, each, as one alone in ONNX Runtime (measured: docs/log.md)."""


def level_of(recipe: Recipe) -> Level:
    """The level of the most laborious of its steps."""
    found: list[Level] = ["compiler"]
    settings = recipe.backend.settings
    if not recipe.techniques and (settings.get("threads", 1) > 1 or settings.get("device", "cpu") != "cpu"):
        found = ["hardware"]
    for step in recipe.techniques:
        found.append("architecture" if issubclass(TECHNIQUES[step.name], TrainedTechnique) else "model")
    return max(found, key=LEVELS.index)


def epochs_of(recipe: Recipe) -> int:
    """Passes over the training split, of all its steps."""
    found = [find(TECHNIQUES, step, "technique") for step in recipe.techniques]
    return sum(technique.passes for technique in found if isinstance(technique, TrainedTechnique))


def _builds(recipe: Recipe) -> float:
    """Builds that a recipe takes: its own, and those of the subnets that it compares."""
    return 1 + SUBNET * sum(int(step.settings.get("trials", 0)) for step in recipe.techniques)


def _alike(one: Iterable[Step], other: Iterable[Step]) -> int:
    """How many steps two recipes begin with alike."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


@dataclass(frozen=True, slots=True)
class Effort:
    """Minutes per pass over the training split, as estimated first, and as what was built corrects it.

    `built` is what was built, in that order: what a recipe begins with as they do is not done again.
    """

    epoch_minutes: float
    build_minutes: float = BUILD_MINUTES
    built: tuple[Recipe, ...] = ()

    @classmethod
    def of(cls, samples: int, ms_per_sample: float) -> "Effort":
        """From how many samples are trained on, and what the strong baseline takes to answer one of them."""
        return cls(samples * ms_per_sample * PASSES / 60_000)

    def minutes(self, recipe: Recipe) -> float:
        """What a recipe is expected to take until it is built and evaluated."""
        new = self._new(recipe)
        return _builds(new) * self.build_minutes + epochs_of(new) * self.epoch_minutes

    def trains(self, recipe: Recipe) -> bool:
        """Whether anything of a recipe has to be trained that is not built yet."""
        return epochs_of(self._new(recipe)) > 0

    def corrected(self, trials: Iterable[Trial]) -> "Effort":
        """What was seen in place of estimates: medians of what was not trained, and of what was longest."""
        trials = list(trials)
        made = (t.recipe for t in trials if t.minutes is not None or t.cost is not None)
        found = replace(self, built=(*self.built, *made))
        timed = ((found._new(t.recipe), t.minutes) for t in trials if t.minutes is not None)
        seen = [(epochs_of(new), _builds(new), minutes) for new, minutes in timed]
        plain = [minutes for epochs, _, minutes in seen if not epochs]
        build = statistics.median(plain) if plain else self.build_minutes
        longest = max((epochs for epochs, *_ in seen), default=0)
        trained = [
            max(minutes - builds * build, 0) / epochs
            for epochs, builds, minutes in seen
            if epochs == longest > 0
        ]
        return replace(
            found,
            epoch_minutes=statistics.median(trained) if trained else self.epoch_minutes,
            build_minutes=build,
        )

    def _new(self, recipe: Recipe) -> Recipe:
        """What had to be done of a recipe when it was built, or has to be: the techniques that follow the
        longest beginning that one built before it has too."""
        before = itertools.takewhile(lambda one: one != recipe, self.built)
        done = max((_alike(one.techniques, recipe.techniques) for one in before), default=0)
        return Recipe(recipe.techniques[done:], recipe.backend)
