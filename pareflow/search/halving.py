"""Successive halving: many recipes with little training, the hopeful third of them with three times as much.

Only training is cut short. What calibrates after it looks at 128 samples at most: a third of them would save
0.4 to 0.9 s of processor time per recipe (int8 of Fashion-MNIST's ResNet), where a pass trains on 57,500.

Source: Jamieson and Talwalkar, 2016, arXiv:1502.07943, section 3; Li et al., 2018, arXiv:1603.06560.
"""

from collections.abc import Sequence

from pareflow.search.effort import Effort
from pareflow.search.trial import Trial, best, better

ETA = 3
"""Of so many, one goes on, with so many times the training."""

PASSES = (1, 2, 3, 5, 9, 16, 27)
"""Passes that a rung may train for, a square root of `ETA` apart: what a pass takes varies by some tenths
between runs, and a number of passes that followed it would make another network in each.
More than the last pays off for few networks; `candidates` of the YAML may take more."""
LONGEST = 1 / 8
"""Share of the budget that training one recipe may take."""
OF_LIMIT = 0.8
"""Share of one recipe's limit that building it is expected to take at most: estimates err."""


def rungs(epochs: int) -> tuple[int, ...]:
    """The passes of both rungs, fewer first; one where there are too few to divide.

    There are no more: a network that begins anew looks hopeless after a ninth of its training (docs/log.md).
    """
    return (epochs,) if epochs < ETA else (round(epochs / ETA), epochs)


def affordable(effort: Effort, minutes: float, recipe_minutes: float) -> tuple[int, ...]:
    """The passes of each rung in a budget of `minutes`, where building one recipe is stopped after
    `recipe_minutes`: the last trains within its share of the one, and within the other."""
    longest = min(minutes * LONGEST, recipe_minutes * OF_LIMIT)
    return rungs(max((n for n in PASSES if n * effort.epoch_minutes <= longest), default=PASSES[0]))


def survivors(rung: Sequence[Trial], known: Sequence[Trial]) -> list[Trial]:
    """Those of a rung that are trained on: a third of it, rounded up, of those that could yet be the best.

    Training hardly changes speed, so one that is no better than the best that passes is dropped, however good
    its answers are; the best itself goes on, for a margin. Of the others, those that exceed the SLA's limits
    least do.
    """
    leader = best([*known, *rung])
    hopeful = [t for t in rung if t.excess is not None and (t is leader or better(t.cost, leader))]
    ranked = sorted(hopeful, key=lambda t: (max(t.excess or 0, 0), t.cost))
    return ranked[: -(-len(rung) // ETA)]
