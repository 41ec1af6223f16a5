"""Answers in this process's memory."""

from collections.abc import Mapping, Sequence

import numpy as np

from pareflow.runtime.caching.session import copied
from pareflow.workload import Arrays

ENTRY_BYTES, ARRAY_BYTES = 512, 160
"""What an entry (key, dictionary, place in the cache) and each array take beside their numbers."""


class MemoryStore:
    """No more than `max_bytes`; what was least recently used goes first, and all after `ttl_s` seconds."""

    def __init__(self, max_bytes: int, ttl_s: float | None) -> None:
        from cachetools import Cache, LRUCache, TTLCache

        self._kept: Cache[bytes, Arrays]
        if ttl_s is None:
            self._kept = LRUCache(max_bytes, getsizeof=entry_bytes)
        else:
            self._kept = TTLCache(max_bytes, ttl_s, getsizeof=entry_bytes)

    async def get(self, keys: Sequence[bytes]) -> list[Arrays | None]:
        found = map(self._kept.get, keys)
        return [None if arrays is None else copied(arrays) for arrays in found]

    def put(self, items: Mapping[bytes, Mapping[str, np.ndarray]]) -> None:
        for key, arrays in items.items():
            if entry_bytes(arrays) <= self._kept.maxsize:
                self._kept[key] = copied(arrays)

    async def flush(self) -> None:
        self._kept.clear()

    async def close(self) -> None:
        self._kept.clear()

    def figures(self) -> Mapping[str, float]:
        return {"held_bytes": self._kept.currsize, "entries": len(self._kept)}


def entry_bytes(arrays: Mapping[str, np.ndarray]) -> int:
    """The memory of one entry."""
    return ENTRY_BYTES + sum(ARRAY_BYTES + array.nbytes for array in arrays.values())
