"""The nearest of the kept vectors: exact, or approximate where there are too many to look at each."""

from collections import Counter
from typing import NamedTuple, Protocol

import numpy as np

LOOKED_AT = 64
"""Of the nearest in a graph, among which another kind is looked for."""


class Near(NamedTuple):
    """The nearest to a vector, and how much nearer it is than the nearest of another kind.

    Where none is of another kind, nobody knows how far this one reaches: the margin is then 0.
    """

    slot: int
    similarity: float
    margin: float


class Index(Protocol):
    """Vectors of length 1 by slot, each of a kind. Similarity is the cosine, from -1 to 1."""

    def add(self, slot: int, vector: np.ndarray, kind: int) -> None: ...

    def remove(self, slot: int) -> None: ...

    def nearest(self, vectors: np.ndarray) -> list[Near]:
        """The nearest to each; nothing at all where nothing is kept."""


class ExactIndex:
    """One matrix, compared with whole: 0.25 ms for 10,000 vectors of 384 numbers on one core."""

    def __init__(self, width: int) -> None:
        self._matrix = np.empty((64, width), np.float32)
        self._kinds = np.empty(64, np.int64)
        self._slots: list[int] = []
        self._places: dict[int, int] = {}

    def add(self, slot: int, vector: np.ndarray, kind: int) -> None:
        place = len(self._slots)
        if place == len(self._matrix):
            self._matrix = np.concatenate([self._matrix, np.empty_like(self._matrix)])
            self._kinds = np.concatenate([self._kinds, np.empty_like(self._kinds)])
        self._matrix[place], self._kinds[place] = vector, kind
        self._slots.append(slot)
        self._places[slot] = place

    def remove(self, slot: int) -> None:
        """The last one takes its place."""
        place, last = self._places.pop(slot), self._slots.pop()
        if last != slot:
            count = len(self._slots)
            self._matrix[place], self._kinds[place] = self._matrix[count], self._kinds[count]
            self._slots[place], self._places[last] = last, place

    def nearest(self, vectors: np.ndarray) -> list[Near]:
        count = len(self._slots)
        if not count:
            return []
        return [self._near(similarities) for similarities in vectors @ self._matrix[:count].T]

    def _near(self, similarities: np.ndarray) -> Near:
        kinds = self._kinds[: len(similarities)]
        place = int(similarities.argmax())
        best = float(similarities[place])
        other = float(similarities.max(where=kinds != kinds[place], initial=-2))
        return Near(self._slots[place], best, best - other if other >= -1.5 else 0.0)


class UsearchIndex:
    """A graph of near ones (HNSW), for more than some tens of thousands; it may miss the nearest.

    Source: Malkov and Yashunin, 2016, arXiv:1603.09320; the library usearch.
    """

    def __init__(self, width: int) -> None:
        from usearch.index import Index as Graph

        self._graph = Graph(ndim=width, metric="cos", dtype="f32")
        self._kinds: dict[int, int] = {}
        self._of_kind = Counter[int]()

    def add(self, slot: int, vector: np.ndarray, kind: int) -> None:
        self._graph.add(slot, np.ascontiguousarray(vector, np.float32))
        self._kinds[slot] = kind
        self._of_kind[kind] += 1

    def remove(self, slot: int) -> None:
        self._graph.remove(slot)
        kind = self._kinds.pop(slot)
        self._of_kind[kind] -= 1
        if not self._of_kind[kind]:
            del self._of_kind[kind]

    def nearest(self, vectors: np.ndarray) -> list[Near]:
        return [self._near(vector) for vector in vectors] if self._kinds else []

    def _near(self, vector: np.ndarray) -> Near:
        found = self._graph.search(np.ascontiguousarray(vector, np.float32), LOOKED_AT)
        slots, similarities = found.keys.tolist(), 1 - found.distances
        kinds = np.array([self._kinds[slot] for slot in slots])
        others = similarities[kinds != kinds[0]]
        best = other = float(similarities[0])
        if len(others):
            other = float(others[0])
        elif len(self._of_kind) > 1 and len(self._kinds) > LOOKED_AT:  # it is no nearer than the last of them
            other = float(similarities[-1])
        return Near(slots[0], best, best - other)
