"""Named arrays as bytes and back: a small header, then the raw bytes. Never pickle, which runs code."""

import functools
import json
import math
import struct
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from pareflow.errors import UnsuitableError
from pareflow.workload import Arrays

_PREFIX = struct.Struct("<4sII")
_MAGIC = b"PFT1"


class _Layout(NamedTuple):
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]


def packed(arrays: Mapping[str, np.ndarray], key: bytes) -> bytes:
    """The arrays as bytes that belong to `key`: a checksum over both tells other bytes, and another's.

    Raises: UnsuitableError where an array holds objects or records.
    """
    for name, array in arrays.items():
        if array.dtype.kind in "OV":
            raise UnsuitableError(
                "kept answers must be numbers or texts of one width",
                f"`{name}` has the type {array.dtype}",
                "Keep them in memory (`store: memory`)",
            )
    layout = [[name, array.dtype.str, array.shape] for name, array in arrays.items()]
    header = json.dumps(layout, separators=(",", ":")).encode()
    body = b"".join([header, *(array.tobytes() for array in arrays.values())])
    return _PREFIX.pack(_MAGIC, _checksum(key, len(header), body), len(header)) + body


def unpacked(data: bytes, key: bytes) -> Arrays:
    """Arrays of the caller's own. Raises: ValueError where the bytes are not those packed for `key`."""
    if len(data) < _PREFIX.size:
        raise ValueError(f"{len(data)} bytes are no packed arrays")
    magic, checksum, length = _PREFIX.unpack_from(data)
    body = memoryview(data)[_PREFIX.size :]
    if magic != _MAGIC or _checksum(key, length, body) != checksum:
        raise ValueError("the bytes are not those that were packed")
    arrays, start = {}, length
    for name, dtype, shape in _layouts(bytes(body[:length])):
        count = math.prod(shape)
        flat = np.frombuffer(body, dtype, count, start) if count else np.empty(0, dtype)
        arrays[name] = flat.reshape(shape).copy()
        start += count * dtype.itemsize
    return arrays


def _checksum(key: bytes, length: int, body: bytes | memoryview) -> int:
    return zlib.crc32(body, zlib.crc32(key, length))


@functools.lru_cache(maxsize=256)
def _layouts(header: bytes) -> tuple[_Layout, ...]:
    """The answers of one endpoint have few layouts, and reading one takes longer than copying its arrays."""
    return tuple(_Layout(name, np.dtype(dtype), tuple(shape)) for name, dtype, shape in json.loads(header))
