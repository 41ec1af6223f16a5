"""How near requests come to kept ones, and whether the kept answers would have done: to calibrate on."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pareflow.errors import CalibrationError
from pareflow.runtime.caching.embedder import Embedder
from pareflow.runtime.caching.index import ExactIndex
from pareflow.runtime.caching.near_answers import Held, NearAnswers
from pareflow.runtime.caching.sameness import kind_of, same
from pareflow.runtime.caching.semantic_cache import SemanticCache
from pareflow.runtime.endpoint import Endpoint
from pareflow.workload import Arrays


class Pairs(NamedTuple):
    """Scores of asked requests, whether the kept answer was their own, both (n,); what was mostly held."""

    scores: np.ndarray
    same: np.ndarray
    held: Held


async def pairs(
    policy: SemanticCache, below: Endpoint, kept: Sequence[Arrays], asked: Sequence[Arrays]
) -> Pairs:
    """Per asked request its score to the nearest kept one, and whether that one's answer is its own.

    They are at most as many as were asked: what is below `min_similarity` can never be a hit. Of `kept` the
    last are held, as many as the cache itself has room for.

    Requests hold one sample each. Given what is kept, pairs are independent, which an exact bound needs: so
    none of the asked is kept. Raises: CalibrationError where a request has no embedding; what `below` raises.
    """
    answers = NearAnswers(ExactIndex, int(policy.max_mib * 2**20), None)
    embedder = Embedder(None if policy.encoder is None else below.tiers[policy.encoder], policy.embedding)
    for feeds in kept:
        answer = await below.answer(feeds)
        kind = kind_of(answer, policy.same == "class", policy.judged)
        answers.keep((await _vectors(embedder, feeds))[0], answer, kind)
    scores, agree = list[float](), list[bool]()
    for feeds in asked:
        (near,) = answers.nearest(await _vectors(embedder, feeds))
        if near is not None and near.similarity >= policy.min_similarity:
            fresh = await below.answer(feeds)
            scores.append(policy.score_of(near))
            agree.append(same(near.answer, fresh, policy.same == "class", policy.judged, policy.tolerance))
    return Pairs(np.array(scores), np.array(agree, bool), answers.mostly_held)


async def _vectors(embedder: Embedder, feeds: Arrays) -> np.ndarray:
    vectors = await embedder.vectors(feeds)
    if vectors is None:
        raise CalibrationError(
            "every request must have an embedding", "one has none", "Name a tier that embeds as `encoder`"
        )
    return vectors
