"""Which recipes with training to try next: Optuna's multi-objective sampling under the SLA's constraint.

Source: Ozaki et al., 2020, doi 10.1145/3377930.3389817 (multi-objective TPE); Watanabe and Hutter, 2022,
arXiv:2211.14411 (its constraints).
"""

import itertools
import json
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend

from pareflow.errors import UnsuitableError
from pareflow.model import AttentionFusion
from pareflow.search.space import unfused
from pareflow.search.training_space import Settings, first, grid, kind, milder, named, step, trained_for
from pareflow.search.trial import Trial
from pareflow.store import replace, writing
from pareflow.variant import Recipe

STARTS = 10
"""Trials before the sampler trusts what it has seen."""
ATTEMPTS = 3
"""How often the sampler may suggest what was asked before, per recipe."""
STEPS = (1 / 4, 1 / 8, 1 / 16)
"""Of a setting's values, how far one step goes: the next where there are few, as far as a range has."""
REFUSAL = f"{UnsuitableError.__name__}: `{AttentionFusion.name}` "
"""How the reason begins where attention could not be fused: each error of the technique names it first."""


class Journal(BaseJournalBackend):
    """A study's log in memory, a line of JSON each: two runs of one pipeline have each its own."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def read_logs(self, log_number_from: int) -> Iterable[dict[str, Any]]:
        return map(json.loads, self.lines[log_number_from:])

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.lines += map(json.dumps, logs)


class Study:
    """Recipes to try: `ask` names some, `tell` says what became of them.

    A finish is a recipe without training that follows: how the network is quantized, and what runs it.
    `takes` holds what is known of what steps take of the network, by the taker's label: of settings that take
    as much, which make one network, one is asked.
    All that it suggests follows from the seed and from what it was told, so that a run which is started
    again, and is told the same from the store, asks the same.
    """

    def __init__(
        self,
        families: Mapping[str, Settings],
        finishes: Sequence[Recipe],
        seed: int,
        takes: Mapping[str, Any] | None = None,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._families = families
        self._finishes = {finish.label: finish for finish in finishes}
        self._seed = seed
        self._takes = takes or {}
        self._asked: dict[str, optuna.Trial] = {}  # by the recipe's name
        self._fused, self._unfused = set[tuple[str, str | None]](), set[tuple[str, str | None]]()
        self._journal = Journal()
        self._study = optuna.create_study(
            storage=JournalStorage(self._journal),
            study_name="search",
            directions=["minimize", "minimize"],
            sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTS),
        )
        self._starts = [
            self._parameters(name, settings, start)
            for name, settings in families.items()
            for start in first(settings)
        ]

    def beside(self, near: Recipe) -> list[Recipe]:
        """What is one step on from a recipe in either direction of what matters most: how much is taken away.

        For the best so far: the sampler needs ten trials before it sees that more could be. Of many values
        steps are a quarter of them first, then half as far. Nothing where the recipe is none of the study's,
        or all were asked before.
        """
        return self._first_new(near, back=False)

    def milder(self, near: Recipe, most: int) -> list[Recipe]:
        """What takes one step less away than a recipe, and the recipe trained one step more gently: of these
        what was not asked before, so many at most; for what loses too much."""
        return self._first_new(near, back=True, most=most)

    def _first_new(self, near: Recipe, *, back: bool, most: int | None = None) -> list[Recipe]:
        """Of the longest steps that lead to anything new, what they lead to. What is not among the `most` is
        not asked."""
        tried = list[Mapping[str, Any]]()
        for length in STEPS:
            steps = [step for step in self._steps_from(near, length, back=back) if step not in tried]
            new = (recipe for each in steps for recipe in self._asked_for(self._trial(each)))
            if found := list(itertools.islice(new, most)):
                return found
            tried += steps
        return []

    def ask(self, count: int) -> list[Recipe]:
        """At most `count` recipes that were not asked before, of one pass over the training split each.

        Where the sampler keeps to what it knows, others are drawn at random; fewer once there are none left.
        """
        found: list[Recipe] = []
        for _ in range(count * ATTEMPTS):
            if len(found) < count:
                start = self._starts.pop(0) if self._starts else None
                found += self._asked_for(self._trial(start))
        if len(found) == count:
            return found
        left = self._unasked()
        for parameters in random.Random(f"{self._seed} {len(self._asked)}").sample(left, len(left)):
            if len(found) < count:
                found += self._asked_for(self._trial(parameters))
        return found

    def _steps_from(self, near: Recipe, length: float, *, back: bool) -> Iterator[dict[str, Any]]:
        """The recipe's parameters, its technique's first setting so much of its values up and down, one at
        least, past those that make the same network; or, back, those of any setting that are milder: the
        first setting's first."""
        trial = self._asked.get(self._name(trained_for(near, 1)))
        if trial is None:
            return
        here = trial.params
        settings = self._families[here["technique"]]
        for setting, values in itertools.islice(settings.items(), len(settings) if back else 1):
            key = f"{here['technique']}.{setting}"
            position = here[key]
            far = max(1, int(length * (len(values) - 1)))
            for onward in (range(position + far, len(values)), range(position - far, -1, -1)):
                beside = next((to for to in onward if not self._alike({**here, key: to}, here)), None)
                if beside is not None and (not back or milder(setting, values[beside], values[position])):
                    yield {**here, key: beside}

    def _alike(self, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
        """Whether two trials' parameters make one network, trained and run alike."""
        return self._name(self._recipe(ours)) == self._name(self._recipe(theirs))

    def _name(self, recipe: Recipe) -> str:
        """What tells a recipe apart from those that make another network, or train or run it otherwise."""
        return named(recipe, self._takes)

    def _trial(self, parameters: Mapping[str, Any] | None) -> optuna.Trial:
        """The trial of these parameters, or of what the sampler suggests."""
        if parameters is not None:
            self._study.enqueue_trial(dict(parameters))
        return self._study.ask()

    def _asked_for(self, trial: optuna.Trial) -> list[Recipe]:
        """The recipe of a trial; nothing, and the trial given up, where it was asked before."""
        recipe = self._suggested(trial)
        if self._name(recipe) in self._asked:
            self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return []
        self._asked[self._name(recipe)] = trial
        return [recipe]

    def _unasked(self) -> list[dict[str, Any]]:
        """The parameters of every point of the space that was not asked yet."""
        points = (
            {**self._parameters(name, settings, chosen), "finish": label}
            for name, settings in self._families.items()
            for chosen in grid(settings)
            for label in self._finishes
        )
        return [point for point in points if self._name(self._recipe(point)) not in self._asked]

    def tell(self, asked: Recipe, trial: Trial) -> None:
        """What became of a recipe, trained for as long as it was worth."""
        told = self._asked[self._name(asked)]
        if trial.cost is not None and _fuses(asked):
            self._fused.add(kind(asked.techniques[0]))
        if trial.cost is None or trial.excess is None:
            self._study.tell(told, state=optuna.trial.TrialState.FAIL)
            if _fuses(asked) and (trial.reason or "").startswith(REFUSAL):
                self._without_fusion(asked, told)
            return
        told.set_constraint("excess", trial.excess)
        self._study.tell(told, (trial.cost, max(trial.excess, 0.0)))

    def _without_fusion(self, failed: Recipe, told: optuna.Trial) -> None:
        """Ask again, with its attention left as it is, what could not be fused after its training, which the
        store has: factors, and students of other kinds, hold no attention that can be fused."""
        self._unfused.add(kind(failed.techniques[0]))
        self._starts.insert(0, told.params)

    def write(self, file: Path) -> None:
        """All asked and told so far, as a file for Optuna's dashboard. Raises: StoreError."""
        with writing(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
            replace(file, "".join(f"{line}\n" for line in self._journal.lines))

    def _suggested(self, trial: optuna.Trial) -> Recipe:
        """The recipe that a trial stands for; its parameters are positions in the lists of values."""
        name = trial.suggest_categorical("technique", list(self._families))
        for setting, values in self._families[name].items():
            trial.suggest_int(f"{name}.{setting}", 0, len(values) - 1)
        trial.suggest_categorical("finish", list(self._finishes))
        return self._recipe(trial.params)

    def _recipe(self, parameters: Mapping[str, Any]) -> Recipe:
        """The recipe of a trial's parameters: a technique trained for one pass, and the finish after it; its
        attention fused unless that was refused, and never went."""
        name, finish = parameters["technique"], self._finishes[parameters["finish"]]
        settings = self._families[name].items()
        chosen = {setting: values[parameters[f"{name}.{setting}"]] for setting, values in settings}
        trained = step(name, chosen, epochs=1)
        fuses = kind(trained) not in self._unfused - self._fused
        following = finish.techniques if fuses else unfused(finish.techniques)
        return Recipe((trained, *following), finish.backend)

    def _parameters(self, name: str, settings: Settings, chosen: Mapping[str, Any]) -> dict[str, Any]:
        positions = {f"{name}.{key}": values.index(chosen[key]) for key, values in settings.items()}
        return {"technique": name, "finish": next(iter(self._finishes)), **positions}


def _fuses(recipe: Recipe) -> bool:
    return unfused(recipe.techniques) != recipe.techniques
