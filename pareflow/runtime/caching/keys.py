"""Names of requests and of their rows by content: sha256 of what answers, and of every byte it is given.

Source of the choice: on a server with SHA instructions sha256 takes 2.4 µs for 4 KiB and 0.31 ms for 602 KB,
blake2b 3.9 µs and 0.57 ms (`bench/caching.py`).
"""

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from pareflow.runtime.rows import has_rows, row_count
from pareflow.variant import array_bytes

if TYPE_CHECKING:
    from hashlib import _Hash


def space_of(policy: str, identity: str) -> bytes:
    """Under which all keys of one policy before one endpoint lie: 32 bytes."""
    return hashlib.sha256(f"{policy!r} {identity!r}".encode()).digest()


def request_key(space: bytes, feeds: Mapping[str, np.ndarray]) -> bytes:
    """Equal where names, types, shapes and every byte are, whatever the order of the inputs: 32 bytes.

    Raises: UnsuitableError where an input holds objects that have no content of their own.
    """
    digest = hashlib.sha256(space)
    for name in sorted(feeds):
        _update(digest, name, feeds[name], feeds[name].shape)
    return digest.digest()


def row_keys(space: bytes, feeds: Mapping[str, np.ndarray], mask: str | None = None) -> list[bytes]:
    """A key for each sample of a batch, equal wherever the sample lies in whichever batch.

    An input that has not as many rows as the batch belongs to every sample. Zeros behind the last 1 of `mask`
    are filling, and count in none of the inputs that are as long as the mask. Where something else stands
    there, the whole row counts: a second text may be as long as the mask of the first.

    Raises: UnsuitableError, as of a request.
    """
    count = row_count(feeds)
    base = hashlib.sha256(space)
    shared = sorted(name for name, array in feeds.items() if not has_rows(array, count))
    for name in shared:
        _update(base, name, feeds[name], feeds[name].shape)
    keys = []
    for i in range(count):
        digest = base.copy()
        length = None if mask is None else _length(feeds[mask][i])
        for name in sorted(feeds.keys() - set(shared)):
            row = feeds[name][i]
            as_long = mask is not None and row.shape[:1] == feeds[mask].shape[1:2]
            if as_long and not np.count_nonzero(row[length:]):
                row = row[:length]
            _update(digest, name, row, ("row", *row.shape))
        keys.append(digest.digest())
    return keys


def _length(mask: np.ndarray) -> int:
    """Where the last 1 of a mask ends."""
    kept = np.flatnonzero(mask)
    return int(kept[-1]) + 1 if len(kept) else 0


def _update(digest: "_Hash", name: str, array: np.ndarray, shape: object) -> None:
    digest.update(f"{name!r} {array.dtype.str} {shape}\n".encode())
    if array.dtype.kind in "biufc":
        digest.update(np.ascontiguousarray(array).data)
    else:
        digest.update(array_bytes(array))
