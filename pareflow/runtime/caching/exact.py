"""Answers kept by the exact content of the inputs: what was asked before is not computed again."""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock
from typing import ClassVar

import numpy as np
from pydantic import Field

from pareflow.measurement import Ran
from pareflow.runtime.policy import Policy
from pareflow.session import Session
from pareflow.workload import Arrays


class ExactCache(Policy):
    """Keep the answers to the last requests, and give them again to equal ones.

    A request is a whole batch of preprocessed inputs; it equals another where names, types, shapes and every
    byte do. What is least recently used goes first. It needs numpy alone, so that it runs on a device.
    """

    name: ClassVar[str] = "exact_cache"
    requires: ClassVar[tuple[str, ...]] = ("numpy",)

    max_mib: float = Field(default=16, gt=0, description="the most that the kept answers take")

    def wrap(self, session: Session) -> "CachedSession":
        return CachedSession(session, int(self.max_mib * 2**20))


class CachedSession:
    """A session and its kept answers. `hits` and `misses` count requests; threads may share it."""

    def __init__(self, session: Session, max_bytes: int) -> None:
        self._session, self._max_bytes = session, max_bytes
        self._kept: OrderedDict[bytes, Arrays] = OrderedDict()
        self._lock = Lock()
        self.hits, self.misses, self.held_bytes = 0, 0, 0

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        key = request_digest(feeds)
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                self.hits += 1
                return _copied(found)  # callers may write into what they get
            self.misses += 1
        answers = self._session.run(feeds)
        self._keep(key, _copied(answers))
        return answers

    def ran(self) -> Ran:
        return self._session.ran()

    def _keep(self, key: bytes, answers: Arrays) -> None:
        """Take the answers in, and drop the oldest until all fit; what never fits is not taken."""
        size = _size(answers)
        with self._lock:
            if size > self._max_bytes or key in self._kept:
                return
            self._kept[key] = answers
            self.held_bytes += size
            while self.held_bytes > self._max_bytes:
                self.held_bytes -= _size(self._kept.popitem(last=False)[1])


def request_digest(feeds: Mapping[str, np.ndarray]) -> bytes:
    """Names a request by its content, whatever the order of its inputs: 32 bytes."""
    digest = hashlib.blake2b(digest_size=32)
    for name in sorted(feeds):
        array = np.ascontiguousarray(feeds[name])
        digest.update(f"{name!r} {array.dtype.str} {feeds[name].shape}\n".encode())
        texts = array.dtype.kind == "O"  # whose bytes are addresses
        digest.update(repr(array.tolist()).encode() if texts else array.tobytes())
    return digest.digest()


def _copied(answers: Mapping[str, np.ndarray]) -> Arrays:
    return {name: array.copy() for name, array in answers.items()}


def _size(answers: Arrays) -> int:
    return sum(array.nbytes for array in answers.values())
