"""What was seen of a challenger beside the champion: counts and times, bounded, for a gate to judge."""

import time
import uuid
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from pareflow.serving.traffic import Traffic

COUNTS = ("asked", "failed", "late", "unsound", "compared", "agreed", "skipped")
"""Of the challenger: requests that it was asked; those of them that it did not answer, not in time, or with
what cannot be an answer; answers of both that were compared, and those that agreed; copies that were left
out, since too many were under way or requests waited."""
BLOCK = 20
"""Answers of each version that make a block: they were given over the same stretch of time."""
LARGEST = 200
"""Answers of one version in a block: of the champion there are many more."""
BLOCKS = 200
"""That are kept, the latest."""


@dataclass
class Record:
    """One challenger beside one champion under one traffic, from when that began."""

    champion: str
    traffic: Traffic
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    began: float = field(default_factory=time.time)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._blocks: deque[tuple[list[float], list[float]]] = deque(maxlen=BLOCKS)
        self._open: tuple[list[float], list[float]] = ([], [])
        self._troubles: deque[str] = deque(maxlen=5)

    def timed(self, version: str, ms: float) -> None:
        """Note how long an answer took that somebody waited for: the champion's, or the challenger's."""
        ours = self._open[version == self.traffic.version]
        if len(ours) < LARGEST:
            ours.append(ms)
        if min(map(len, self._open)) >= BLOCK:
            self._blocks.append(self._open)
            self._open = ([], [])

    def trouble(self, words: str) -> None:
        """Keep what went wrong, the last few."""
        self._troubles.append(words[:500])

    def to_json(self) -> dict[str, Any]:
        """`blocks_ms` holds pairs: times of the champion, and of the challenger, next to each other."""
        return {
            "record": self.id,
            "began": self.began,
            "champion": self.champion,
            "challenger": self.traffic.version,
            "traffic": self.traffic.model_dump(),
            "counts": {name: self.counts[name] for name in COUNTS},
            "blocks_ms": [
                {"champion": champion, "challenger": challenger} for champion, challenger in self._blocks
            ],
            "troubles": list(self._troubles),
        }
