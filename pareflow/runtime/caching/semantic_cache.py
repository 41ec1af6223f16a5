"""Answers to requests that mean the same: embedded, searched for, and given where they are near enough."""

import logging
import random
import time
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from pareflow.catalog import installed_version
from pareflow.errors import CalibrationError, SpecError
from pareflow.runtime.caching.accounts import Account
from pareflow.runtime.caching.cache import Cache
from pareflow.runtime.caching.calibration import HitCalibration
from pareflow.runtime.caching.embedder import Embedder
from pareflow.runtime.caching.false_hits import NONE_HELD, FalseHits, Threshold
from pareflow.runtime.caching.index import ExactIndex, UsearchIndex
from pareflow.runtime.caching.near_answers import Held, NearAnswer, NearAnswers
from pareflow.runtime.caching.rows import joined, parted
from pareflow.runtime.caching.sameness import kind_of, same
from pareflow.runtime.caching.session import copied
from pareflow.runtime.endpoint import Endpoint
from pareflow.runtime.policy import TensorName
from pareflow.runtime.rows import row_count, taken
from pareflow.variant import digest
from pareflow.workload import Arrays

log = logging.getLogger(__name__)


class SemanticCache(Cache):
    """Give the answer that was kept for a request near enough to this one, sample by sample.

    Near enough is by `score`: the cosine to the nearest kept request, or its margin, by how much nearer it is
    than the nearest that has another answer. On Banking77 the margin has about a fifth of the false hits of
    the cosine at as many hits (`bench/caching.py`). Where answers are values, not classes, there is only the
    cosine.

    It is an approximation, and may be wrong: its threshold is calibrated (`pareflow calibrate`, for these
    variants alone; or by itself on shadow pairs, while every request is computed), a share of the hits is
    computed again, and where the rate of false hits is above the limit with 95 % confidence it gives no more
    hits. By margin it gives none while it holds fewer answers than it was calibrated on, or of fewer kinds
    than most of those were of: a margin to few others says little. An encoder that fails, or a request that
    it cannot embed, is no failed request: it is computed. While it has no threshold, too few answers or no
    vectors, requests cost and none is a hit: it rests as after any loss.
    """

    name: ClassVar[str] = "semantic_cache"
    regroups: ClassVar[bool] = True
    chooses: ClassVar[bool] = True
    approximates: ClassVar[bool] = True

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
    calibration: HitCalibration | None = Field(
        default=None, description="the threshold, and which variants it is for; instead of `threshold`"
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

    @model_validator(mode="after")
    def _has_one_threshold(self) -> Self:
        if self.threshold is not None and self.calibration is not None:
            raise ValueError("`threshold` and `calibration` must not both be given: the record holds one")
        return self

    def unfit(self) -> str | None:
        absent = self.index == "usearch" and installed_version("usearch") is None
        return "not installed: usearch" if absent else None

    def tensors(self) -> tuple[TensorName, ...]:
        found = list[TensorName]()
        if self.judged is not None:
            found.append(TensorName("judged", "outputs", self.judged))
        if self.embedding is not None and self.encoder is not None:
            found.append(TensorName("embedding", "outputs", self.embedding, self.encoder))
        return tuple(found)

    def wrap(self, below: Endpoint) -> Endpoint:
        """Raises: SpecError where `encoder` is no tier, CalibrationError where the record is of others."""
        if self.encoder is not None and self.encoder not in below.tiers:
            known = ", ".join(below.tiers) or "none"
            raise SpecError(self.label, [f"encoder: must be one of the tiers ({known})"])
        self._check(below)
        cache = _Answers(self, below)
        return below.then(self.name, cache.answer, cache.figures, flush=cache.flush)

    @property
    def deciding(self) -> str:
        """The digest of what decides on a hit, beside the threshold: it is calibrated for these alone."""
        kinds = {"encoder", "embedding", "min_similarity", "same", "judged", "tolerance"}
        return digest(self.kind_of_score, self.model_dump(mode="json", include=kinds))

    @property
    def kind_of_score(self) -> Literal["margin", "similarity"]:
        """What near enough is really by."""
        return "margin" if self.score == "margin" and self.same == "class" else "similarity"

    def score_of(self, near: NearAnswer) -> float:
        """What is held against the threshold."""
        return near.margin if self.kind_of_score == "margin" else near.similarity

    def _check(self, below: Endpoint) -> None:
        if self.calibration is None:
            return
        self.calibration.require(below)
        record = self.calibration
        if record.settings != self.deciding or record.max_false_hits > self.max_false_hits:
            raise CalibrationError(
                "a threshold must be calibrated with the settings of its cache, and to its limit",
                f"it was with others, on the {record.score}, to {record.max_false_hits:g}",
                "Calibrate again, or set them back",
            )


class _Answers:
    """A semantic cache before one endpoint."""

    def __init__(self, policy: SemanticCache, below: Endpoint) -> None:
        import scipy.stats  # noqa: F401  (its second is taken now, not while requests wait)

        self._policy, self._below = policy, below
        self._embedder = Embedder(
            None if policy.encoder is None else below.tiers[policy.encoder], policy.embedding
        )
        index = UsearchIndex if policy.index == "usearch" else ExactIndex
        self._kept = NearAnswers(index, int(policy.max_mib * 2**20), policy.ttl_s)
        self._account = Account(policy.window, policy.rest_s)
        self._by_margin = policy.kind_of_score == "margin"
        known, needed = self._known()
        self._threshold = Threshold(known, policy.max_false_hits, policy.shadow_pairs, needed)
        self._told_of_room = False
        self._false_hits = FalseHits(policy.max_false_hits)
        self._chance = random.Random(0)  # which hits are computed again

    async def answer(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        count = row_count(feeds)
        if self._stopped or not self._account.on() or not count:
            return await self._below.answer(feeds)
        began = time.perf_counter()
        vectors = await self._embedder.vectors(feeds)
        if vectors is None:
            self._account.looked_up(0, count, time.perf_counter() - began)
            return await self._below.answer(feeds)
        near = [
            one if one and one.similarity >= self._policy.min_similarity else None
            for one in self._kept.nearest(vectors)
        ]
        return await self._completed(feeds, vectors, near, time.perf_counter() - began)

    async def flush(self) -> None:
        self._kept.clear()

    def figures(self) -> Mapping[str, float]:
        account = self._account.figures()
        return {
            **account,
            **self._threshold.figures(),
            **self._false_hits.figures(),
            "on": 0.0 if self._stopped else account["on"],
            "unembedded": self._embedder.failures,
            "held_bytes": self._kept.held_bytes,
            "entries": len(self._kept),
            "kinds": self._kept.held.kinds,
        }

    @property
    def _stopped(self) -> bool:
        return self._false_hits.exceeded or self._threshold.given_up

    def _known(self) -> tuple[float | None, Held]:
        """The threshold that was given, and how many must be held."""
        record = self._policy.calibration
        if record is None:
            return self._policy.threshold, NONE_HELD
        if not self._by_margin:
            return record.threshold, NONE_HELD
        if record.held_answers is None or record.held_kinds is None:
            log.warning(
                "the semantic cache was calibrated before records said how many answers were held: it looks "
                "for a threshold of its own; run `pareflow calibrate` again"
            )
            return None, NONE_HELD
        return record.threshold, Held(record.held_answers, record.held_kinds)

    async def _completed(
        self,
        feeds: Mapping[str, np.ndarray],
        vectors: np.ndarray,
        near: Sequence[NearAnswer | None],
        cost_s: float,
    ) -> Arrays:
        """The request's answer: of hits what is kept, all else computed, with a share of the hits."""
        held = self._kept.mostly_held if self._by_margin and self._threshold.wanted else NONE_HELD
        limit = self._threshold.value if self._kept.held.reaches(self._threshold.held) else None
        hits = {
            i: one
            for i, one in enumerate(near)
            if one and limit is not None and self._policy.score_of(one) >= limit
        }
        reruns = [i for i in hits if self._chance.random() < self._policy.rerun_share]
        wanted = [i for i in range(len(near)) if i not in hits or i in reruns]
        self._account.looked_up(len(hits), len(near) - len(hits), cost_s)
        answers = {i: copied(one.answer) for i, one in hits.items()}
        if wanted:
            answers |= await self._computed(feeds, wanted, len(reruns))
        began = time.perf_counter()
        for i in wanted:
            self._compare(near[i], answers[i], i in hits, held)
            kind = kind_of(answers[i], self._policy.same == "class", self._policy.judged)
            self._kept.keep(vectors[i], answers[i], kind)
        self._tell_of_room()
        self._account.paid(time.perf_counter() - began)
        whole = joined([answers[i] for i in range(len(near))])
        return await self._below.answer(feeds) if whole is None else whole

    async def _computed(
        self, feeds: Mapping[str, np.ndarray], rows: list[int], reruns: int
    ) -> dict[int, Arrays]:
        began = time.perf_counter()
        outputs = await self._below.answer(taken(feeds, rows))
        took_s = time.perf_counter() - began
        self._account.computed(len(rows), took_s)
        self._account.paid(took_s * reruns / len(rows))
        return dict(zip(rows, parted(outputs, len(rows), self._policy.name), strict=True))

    def _compare(self, near: NearAnswer | None, fresh: Arrays, hit: bool, held: Held) -> None:
        """What was computed beside a kept answer says something of the threshold."""
        if near is None or not (hit or self._threshold.wanted):
            return
        policy = self._policy
        agree = same(near.answer, fresh, policy.same == "class", policy.judged, policy.tolerance)
        if not hit:
            self._threshold.observe(policy.score_of(near), agree, held)
            return
        self._false_hits.observe(not agree)
        if self._false_hits.exceeded:
            log.warning("the semantic cache is off: too many of its hits are false: %s", self.figures())

    def _tell_of_room(self) -> None:
        """Once, where so many as it needs never fit."""
        needed, room = self._threshold.held.answers, self._kept.room
        if needed > room and not self._told_of_room:
            self._told_of_room = True
            log.warning(
                "the semantic cache must hold %d answers for a hit, and has room for %d: raise `max_mib`",
                needed,
                room,
            )
