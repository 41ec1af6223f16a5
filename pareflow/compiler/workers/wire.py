"""Messages over a pipe: a JSON header of known length, then the raw bytes of its arrays.

8 bytes   `MAGIC`, which holds the protocol's number
8 bytes   length of the header, little-endian
header    {…, "arrays": [[name, dtype, shape], …]}
arrays    one after another, C order
"""

import json
import struct
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

PROTOCOL = 1
MAGIC = b"pareflo" + bytes([PROTOCOL])
_LENGTH = struct.Struct("<Q")
_LONGEST_HEADER = 2**26
"""A longer one is no header, but a damaged length."""

Message = tuple[dict[str, Any], dict[str, np.ndarray]]


class BrokenPipe(Exception):
    """The stream ended, or what it holds is no message; the words say which."""


def write(stream: IO[bytes], header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Send one message.

    Raises: BrokenPipe where nobody reads; TypeError for arrays of objects, before anything is sent.
    """
    packed = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    listed = [[name, _dtype(array), array.shape] for name, array in packed.items()]
    text = json.dumps({**header, "arrays": listed}).encode()
    try:
        stream.write(MAGIC + _LENGTH.pack(len(text)) + text)
        for array in packed.values():
            stream.write(_bytes(array))
        stream.flush()
    except (BrokenPipeError, ValueError) as error:
        raise BrokenPipe(f"nobody reads it any more ({error})") from error


def read(stream: IO[bytes]) -> Message:
    """Wait for one message. Raises: BrokenPipe."""
    start = _exactly(stream, len(MAGIC) + _LENGTH.size)
    if start[: len(MAGIC)] != MAGIC:
        raise BrokenPipe(f"it began with {start!r}, which is no message of protocol {PROTOCOL}")
    (length,) = _LENGTH.unpack(start[len(MAGIC) :])
    if length > _LONGEST_HEADER:
        raise BrokenPipe(f"its header would have {length} bytes")
    text = _exactly(stream, length)
    try:
        header: dict[str, Any] = json.loads(text)
        arrays = {name: _empty(dtype, shape) for name, dtype, shape in header.pop("arrays")}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise BrokenPipe(f"its header is damaged ({error!r})") from error
    for array in arrays.values():
        if array.nbytes:
            _fill(stream, array.reshape(-1).view(np.uint8).data)
    return header, arrays


def _dtype(array: np.ndarray) -> str:
    if array.dtype.kind not in "biufcSUmM":
        raise TypeError(f"arrays of {array.dtype} cannot be sent: only numbers, booleans and texts can")
    return array.dtype.str


def _bytes(array: np.ndarray) -> memoryview | bytes:
    """The array's memory; an empty one has none that could be viewed."""
    return array.reshape(-1).view(np.uint8).data if array.nbytes else b""


def _empty(dtype: str, shape: list[int]) -> np.ndarray:
    array = np.empty(shape, np.dtype(dtype))
    _dtype(array)
    return array


def _exactly(stream: IO[bytes], size: int) -> bytes:
    content = bytearray(size)
    _fill(stream, memoryview(content))
    return bytes(content)


def _fill(stream: IO[bytes], into: memoryview) -> None:
    position, size = 0, len(into)
    while position < size:
        count = stream.readinto(into[position:])  # type: ignore[attr-defined]
        if not count:
            raise BrokenPipe(f"it ended after {position} of {size} bytes")
        position += count
