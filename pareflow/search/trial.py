"""What the search knows of one recipe that was tried, and how two are compared."""

from collections.abc import Iterable
from dataclasses import dataclass

from pareflow.variant import Recipe

NOTICEABLE = 1.02
"""How many times better a trial must be to count as better: less lies within what timings vary by."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One recipe, tried. What is not known is None: it failed, or was never begun.

    `cost` is the objective over the strong baseline's, both on this machine: 0.5 is twice as good. `excess`
    adds up by how much the SLA's limits are exceeded on the search split; 0 meets them all, as far as the
    estimates say. `lost` is what of it is quality. `minutes` is what building it took, `reason` why it failed
    or was not tried, `stopped` whether building it took longer than its limit of time.
    """

    recipe: Recipe
    cost: float | None = None
    excess: float | None = None
    lost: float | None = None
    minutes: float | None = None
    reason: str | None = None
    stopped: bool = False

    @property
    def passes(self) -> bool:
        return self.cost is not None and self.excess is not None and self.excess <= 0


def best(trials: Iterable[Trial]) -> Trial | None:
    """The best by the objective of those that pass, or None."""
    return min((t for t in trials if t.passes), key=lambda t: t.cost or 0, default=None)


def better(cost: float | None, than: Trial | None) -> bool:
    """Whether a cost is noticeably below the best one's; any is where nothing passes yet."""
    return cost is not None and (than is None or than.cost is None or cost * NOTICEABLE < than.cost)


def nearest(trials: Iterable[Trial]) -> Trial | None:
    """The best of those that pass; where none does, the one that exceeds the SLA's limits least."""
    known = [t for t in trials if t.cost is not None and t.excess is not None]
    return best(known) or min(known, key=lambda t: (t.excess or 0, t.cost or 0), default=None)


def gained(now: Trial | None, before: Trial | None) -> bool:
    """Whether what is nearest now is noticeably better than before; or nearer, where nothing passes."""
    if now is None or before is None:
        return now is not None
    if now.passes:
        return not before.passes or better(now.cost, before)
    return (now.excess or 0) * NOTICEABLE < (before.excess or 0)
