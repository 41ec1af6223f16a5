"""Requests of one batch brought to one length, and their answers cut back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pareflow.workload import Arrays


@dataclass(frozen=True, slots=True)
class Padding:
    """How requests are filled up along `axis`: to the least of `lengths` that holds the longest of a batch.

    A batch that is longer than all of `lengths` is filled up to its own longest; without an axis nothing is.
    What masks the filling out, such as an attention mask, is an input like any other: 0 by default.
    """

    axis: int | None = None
    lengths: Sequence[int] = ()
    values: Mapping[str, float] = field(default_factory=dict)
    outputs: Sequence[str] = ()

    def kind(self, feeds: Mapping[str, np.ndarray]) -> object:
        """Equal for requests that may be computed together."""
        return tuple((name, array.dtype.str, self._open(array)) for name, array in sorted(feeds.items()))

    def changes(self, feeds: Mapping[str, np.ndarray]) -> bool:
        """Whether a request that is computed alone is filled up."""
        return self.axis is not None and self._target([feeds]) != self._length(feeds)

    def joined(self, batch: Sequence[Mapping[str, np.ndarray]]) -> Arrays:
        """The requests one after the other along the first axis."""
        target = self._target(batch)
        return {
            name: np.concatenate([self._filled(name, feeds[name], target) for feeds in batch])
            for name in batch[0]
        }

    def parted(
        self, outputs: Mapping[str, np.ndarray], batch: Sequence[Mapping[str, np.ndarray]]
    ) -> list[Arrays]:
        """What belongs to each request."""
        counts = [len(next(iter(feeds.values()))) for feeds in batch]
        ends = np.cumsum(counts)
        parts = [
            {name: array[end - count : end].copy() for name, array in outputs.items()}
            for count, end in zip(counts, ends, strict=True)
        ]
        if self.axis is not None:
            for part, feeds in zip(parts, batch, strict=True):
                keep = (slice(None),) * self.axis + (slice(self._length(feeds)),)
                there = [name for name in self.outputs if name in part]  # a tier that embeds has others
                part.update({name: part[name][keep] for name in there})
        return parts

    def _open(self, array: np.ndarray) -> tuple[int | None, ...]:
        """The shape without its first axis, and with None for the length."""
        return tuple(None if axis == self.axis else size for axis, size in enumerate(array.shape) if axis)

    def _length(self, feeds: Mapping[str, np.ndarray]) -> int:
        assert self.axis is not None  # only asked then
        return max((a.shape[self.axis] for a in feeds.values() if a.ndim > self.axis), default=0)

    def _target(self, batch: Sequence[Mapping[str, np.ndarray]]) -> int:
        if self.axis is None:
            return 0
        longest = max(self._length(feeds) for feeds in batch)
        return min((length for length in self.lengths if length >= longest), default=longest)

    def _filled(self, name: str, array: np.ndarray, target: int) -> np.ndarray:
        if self.axis is None or array.ndim <= self.axis or array.shape[self.axis] == target:
            return array
        widths = [(0, 0)] * array.ndim
        widths[self.axis] = (0, target - array.shape[self.axis])
        return np.pad(array, widths, constant_values=self.values.get(name, 0))
