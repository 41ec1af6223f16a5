"""Requests of one batch brought to one length, and their answers cut back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pareflow.workload import Arrays


@dataclass(frozen=True, slots=True)
class Padding:
    """How requests are filled up along `axis`: to the least of `lengths` that holds the longest of a batch.

    A batch that is longer than all of `lengths` is filled up to its own longest; without an axis nothing is.
    Of a request only those inputs are that are as long as it: the channels of an image beside a text are not.
    By `shapes` (-1 where sizes differ) it is known which can be as long; without such a one, any may be.
    What masks the filling out, such as an attention mask, is an input like any other: 0 by default.
    """

    axis: int | None = None
    lengths: Sequence[int] = ()
    values: Mapping[str, float] = field(default_factory=dict)
    outputs: Sequence[str] = ()
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def kind(self, feeds: Mapping[str, np.ndarray]) -> object:
        """Equal for requests that may be computed together."""
        along = self._along(feeds)
        return tuple(
            (name, array.dtype.str, self._open(array) if name in along else array.shape[1:])
            for name, array in sorted(feeds.items())
        )

    def changes(self, feeds: Mapping[str, np.ndarray]) -> bool:
        """Whether a request that is computed alone is filled up."""
        return self.axis is not None and self._target([feeds]) != self._length(feeds)

    def joined(self, batch: Sequence[Mapping[str, np.ndarray]]) -> Arrays:
        """The requests one after the other along the first axis."""
        along, target = self._along(batch[0]), self._target(batch)
        return {
            name: np.concatenate(
                [self._filled(name, feeds[name], target) if name in along else feeds[name] for feeds in batch]
            )
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

    def _along(self, feeds: Mapping[str, np.ndarray]) -> Mapping[str, int]:
        """The inputs that are as long as their request, and how long that is."""
        if self.axis is None:
            return {}
        sizes = {name: array.shape[self.axis] for name, array in feeds.items() if array.ndim > self.axis}
        sizes = {name: size for name, size in sizes.items() if self._differs(name)} or sizes
        return {name: size for name, size in sizes.items() if size == max(sizes.values())}

    def _differs(self, name: str) -> bool:
        assert self.axis is not None  # only asked then
        return -1 in self.shapes.get(name, ())[self.axis : self.axis + 1]

    def _length(self, feeds: Mapping[str, np.ndarray]) -> int:
        return next(iter(self._along(feeds).values()), 0)

    def _target(self, batch: Sequence[Mapping[str, np.ndarray]]) -> int:
        longest = max(self._length(feeds) for feeds in batch)
        return min((length for length in self.lengths if length >= longest), default=longest)

    def _filled(self, name: str, array: np.ndarray, target: int) -> np.ndarray:
        assert self.axis is not None  # only asked then
        if array.shape[self.axis] == target:
            return array
        widths = [(0, 0)] * array.ndim
        widths[self.axis] = (0, target - array.shape[self.axis])
        return np.pad(array, widths, constant_values=self.values.get(name, 0))
