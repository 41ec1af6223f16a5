"""A store outside this process, kept from doing harm: left aside while it fails, written to behind."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence

import numpy as np

from pareflow.errors import StoreError, UnsuitableError
from pareflow.runtime.caching.stores.store import Backend
from pareflow.runtime.caching.tensors import packed, unpacked
from pareflow.workload import Arrays

MAX_UNWRITTEN = 16 * 2**20
"""Bytes that wait to be written; what comes on top of them is not kept."""
FIRST_REST_S, LONGEST_REST_S = 1.0, 60.0

log = logging.getLogger(__name__)


class Breaker:
    """Opens on a failure, for a second and twice as long each time; then one call may try.

    Source: Nygard, 2007, Release It!, "Circuit Breaker".
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._rest_s, self._until = FIRST_REST_S, 0.0
        self.failures = 0

    @property
    def open(self) -> bool:
        return self._until > 0

    def lets(self) -> bool:
        """Whether a call may go through; after a failure, one at a time may."""
        if not self.open:
            return True
        if time.monotonic() < self._until:
            return False
        self._until = time.monotonic() + self._rest_s  # so that nobody else tries meanwhile
        return True

    def failed(self, error: StoreError) -> None:
        """Leave it aside. Says so once, until it works again."""
        self.failures += 1
        if not self.open:
            log.warning("%s is left aside, requests are served without it: %s", self._label, error)
        self._until = time.monotonic() + self._rest_s
        self._rest_s = min(2 * self._rest_s, LONGEST_REST_S)

    def worked(self) -> None:
        if self.open:
            log.warning("%s works again", self._label)
        self._rest_s, self._until = FIRST_REST_S, 0.0


class SharedStore:
    """Answers packed into a backend. Nobody waits for a write, and many make one; a reader finds them before.

    Reading and writing are left aside each on its own: a store that is full or read-only still answers.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._reading = Breaker(f"reading from {backend.label}")
        self._writing = Breaker(f"writing to {backend.label}")
        self._unwritten: dict[bytes, bytes] = {}
        self._unwritten_bytes = self._dropped = self._damaged = 0
        self._writer: asyncio.Task[None] | None = None

    async def get(self, keys: Sequence[bytes]) -> list[Arrays | None]:
        found = [self._unwritten.get(key) for key in keys]
        missing = [i for i, data in enumerate(found) if data is None]
        if missing and self._reading.lets():
            try:
                read = await self._backend.read([keys[i] for i in missing])
            except StoreError as error:
                self._reading.failed(error)
            else:
                self._reading.worked()
                for i, data in zip(missing, read, strict=True):
                    found[i] = data
        return [
            None if data is None else self._unpacked(data, key) for data, key in zip(found, keys, strict=True)
        ]

    def put(self, items: Mapping[bytes, Mapping[str, np.ndarray]]) -> None:
        for key, arrays in items.items():
            try:
                data = packed(arrays, key)
            except UnsuitableError as error:
                self._drop(f"answers are not kept: {error}")
                continue
            if self._writing.open and not self._writing.lets():
                self._dropped += 1
            elif self._unwritten_bytes + len(data) > MAX_UNWRITTEN:
                self._drop(f"{self._backend.label} takes answers slower than they come; some are not kept")
            elif key not in self._unwritten:
                self._unwritten[key] = data
                self._unwritten_bytes += len(data)
        if self._unwritten and (self._writer is None or self._writer.done()):
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def flush(self) -> None:
        """Remove all of this endpoint's; what is being computed now may still come. Raises: StoreError."""
        await self.written()
        await self._backend.clear()

    async def written(self) -> None:
        """When all that was put is written, or given up."""
        if self._writer is not None:
            await asyncio.wait([self._writer])

    async def close(self) -> None:
        await self.written()
        await self._backend.close()

    def figures(self) -> Mapping[str, float]:
        return {
            **self._backend.figures(),
            "store_failures": self._reading.failures + self._writing.failures,
            "store_aside": float(self._reading.open or self._writing.open),
            "dropped": self._dropped,
            "damaged": self._damaged,
        }

    async def _write(self) -> None:
        while self._unwritten:
            items = dict(self._unwritten)
            try:
                await self._backend.write(items)
            except StoreError as error:
                self._writing.failed(error)
                self._dropped += len(self._unwritten)
                items = dict(self._unwritten)  # what came meanwhile has no better prospects
            else:
                self._writing.worked()
            for key, data in items.items():
                del self._unwritten[key]
                self._unwritten_bytes -= len(data)

    def _drop(self, message: str) -> None:
        if not self._dropped:
            log.warning(message)
        self._dropped += 1

    def _unpacked(self, data: bytes, key: bytes) -> Arrays | None:
        """None for bytes that are not what was kept, whatever changed them."""
        try:
            return unpacked(data, key)
        except ValueError as error:
            if not self._damaged:
                log.warning("%s gave damaged bytes, which are not used: %s", self._backend.label, error)
            self._damaged += 1
            return None
