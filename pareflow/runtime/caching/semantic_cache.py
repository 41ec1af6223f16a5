"""Answers to requests that mean the same: embedded, searched for, and given where they are near enough."""

import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field

from pareflow.catalog import installed_version
from pareflow.errors import SpecError, UnsuitableError
from pareflow.runtime.caching.accounts import Account
from pareflow.runtime.caching.cache import Cache
from pareflow.runtime.caching.false_hits import FalseHits, Threshold
from pareflow.runtime.caching.index import ExactIndex, Index, Near, UsearchIndex
from pareflow.runtime.caching.keys import row_count, taken
from pareflow.runtime.caching.rows import joined, parted
from pareflow.runtime.caching.sameness import kind_of, same
from pareflow.runtime.caching.session import copied
from pareflow.runtime.caching.stores.memory import entry_bytes
from pareflow.runtime.endpoint import Endpoint
from pareflow.workload import Arrays

NEARLY_ONE = 1 - 1e-6
"""The similarity from which on two requests are taken for one, and the newer answer replaces the older."""

log = logging.getLogger(__name__)


class SemanticCache(Cache):
    """Give the answer that was kept for a request near enough to this one, sample by sample.

    Near enough is by `score`: the cosine to the nearest kept request, or its margin, by how much nearer it is
    than the nearest that has another answer. On Banking77 the margin has a sixth of the false hits of the
    cosine at as many hits (`bench/caching.py`). Where answers are values, not classes, there is only the
    cosine.

    It is an approximation, and may be wrong: `threshold` is calibrated (`calibrate`, on labelled pairs, or by
    itself on shadow pairs, while every request is computed), a share of the hits is computed again, and where
    the rate of false hits is above the limit with 95 % confidence it gives no more hits. An encoder that
    fails, or a request that it cannot embed, is no failed request: it is computed.
    """

    name: ClassVar[str] = "semantic_cache"
    regroups: ClassVar[bool] = True

    encoder: str | None = Field(
        default=None, description="the tier that embeds; without it the floating inputs are the embedding"
    )
    embedding: str | None = Field(
        default=None, description="the encoder's output of shape (batch, width), where it has several"
    )
    score: Literal["margin", "similarity"] = Field(
        default="margin", description="what near enough is by; always the cosine where answers are values"
    )
    threshold: float | None = Field(
        default=None, ge=-1, le=2, description="score from which on it is a hit; else it calibrates itself"
    )
    min_similarity: float = Field(
        default=0.5, ge=-1, le=1, description="cosine below which nothing is a hit, whatever its margin"
    )
    max_false_hits: float = Field(default=0.01, gt=0, lt=1, description="share of the hits, at most")
    rerun_share: float = Field(default=0.02, gt=0, le=1, description="of the hits, computed again to compare")
    shadow_pairs: int = Field(default=2000, ge=1, description="from which it calibrates itself")
    same: Literal["class", "values"] = Field(
        default="class", description="answers are the same by their largest value's place, or by all values"
    )
    judged: str | None = Field(default=None, description="the output by which they are the same; else by all")
    tolerance: float = Field(default=1e-3, ge=0, description="by which same values differ, of the largest")
    index: Literal["exact", "usearch"] = Field(
        default="exact", description="exact to some tens of thousands of kept answers; usearch above"
    )

    def unfit(self) -> str | None:
        absent = self.index == "usearch" and installed_version("usearch") is None
        return "not installed: usearch" if absent else None

    def wrap(self, below: Endpoint) -> Endpoint:
        """Raises: SpecError where `encoder` is no tier."""
        if self.encoder is not None and self.encoder not in below.tiers:
            known = ", ".join(below.tiers) or "none"
            raise SpecError(self.label, [f"encoder: must be one of the tiers ({known})"])
        cache = _Answers(self, below)
        return below.then(self.name, cache.answer, cache.figures, flush=cache.flush)


@dataclass(frozen=True, slots=True)
class _Kept:
    answer: Arrays
    size: int
    expires: float


class _Found(NamedTuple):
    """What is kept for the nearest request, and how near it is."""

    score: float
    answer: Arrays


class _Answers:
    """The kept answers of one endpoint, by the vectors of their requests."""

    def __init__(self, policy: SemanticCache, below: Endpoint) -> None:
        import scipy.stats  # noqa: F401  (its second is taken now, not while requests wait)

        self._policy, self._below = policy, below
        self._account = Account(policy.window, policy.rest_s)
        self._threshold = Threshold(policy.threshold, policy.max_false_hits, policy.shadow_pairs)
        self._false_hits = FalseHits(policy.max_false_hits)
        self._chance = random.Random(0)  # which hits are computed again
        self._failures = 0
        self._empty()

    async def answer(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        if self._stopped or not self._account.on() or not row_count(feeds):
            return await self._below.answer(feeds)
        began = time.perf_counter()
        vectors = await self._embedded(feeds)
        if vectors is None:
            self._account.paid(time.perf_counter() - began)
            return await self._below.answer(feeds)
        near = self._near(vectors)
        return await self._completed(feeds, vectors, near, time.perf_counter() - began)

    async def flush(self) -> None:
        self._empty()

    def figures(self) -> Mapping[str, float]:
        account = self._account.figures()
        return {
            **account,
            **self._threshold.figures(),
            **self._false_hits.figures(),
            "on": 0.0 if self._stopped else account["on"],
            "unembedded": self._failures,
            "held_bytes": self._kept.currsize,
            "entries": len(self._kept),
        }

    @property
    def _stopped(self) -> bool:
        return self._false_hits.exceeded or self._threshold.given_up

    def _empty(self) -> None:
        from cachetools import LRUCache

        self._kept: LRUCache[int, _Kept] = LRUCache(
            int(self._policy.max_mib * 2**20), getsizeof=lambda kept: kept.size
        )
        self._index: Index | None = None
        self._width, self._next_slot = 0, 0

    async def _embedded(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Vectors of length 1, (batch, width); None where there are none, whatever the encoder raised."""
        try:
            if self._policy.encoder is None:
                given = {name: array for name, array in feeds.items() if array.dtype.kind == "f"}
                vectors = _flat(given, row_count(feeds))
            else:
                outputs = await self._below.tiers[self._policy.encoder].answer(feeds)
                vectors = _flat(_chosen(outputs, self._policy.embedding), row_count(feeds))
            lengths: np.ndarray = np.linalg.norm(vectors, axis=1, keepdims=True)
            if not np.all((lengths > 0) & np.isfinite(lengths)) or self._width not in (0, vectors.shape[1]):
                raise UnsuitableError(
                    "embeddings must be finite, not 0, and of one width",
                    f"got {vectors.shape}",
                    "Give another `encoder`",
                )
        except Exception as error:  # a cache fails no request
            if not self._failures:
                log.warning("requests that cannot be embedded are computed: %s", error)
            self._failures += 1
            return None
        unit: np.ndarray = vectors / lengths
        return unit

    def _near(self, vectors: np.ndarray) -> list[_Found | None]:
        """The nearest that is kept, for each vector; None where it is nothing like it."""
        if self._index is None:
            return [None] * len(vectors)
        near = self._index.nearest(vectors)
        outdated = {one.slot for one in near if self._kept[one.slot].expires < time.monotonic()}
        if outdated:
            for slot in outdated:
                self._remove(slot)
            return self._near(vectors)
        found = [self._found(one) if one.similarity >= self._policy.min_similarity else None for one in near]
        return found or [None] * len(vectors)

    def _found(self, near: Near) -> _Found:
        by_margin = self._policy.score == "margin" and self._policy.same == "class"
        return _Found(near.margin if by_margin else near.similarity, self._kept[near.slot].answer)

    async def _completed(
        self,
        feeds: Mapping[str, np.ndarray],
        vectors: np.ndarray,
        near: Sequence[_Found | None],
        cost_s: float,
    ) -> Arrays:
        """The request's answer: of hits what is kept, all else computed, with a share of the hits."""
        limit = self._threshold.value
        hits = {i: one for i, one in enumerate(near) if one and limit is not None and one.score >= limit}
        reruns = [i for i in hits if self._chance.random() < self._policy.rerun_share]
        wanted = [i for i in range(len(near)) if i not in hits or i in reruns]
        if limit is not None:
            self._account.looked_up(len(hits), len(near) - len(hits), cost_s)
        answers = {i: copied(one.answer) for i, one in hits.items()}
        if wanted:
            answers |= await self._computed(feeds, wanted, len(reruns))
        for i in wanted:
            self._compare(near[i], answers[i], i in hits)
            self._keep(vectors[i], answers[i])
        whole = joined([answers[i] for i in range(len(near))])
        return await self._below.answer(feeds) if whole is None else whole

    async def _computed(
        self, feeds: Mapping[str, np.ndarray], rows: list[int], reruns: int
    ) -> dict[int, Arrays]:
        began = time.perf_counter()
        whole = len(rows) == row_count(feeds)
        outputs = await self._below.answer(feeds if whole else taken(feeds, rows))
        took_s = time.perf_counter() - began
        self._account.computed(len(rows), took_s)
        self._account.paid(took_s * reruns / len(rows))
        return dict(zip(rows, parted(outputs, len(rows), self._policy.name), strict=True))

    def _compare(self, near: _Found | None, fresh: Arrays, hit: bool) -> None:
        """What was computed beside a kept answer says something of the threshold."""
        if near is None or not (hit or self._threshold.wanted):
            return
        policy = self._policy
        agree = same(near.answer, fresh, policy.same == "class", policy.judged, policy.tolerance)
        if not hit:
            self._threshold.observe(near.score, agree)
            return
        self._false_hits.observe(not agree)
        if self._false_hits.exceeded:
            log.warning("the semantic cache is off: too many of its hits are false: %s", self.figures())

    def _keep(self, vector: np.ndarray, answer: Arrays) -> None:
        size = entry_bytes(answer) + 2 * vector.nbytes  # the index doubles its room as it grows
        if size > self._kept.maxsize:
            return
        if self._index is None:
            self._width = len(vector)
            self._index = (UsearchIndex if self._policy.index == "usearch" else ExactIndex)(self._width)
        for near in self._index.nearest(vector[None]):
            if near.similarity >= NEARLY_ONE:
                self._remove(near.slot)
        while self._kept.currsize + size > self._kept.maxsize:
            self._index.remove(self._kept.popitem()[0])
        expires = time.monotonic() + (self._policy.ttl_s or float("inf"))
        self._kept[self._next_slot] = _Kept(copied(answer), size, expires)
        kind = kind_of(answer, self._policy.same == "class", self._policy.judged)
        self._index.add(self._next_slot, vector, self._next_slot if kind is None else kind)
        self._next_slot += 1

    def _remove(self, slot: int) -> None:
        assert self._index is not None  # there was something in it
        del self._kept[slot]
        self._index.remove(slot)


def _chosen(outputs: Mapping[str, np.ndarray], name: str | None) -> Arrays:
    """The one output that is the embedding. Raises: UnsuitableError."""
    if name is None and len(outputs) == 1:
        return dict(outputs)
    if name is not None and name in outputs:
        return {name: outputs[name]}
    raise UnsuitableError(
        "`embedding` must name an output of the encoder", f"it has {', '.join(outputs)}", "Give its name"
    )


def _flat(arrays: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """One vector for each sample. Raises: UnsuitableError where nothing has rows."""
    rows = [array.reshape(count, -1) for array in arrays.values() if array.ndim and len(array) == count]
    if not rows:
        raise UnsuitableError(
            "a request must have an embedding", "none of its arrays has numbers by row", "Give an `encoder`"
        )
    return np.concatenate(rows, axis=1).astype(np.float32)
