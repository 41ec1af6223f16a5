"""Streams of small integers in as many bits as their frequencies say, and back: interleaved rANS in numpy.

Source: Duda, 2013, arXiv:1311.2540; Giesen, 2014, arXiv:1402.3392, section 3 (interleaving). Each stream has
a table of its own, and is cut into lanes of about `LANE` symbols; all lanes of all streams advance together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

LANE = 4096
"""Symbols per state; a state takes four bytes."""

SCALE = 12
"""A stream's frequencies add up to 2 to this power."""

MOST_SYMBOLS = 1024
_LOW = 1 << 16
"""States lie in [2^16, 2^32), and move in words of sixteen bits."""


def entropy_bits(symbols: np.ndarray) -> float:
    """What the symbols take at best, their table included: n · H, and two bytes per symbol."""
    counts = np.bincount(symbols)
    used = counts[counts > 0]
    return float(-(used * np.log2(used / len(symbols))).sum()) + 16 * len(counts)


def encode(streams: Sequence[np.ndarray]) -> bytes:
    """Streams of integers in 0 … `MOST_SYMBOLS` - 1 as bytes."""
    if not streams:
        return b""
    tables = [_frequencies(np.bincount(stream)) for stream in streams]
    lanes = _Lanes([len(stream) for stream in streams])
    matrix = lanes.spread(streams)
    frequencies, starts = np.concatenate(tables), np.concatenate([*map(_starts, tables)])
    sizes = [len(table) for table in tables]
    offsets = np.cumsum([0, *sizes])[lanes.stream]
    states, words = np.full(len(offsets), _LOW, np.uint64), list[np.ndarray]()
    for step in range(len(matrix) - 1, -1, -1):
        active = lanes.active[step]
        keys = offsets[:active] + matrix[step, :active]
        frequency, state = frequencies[keys], states[:active]
        full = state >= frequency << np.uint64(32 - SCALE)
        words.append((state[full] & np.uint64(_LOW - 1)).astype("<u2"))
        state = np.where(full, state >> np.uint64(16), state)
        states[:active] = (state // frequency << np.uint64(SCALE)) + state % frequency + starts[keys]
    counts = np.asarray([len(streams), *map(len, streams), *sizes], "<u4")
    written = [table.astype("<u2") for table in tables]
    return b"".join(part.tobytes() for part in (counts, *written, states.astype("<u4"), *reversed(words)))


def decode(content: bytes) -> list[np.ndarray]:
    """The streams that `encode` was given."""
    if not content:
        return []
    count = int(np.frombuffer(content, "<u4", 1)[0])
    lengths, sizes = np.frombuffer(content, "<u4", 2 * count, offset=4).astype(np.intp).reshape(2, count)
    lanes = _Lanes(lengths.tolist())
    after_tables = 4 + 8 * count + 2 * int(sizes.sum())
    flat = np.frombuffer(content, "<u2", int(sizes.sum()), offset=4 + 8 * count)
    tables = np.split(flat.astype(np.uint64), np.cumsum(sizes)[:-1])
    states = np.frombuffer(content, "<u4", len(lanes.stream), offset=after_tables).astype(np.uint64)
    words = np.frombuffer(content, "<u2", offset=after_tables + 4 * len(states)).astype(np.uint64)
    slots, offsets, position = _Slots.of(tables), lanes.stream.astype(np.uint64) << np.uint64(SCALE), 0
    matrix = np.zeros((len(lanes.active), len(states)), np.uint16)
    for step, active in enumerate(lanes.active):
        state = states[:active]
        keys = (offsets[:active] + (state & np.uint64((1 << SCALE) - 1))).astype(np.intp)
        matrix[step, :active] = slots.symbol[keys]
        state = slots.frequency[keys] * (state >> np.uint64(SCALE)) + slots.beyond[keys]
        (low,) = np.nonzero(state < _LOW)
        state[low] = state[low] << np.uint64(16) | words[position : position + len(low)]
        position += len(low)
        states[:active] = state
    return lanes.gathered(matrix)


class _Lanes:
    """How streams of these lengths lie in a matrix (steps, lanes): long lanes first, so that the lanes that
    are active in a step are its first ones.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        counts = [max(1, round(length / LANE)) for length in lengths]
        longest = [-(-length // count) for length, count in zip(lengths, counts, strict=True)]
        parts = [
            np.minimum(longest[i], np.maximum(0, length - np.arange(counts[i]) * longest[i]))
            for i, length in enumerate(lengths)
        ]
        sizes = np.concatenate(parts)
        self.order = np.argsort(-sizes, kind="stable")
        self._sizes = sizes[self.order]
        self._counts = counts
        self.stream = np.repeat(np.arange(len(lengths)), counts)[self.order]
        self.active = np.searchsorted(-self._sizes, -np.arange(self._sizes[0]), side="left").tolist()

    def spread(self, streams: Sequence[np.ndarray]) -> np.ndarray:
        """Symbols of shape (steps, lanes); what no lane reaches is zero."""
        matrix = np.zeros((len(self.active), len(self.order)), np.uint16)
        for column, part in zip(self._columns(), self._parts(streams), strict=True):
            matrix[: len(part), column] = part
        return matrix

    def gathered(self, matrix: np.ndarray) -> list[np.ndarray]:
        """The streams of a matrix."""
        lanes = [matrix[: self._sizes[column], column] for column in self._columns()]
        edges = np.cumsum([0, *self._counts]).tolist()
        return [np.concatenate(lanes[start:end]) for start, end in pairwise(edges)]

    def _columns(self) -> list[int]:
        """The column of each lane, in the order of the streams."""
        columns: list[int] = np.argsort(self.order).tolist()
        return columns

    def _parts(self, streams: Sequence[np.ndarray]) -> list[np.ndarray]:
        out = []
        for stream, count in zip(streams, self._counts, strict=True):
            longest = -(-len(stream) // count)
            out += [stream[i * longest : (i + 1) * longest] for i in range(count)]
        return out


@dataclass(frozen=True)
class _Slots:
    """What a state's lowest bits say, for every stream and each of their values."""

    symbol: np.ndarray
    frequency: np.ndarray
    beyond: np.ndarray

    @classmethod
    def of(cls, tables: Sequence[np.ndarray]) -> "_Slots":
        symbols = [np.repeat(np.arange(len(table)), table.astype(np.intp)) for table in tables]
        frequencies = [table[symbol] for table, symbol in zip(tables, symbols, strict=True)]
        beyond = [
            np.arange(1 << SCALE) - _starts(table).astype(np.intp)[symbol]
            for table, symbol in zip(tables, symbols, strict=True)
        ]
        joined = (np.concatenate(parts) for parts in (symbols, frequencies, beyond))
        symbol, frequency, past = (array.astype(np.uint16) for array in joined)
        return cls(symbol, frequency, past)


def _frequencies(counts: np.ndarray) -> np.ndarray:
    """Counts as integers that add up to 2^`SCALE`; what occurs has at least one."""
    scaled = np.maximum(counts * (1 << SCALE) // counts.sum(), counts > 0).astype(np.int64)
    while (surplus := int(scaled.sum()) - (1 << SCALE)) > 0:
        largest = int(scaled.argmax())
        scaled[largest] -= min(surplus, (int(scaled[largest]) + 1) // 2)
    scaled[int(scaled.argmax())] -= surplus
    frequencies: np.ndarray = scaled.astype(np.uint64)
    return frequencies


def _starts(table: np.ndarray) -> np.ndarray:
    """The slot at which each symbol begins."""
    starts: np.ndarray = np.cumsum(table) - table
    return starts
