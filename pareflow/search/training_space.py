"""The space with training: which settings of which techniques, each a short list of values in their order."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from pareflow.catalog import TECHNIQUES, find
from pareflow.model import (
    ArchitectureSearch,
    ChannelPruning,
    Distillation,
    HeadPruning,
    LayerPruning,
    LowRank,
    Technique,
)
from pareflow.model.training import TrainedTechnique
from pareflow.search.space import Circumstances
from pareflow.variant import Recipe, Step, digest

Settings = Mapping[str, tuple[Any, ...]]
"""Per setting the values that are tried, in an order that means something; the middle one is tried first.

The first setting says how much is taken away.
"""

SHARES = (0.25, 0.375, 0.5, 0.625, 0.75)
RATES = (1e-3, 4e-3, 1e-2)
TOKEN_RATES = (1e-4, 3e-4, 1e-3)
"""What networks over tokens take: they were trained before on much more than these data."""
TRIALS = 24
"""Subnets that an architecture search compares."""
BRIEF: Mapping[str, int] = {"epochs": 1, "trials": 2, "samples": 32}
"""Settings of how long a technique works, and on how many samples: the most in a preflight, which has 64."""


def families(here: Circumstances) -> dict[str, Settings]:
    """Per technique that trains and may make this network faster, its settings; or those that are allowed.

    Raises: SpecError where an allowed technique does not take a combination of its values.
    """
    if not here.trainable:
        return {}
    known = _built_in(here)
    if here.chosen is None:
        return known
    return {name: _with_chosen(name, known.get(name, {}), values) for name, values in here.chosen.items()}


def _with_chosen(name: str, built_in: Settings, chosen: Settings) -> Settings:
    """A technique's settings: the values that the user chose, and the built-in ones that go with all of them.

    Raises: SpecError where not every combination is one that the technique takes.
    """
    given = list(grid(chosen))
    beside = {
        setting: tuple(value for value in values if all(_goes(name, one, setting, value) for one in given))
        for setting, values in built_in.items()
    }
    found = {setting: values for setting, values in {**beside, **chosen}.items() if values}
    for settings in grid(found):
        step(name, settings, epochs=1)
    return found


def _goes(name: str, given: Mapping[str, Any], setting: str, value: Any) -> bool:
    """Whether a built-in value goes with those that are given; what is not said yet does not count."""
    try:
        TECHNIQUES[name].from_settings({**given, setting: value})
    except ValidationError as error:
        return all(problem["type"] == "missing" for problem in error.errors())
    return True


def _built_in(here: Circumstances) -> dict[str, Settings]:
    """What starts from the trained weights comes first: it needs less training than what begins anew.

    Layers go where a shortcut leads around them: what follows still gets about what it was trained on.
    """
    rates = {"learning_rate": TOKEN_RATES if here.transformer else RATES}
    smaller: Settings = {"depth": SHARES} if here.transformer else {"width": SHARES}
    taught: Settings = {"student": here.students} if here.students else smaller
    layers: dict[str, Settings] = {LayerPruning.name: {"ratio": SHARES, **rates}}
    heads: dict[str, Settings] = {HeadPruning.name: {"ratio": SHARES, **rates}}
    return {
        ChannelPruning.name: {
            "ratio": SHARES,
            "widths": ("inner", "all"),
            "scope": ("global", "layer"),  # ratios per layer by what its channels are worth, or one for all
            **rates,
        },
        **(layers if here.transformer or here.shortcuts else {}),
        **(heads if here.transformer else {}),
        LowRank.name: {"share": (0.2, 0.3, 0.4, 0.5), "of": ("products",), **rates},
        Distillation.name: {**taught, **rates},
        ArchitectureSearch.name: {"max_latency_share": SHARES, "trials": (TRIALS,), **rates},
    }


def step(name: str, settings: Mapping[str, Any], epochs: int) -> Step:
    """The technique with these settings, trained for so many passes; every other setting said too.

    Raises: SpecError where it takes no such settings.
    """
    fixed = {"width": 1.0} if name == Distillation.name and "depth" in settings else {}
    return find(TECHNIQUES, Step(name, {**fixed, **settings, "epochs": epochs}), "technique").step


def kind(trained: Step) -> tuple[str, str | None]:
    """What decides what a trained network is made of, and how long a pass of training takes: the technique,
    and the student where it has one."""
    return trained.name, trained.settings.get("student")


def takers(families: Mapping[str, Settings]) -> tuple[Step, ...]:
    """Each way to take something of the network that they list, however it is trained: of the techniques that
    tell what they take."""
    found = (
        untaught(step(name, chosen, epochs=1))
        for name, settings in families.items()
        if _taking(name)
        for chosen in grid(settings)
    )
    return tuple({taker.label: taker for taker in found}.values())


def untaught(trained: Step) -> Step:
    """The step without the settings of its training, which decide nothing of what it takes."""
    kept = {k: v for k, v in trained.settings.items() if k not in TrainedTechnique.model_fields}
    return Step(trained.name, kept)


def named(recipe: Recipe, takes: Mapping[str, Any]) -> str:
    """The recipe's label, with what its first step takes, by the taker's label, in place of the settings that
    say how much: equal where one network would be made, trained and run alike."""
    if not recipe.techniques:
        return recipe.label
    first, *others = recipe.techniques
    taken = takes.get(untaught(first).label)
    if taken is None:
        return recipe.label
    kept = {k: v for k, v in first.settings.items() if k not in _taking(first.name)}
    return Recipe((Step(first.name, {**kept, "takes": digest(taken)}), *others), recipe.backend).label


def _taking(name: str) -> tuple[str, ...]:
    technique = TECHNIQUES[name]
    assert issubclass(technique, Technique)  # what they all are
    return technique.taking


def probe(name: str, settings: Settings, *, mildest: bool = False) -> Step:
    """The technique where its search starts, with as little work as it takes: for a preflight. Mildest, as
    little is taken away as it is tried with."""
    start = next(first(settings))
    for setting, values in itertools.islice(settings.items(), int(mildest)):
        for value in values:
            start = {**start, setting: value} if milder(setting, value, start[setting]) else start
    return _brief(step(name, start, epochs=1))


def briefly(recipe: Recipe) -> Recipe:
    """The recipe with as little work in each step as it takes, and asking for no more than a few samples
    show: for a preflight."""
    return Recipe(tuple(_brief(step) for step in recipe.techniques), recipe.backend)


def _brief(technique: Step) -> Step:
    asked = technique.settings
    few: dict[str, Any] = {n: min(asked[n], most) for n, most in BRIEF.items() if asked.get(n) is not None}
    if "max_drop" in asked:
        few["max_drop"] = 1.0  # of a few samples one is more than most SLAs let be lost
    return Step(technique.name, {**asked, **few})


def first(settings: Settings) -> Iterator[dict[str, Any]]:
    """Where a technique's search starts: each student, and of everything else the middle value."""
    middle = {name: values[len(values) // 2] for name, values in settings.items()}
    for student in settings.get("student", (None,)):
        yield middle if student is None else {**middle, "student": student}


LOSES_MORE = ("ratio", "sparsity", "compression", "learning_rate")
"""Settings of which a larger value may lose more: they are of what goes; and a rate that is too high forgets
what was learned before."""
LOSES_LESS = ("share", "width", "depth", "rank", "max_latency_share", "clusters", "groups")
"""Settings of which a larger value may lose less: they are of what stays."""


def milder(setting: str, value: Any, than: Any) -> bool:
    """Whether a network may lose less with this value of a setting than with another; of others, as of
    students, nobody knows."""
    return bool((setting in LOSES_MORE and value < than) or (setting in LOSES_LESS and value > than))


def grid(settings: Settings) -> Iterator[dict[str, Any]]:
    """Every combination: what an exhaustive search would try."""
    for values in itertools.product(*settings.values()):
        yield dict(zip(settings, values, strict=True))


def trained_for(recipe: Recipe, epochs: int) -> Recipe:
    """The recipe with another number of passes in each step that trains."""
    return _with(recipe, {"epochs": epochs})


def by_seeds(recipe: Recipe, seeds: Sequence[int]) -> tuple[Recipe, ...]:
    """The recipe trained by each of these seeds; none where nothing of it trains."""
    if not any(map(_trains, recipe.techniques)):
        return ()
    return tuple(_with(recipe, {"seed": seed}) for seed in seeds)


def seedless(recipe: Recipe) -> Recipe:
    """The recipe, whatever the seeds of its steps: what is the same but for chance."""
    steps = [Step(s.name, {k: v for k, v in s.settings.items() if k != "seed"}) for s in recipe.techniques]
    return Recipe(tuple(steps), recipe.backend)


def _with(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """The recipe with these settings in each step that trains."""
    changed = [Step(s.name, {**s.settings, **settings}) if _trains(s) else s for s in recipe.techniques]
    return Recipe(tuple(changed), recipe.backend)


def _trains(step: Step) -> bool:
    return issubclass(TECHNIQUES[step.name], TrainedTechnique)
