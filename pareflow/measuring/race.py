"""When timing may stop early: a contestant whose interval says that it cannot win any more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pareflow.intervals import block_speedup
from pareflow.measurement import CONFIDENCE, Interval

LEAST_LOADS = 3
"""Loads before the interval is looked at: of two it is too wide to tell anything."""


@dataclass(frozen=True, slots=True)
class Race:
    """`challenger` must be shown to be able to be `needed` times as fast as `baseline`; both are variant ids.

    Each look adds to the chance that a fast one is stopped by bad luck, so that all looks of a race share the
    error: there are at most `looks`. Source: Maron and Moore, 1997, Artificial Intelligence Review 11:193
    (racing); the error is split by Bonferroni's inequality.
    """

    challenger: str
    baseline: str
    needed: float
    looks: int = 10

    def lost(
        self, blocks: Mapping[str, Sequence[tuple[float, ...]]], blocks_per_load: int
    ) -> Interval | None:
        """The interval of the speed-up where all of it lies below what is needed; else None."""
        ours, theirs = (blocks.get(name, []) for name in (self.baseline, self.challenger))
        if len(ours) != len(theirs) or len(theirs) < LEAST_LOADS * blocks_per_load:
            return None
        found = block_speedup(ours, theirs, blocks_per_load, 1 - (1 - CONFIDENCE) / self.looks)
        return found if found.high is not None and found.high < self.needed else None
