"""Requests as vectors, for a semantic cache."""

import logging
from collections.abc import Mapping

import numpy as np

from pareflow.errors import UnsuitableError
from pareflow.runtime.endpoint import Endpoint
from pareflow.runtime.rows import row_count
from pareflow.workload import Arrays

log = logging.getLogger(__name__)


class Embedder:
    """What an encoder makes of requests; without one, their floating inputs.

    `output` names the encoder's output, where it has several. `failures` counts requests without vectors.
    """

    def __init__(self, encoder: Endpoint | None, output: str | None) -> None:
        self._encoder, self._output = encoder, output
        self._width: int | None = None
        self.failures = 0

    async def vectors(self, feeds: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Of length 1, (batch, width); None where there are none, whatever the encoder raised."""
        try:
            vectors = _flat(await self._arrays(feeds), row_count(feeds))
            lengths: np.ndarray = np.linalg.norm(vectors, axis=1, keepdims=True)
            self._check(vectors, lengths)
        except Exception as error:  # a cache fails no request
            if not self.failures:
                log.warning("requests that cannot be embedded are computed: %s", error)
            self.failures += 1
            return None
        unit: np.ndarray = vectors / lengths
        return unit

    async def _arrays(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        if self._encoder is None:
            return {name: array for name, array in feeds.items() if array.dtype.kind == "f"}
        outputs = await self._encoder.answer(feeds)
        if self._output is None and len(outputs) == 1:
            return outputs
        if self._output is not None and self._output in outputs:
            return {self._output: outputs[self._output]}
        raise UnsuitableError(
            "`embedding` must name an output of the encoder", f"it has {', '.join(outputs)}", "Give its name"
        )

    def _check(self, vectors: np.ndarray, lengths: np.ndarray) -> None:
        width = self._width or vectors.shape[1]
        if not np.all((lengths > 0) & np.isfinite(lengths)) or vectors.shape[1] != width:
            raise UnsuitableError(
                f"embeddings must be finite, not 0, and {width} wide",
                f"one is {vectors.shape[1]} wide, with lengths from {lengths.min()} to {lengths.max()}",
                "Give another `encoder`",
            )
        self._width = width


def _flat(arrays: Mapping[str, np.ndarray], count: int) -> np.ndarray:
    """One vector for each sample. Raises: UnsuitableError where nothing has rows."""
    rows = [array.reshape(count, -1) for array in arrays.values() if array.ndim and len(array) == count]
    if not rows:
        raise UnsuitableError(
            "a request must have an embedding", "none of its arrays has numbers by row", "Give an `encoder`"
        )
    return np.concatenate(rows, axis=1).astype(np.float32)
