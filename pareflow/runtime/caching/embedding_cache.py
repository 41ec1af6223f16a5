"""Answers kept row by row: of a batch, only the samples that were never seen are computed."""

import time
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic import Field

from pareflow.errors import SpecError
from pareflow.runtime.aside import ROW_BYTES, aside
from pareflow.runtime.caching.cache import KeyedCache
from pareflow.runtime.caching.keys import row_keys
from pareflow.runtime.caching.lookups import Lookups
from pareflow.runtime.caching.rows import joined, parted
from pareflow.runtime.caching.session import size
from pareflow.runtime.endpoint import Endpoint, Handler
from pareflow.runtime.policy import TensorName
from pareflow.runtime.rows import row_count, taken
from pareflow.workload import Arrays


class EmbeddingCache(KeyedCache):
    """Keep what an encoder makes of each sample, and compute the missing samples of a batch alone.

    It may stand before whatever computes samples independently of each other and takes any batch size: the
    encoder of a two-stage model, a tier that embeds for a semantic cache, or a whole network. It is wrong
    before dynamic int8, whose scales are of the whole batch.

    With a `mask` a row that was filled up with more zeros is the same row, once answers of two widths were
    seen to have one shape; until then, and where outputs are as long as their inputs, it is another one.
    """

    name: ClassVar[str] = "embedding_cache"
    regroups: ClassVar[bool] = True

    mask: str | None = Field(
        default=None,
        description="input that is 0 where rows are filled up, so that filling with zeros changes no key",
    )

    def tensors(self) -> tuple[TensorName, ...]:
        return () if self.mask is None else (TensorName("mask", "inputs", self.mask),)

    def _kind(self) -> str:
        return f"{self.name} {self.mask} zeros"  # keys that are kept from before left a second text out

    def _asking(self, below: Endpoint, space: bytes, lookups: Lookups) -> Handler:
        shapes = _Shapes()

        async def ask(feeds: Mapping[str, np.ndarray]) -> Arrays:
            began = time.perf_counter()
            if self.mask is not None and self.mask not in feeds:
                raise SpecError(self.label, [f"mask: must be an input ({', '.join(feeds)})"])
            width = () if self.mask is None else feeds[self.mask].shape[1:]
            kind = space if shapes.same else space + repr(width).encode()
            load = size(feeds) + ROW_BYTES * row_count(feeds)
            keys = await aside(load, lambda: row_keys(kind, feeds, self.mask))

            async def compute(rows: list[int]) -> list[Arrays]:
                outputs = await below.answer(taken(feeds, rows))
                shapes.saw(width, outputs)
                return await aside(ROW_BYTES * len(rows), lambda: parted(outputs, len(rows), self.name))

            if not keys:
                return await below.answer(feeds)
            answers = await lookups.answers(keys, compute, began)
            answer = await aside(ROW_BYTES * len(keys), lambda: joined(answers))
            # rows whose answers have several shapes make no batch
            return await below.answer(feeds) if answer is None else answer

        return ask


class _Shapes:
    """Whether answers have the same shape whatever the width of their inputs, as far as was seen."""

    def __init__(self) -> None:
        self._first: tuple[object, object] | None = None
        self._differ = self._several = False

    @property
    def same(self) -> bool:
        return self._several and not self._differ

    def saw(self, width: object, outputs: Mapping[str, np.ndarray]) -> None:
        """One more batch, computed at this width."""
        shape = {name: array.shape[1:] for name, array in outputs.items()}
        if self._first is None:
            self._first = width, shape
        self._several = self._several or width != self._first[0]
        self._differ = self._differ or shape != self._first[1]
