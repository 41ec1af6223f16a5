"""A session that keeps its answers: for a caller without a server, such as an offline bundle.

A request is a whole batch of preprocessed inputs; it equals another where names, types, shapes and every byte
do. It needs numpy alone, so that it runs on a device.
"""

from collections import OrderedDict
from collections.abc import Mapping
from threading import Lock

import numpy as np

from pareflow.measurement import Ran
from pareflow.runtime.caching.keys import request_key
from pareflow.session import Session
from pareflow.workload import Arrays


class CachedSession:
    """A session and its last answers, the least recently used of which go first.

    `hits` and `misses` count requests; threads may share it.
    """

    def __init__(self, session: Session, max_bytes: int) -> None:
        self._session, self._max_bytes = session, max_bytes
        self._kept: OrderedDict[bytes, Arrays] = OrderedDict()
        self._lock = Lock()
        self.hits, self.misses, self.held_bytes = 0, 0, 0

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        key = request_key(b"", feeds)  # one session, one space
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                self.hits += 1
                return copied(found)  # callers may write into what they get
            self.misses += 1
        answers = self._session.run(feeds)
        self._keep(key, copied(answers))
        return answers

    def ran(self) -> Ran:
        return self._session.ran()

    def _keep(self, key: bytes, answers: Arrays) -> None:
        """Take the answers in, and drop the oldest until all fit; what never fits is not taken."""
        needed = size(answers)
        with self._lock:
            if needed > self._max_bytes or key in self._kept:
                return
            self._kept[key] = answers
            self.held_bytes += needed
            while self.held_bytes > self._max_bytes:
                self.held_bytes -= size(self._kept.popitem(last=False)[1])


def copied(answers: Mapping[str, np.ndarray]) -> Arrays:
    """Answers of the caller's own."""
    return {name: array.copy() for name, array in answers.items()}


def size(answers: Mapping[str, np.ndarray]) -> int:
    """The bytes of all arrays."""
    return sum(array.nbytes for array in answers.values())
