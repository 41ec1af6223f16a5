"""Answers kept by the vectors of their requests, in this process's memory."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import NamedTuple

import numpy as np

from pareflow.runtime.caching.index import Index, Near
from pareflow.runtime.caching.session import copied
from pareflow.runtime.caching.stores.memory import entry_bytes
from pareflow.workload import Arrays

NEARLY_ONE = 1 - 1e-6
"""The similarity from which on two requests are taken for one, and the newer answer replaces the older."""
FEW = 20
"""Answers that say nothing yet of how large others are, unless there is no room for more."""
RARE = 20
"""One of so many answers may be of kinds that nothing waits for: they may never be asked for again."""


class NearAnswer(NamedTuple):
    """What is kept for the nearest request, how near it is, and how much nearer than another answer."""

    similarity: float
    margin: float
    answer: Arrays


class Held(NamedTuple):
    """How many answers are kept, and of how many kinds: the more, the more a margin says."""

    answers: int = 0
    kinds: int = 0

    def reaches(self, other: "Held") -> bool:
        """Whether as many are kept of both."""
        return self.answers >= other.answers and self.kinds >= other.kinds


@dataclass(frozen=True, slots=True)
class _Kept:
    answer: Arrays
    kind: int
    size: int


class NearAnswers:
    """No more than `max_bytes`; what was least recently the nearest goes first, and all after `ttl_s`."""

    def __init__(self, new_index: Callable[[int], Index], max_bytes: int, ttl_s: float | None) -> None:
        self._new_index, self._max_bytes = new_index, max_bytes
        self._ttl_s = float("inf") if ttl_s is None else ttl_s
        self._next_slot = 0
        self.clear()

    def clear(self) -> None:
        from cachetools import LRUCache

        self._kept: LRUCache[int, _Kept] = LRUCache(self._max_bytes, getsizeof=lambda kept: kept.size)
        self._expires: dict[int, float] = {}  # the first to expire comes first
        self._of_kind = Counter[int]()
        self._index: Index | None = None
        self._full = False

    @property
    def held_bytes(self) -> float:
        return self._kept.currsize

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def held(self) -> Held:
        return Held(len(self._kept), len(self._of_kind))

    @property
    def mostly_held(self) -> Held:
        """The same, with only as many kinds as 19 of 20 answers are of, the most frequent first."""
        counts = np.sort([*self._of_kind.values()])[::-1]
        before = np.cumsum(counts) - counts
        return Held(len(self._kept), int((RARE * before < (RARE - 1) * len(self._kept)).sum()))

    @property
    def room(self) -> float:
        """How many answers as large as those that are kept it can hold; without end while they are few."""
        if not self._kept or (len(self._kept) < FEW and not self._full):
            return float("inf")
        return self._max_bytes * len(self._kept) / self._kept.currsize

    def nearest(self, vectors: np.ndarray) -> list[NearAnswer | None]:
        """For each vector; None where nothing is kept."""
        near, now = self._found(vectors), time.monotonic()
        if any(self._expires[one.slot] < now for one in near):
            for slot in [*takewhile(lambda slot: self._expires[slot] < now, self._expires)]:
                self._remove(slot)
            near = self._found(vectors)
        found = [NearAnswer(one.similarity, one.margin, self._kept[one.slot].answer) for one in near]
        return [*found] if found else [None] * len(vectors)

    def _found(self, vectors: np.ndarray) -> list[Near]:
        return [] if self._index is None else self._index.nearest(vectors)

    def keep(self, vector: np.ndarray, answer: Arrays, kind: int | None) -> None:
        """Keep a copy. `kind` is equal for answers that do for each other; without one there are none."""
        size = entry_bytes(answer) + 2 * vector.nbytes  # the index doubles its room as it grows
        if size > self._max_bytes:
            return
        if self._index is None:
            self._index = self._new_index(len(vector))
        for near in self._index.nearest(vector[None]):
            if near.similarity >= NEARLY_ONE:
                self._remove(near.slot)
        while self._kept.currsize + size > self._max_bytes:
            self._forget(*self._kept.popitem())
            self._full = True
        slot, self._next_slot = self._next_slot, self._next_slot + 1
        kind = slot if kind is None else kind
        self._kept[slot] = _Kept(copied(answer), kind, size)
        self._expires[slot] = time.monotonic() + self._ttl_s
        self._of_kind[kind] += 1
        self._index.add(slot, vector, kind)

    def _remove(self, slot: int) -> None:
        self._forget(slot, self._kept.pop(slot))

    def _forget(self, slot: int, kept: _Kept) -> None:
        assert self._index is not None  # there was something in it
        del self._expires[slot]
        self._of_kind[kept.kind] -= 1
        if not self._of_kind[kept.kind]:
            del self._of_kind[kept.kind]
        self._index.remove(slot)
