"""Answers kept row by row: of a batch, only the samples that were never seen are computed."""

import time
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic import Field

from pareflow.errors import SpecError
from pareflow.runtime.caching.cache import KeyedCache
from pareflow.runtime.caching.keys import row_keys
from pareflow.runtime.caching.lookups import Lookups
from pareflow.runtime.caching.rows import joined, parted
from pareflow.runtime.endpoint import Endpoint, Handler
from pareflow.runtime.rows import taken
from pareflow.workload import Arrays


class EmbeddingCache(KeyedCache):
    """Keep what an encoder makes of each sample, and compute the missing samples of a batch alone.

    It may stand before whatever computes samples independently of each other and takes any batch size: the
    encoder of a two-stage model, a tier that embeds for a semantic cache, or a whole network. It is wrong
    before dynamic int8, whose scales are of the whole batch.
    """

    name: ClassVar[str] = "embedding_cache"
    regroups: ClassVar[bool] = True

    mask: str | None = Field(
        default=None, description="input that is 0 where rows are filled up, so that filling changes no key"
    )

    def _kind(self) -> str:
        return f"{self.name} {self.mask}"

    def _asking(self, below: Endpoint, space: bytes, lookups: Lookups) -> Handler:
        async def ask(feeds: Mapping[str, np.ndarray]) -> Arrays:
            began = time.perf_counter()
            if self.mask is not None and self.mask not in feeds:
                raise SpecError(self.label, [f"mask: must be an input ({', '.join(feeds)})"])
            keys = row_keys(space, feeds, self.mask)

            async def compute(rows: list[int]) -> list[Arrays]:
                return parted(await below.answer(taken(feeds, rows)), len(rows), self.name)

            if not keys:
                return await below.answer(feeds)
            answer = joined(await lookups.answers(keys, compute, began))
            # rows of several lengths, kept from batches that were filled up otherwise, make no batch
            return await below.answer(feeds) if answer is None else answer

        return ask
