"""Answers kept by the exact content of the inputs: what was asked before is not computed again."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic import Field

from pareflow.runtime.caching.session import copied, request_digest, size
from pareflow.runtime.endpoint import Endpoint
from pareflow.runtime.policy import Policy
from pareflow.workload import Arrays


class ExactCache(Policy):
    """Keep the answers to the last requests, and give them again to equal ones.

    A request is a whole batch of preprocessed inputs; it equals another where names, types, shapes and every
    byte do, and what answers is the same. What is least recently used goes first.
    """

    name: ClassVar[str] = "exact_cache"
    requires: ClassVar[tuple[str, ...]] = ("cachetools",)

    max_mib: float = Field(default=16, gt=0, description="the most that the kept answers take")

    def wrap(self, below: Endpoint) -> Endpoint:
        cache = _Cache(below, int(self.max_mib * 2**20))
        return below.then(self.name, cache.answer, cache.figures)


class _Cache:
    """The kept answers of one endpoint."""

    def __init__(self, below: Endpoint, max_bytes: int) -> None:
        from cachetools import LRUCache

        self._below, self._identity = below, below.identity.encode()
        self._kept: LRUCache[bytes, Arrays] = LRUCache(max_bytes, getsizeof=size)
        self._hits, self._misses = 0, 0

    async def answer(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        key = self._identity + request_digest(feeds)
        found = self._kept.get(key)
        if found is not None:
            self._hits += 1
            return copied(found)  # callers may write into what they get
        self._misses += 1
        answers = await self._below.answer(feeds)
        if size(answers) <= self._kept.maxsize:
            self._kept[key] = copied(answers)
        return answers

    def figures(self) -> Mapping[str, float]:
        return {"hits": self._hits, "misses": self._misses, "held_bytes": self._kept.currsize}
