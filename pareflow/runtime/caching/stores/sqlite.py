"""Answers in a SQLite file, which processes of one machine share."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pareflow.runtime.caching.stores.sqlite_connection import Connection

READ_PATIENCE_S, WRITE_PATIENCE_S = 0.01, 5.0
"""How long a lock of another process is waited for. Readers wait only while the log is begun anew."""
PAGE, ENTRY_BYTES = 4096, 200
MAX_TOUCHED = 10_000


class SqliteBackend:
    """A file in write-ahead mode; what was least recently used goes first, whoever kept it.

    Reads are done on the event loop: they take less than the way to a thread and back. Writes, which may
    wait for a disk or for another process, are done in a thread. `max_bytes` bounds the rounded-up entries of
    all endpoints that share the file; SQLite's log comes on top of it, some MiB.
    """

    def __init__(self, path: Path, space: bytes, max_bytes: int, ttl_s: float | None) -> None:
        self._path, self._space, self._max_bytes = path, space, max_bytes
        self._ttl_s = float("inf") if ttl_s is None else ttl_s
        self._reader = Connection(path, READ_PATIENCE_S)
        self._writer = Connection(path, WRITE_PATIENCE_S)
        self._touched: dict[bytes, float] = {}
        self._held = self._entries = 0

    @property
    def label(self) -> str:
        return f"the cache {self._path}"

    async def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        now = time.time()
        found: list[bytes | None] = []
        with self._reader.used() as connection:
            for key in keys:
                row = connection.execute(
                    "SELECT value FROM entries WHERE key = ? AND expires > ?", (key, now)
                ).fetchone()
                found.append(None if row is None else row[0])
                if row is not None and len(self._touched) < MAX_TOUCHED:
                    self._touched[key] = now
        return found

    async def write(self, items: Mapping[bytes, bytes]) -> None:
        touched, self._touched = self._touched, {}
        await asyncio.to_thread(self._in_transaction, lambda file: self._keep(file, items, touched))

    async def clear(self) -> None:
        await asyncio.to_thread(
            self._in_transaction,
            lambda connection: connection.execute("DELETE FROM entries WHERE space = ?", (self._space,)),
        )

    async def close(self) -> None:
        self._reader.close()
        self._writer.close()

    def figures(self) -> Mapping[str, float]:
        """As of the last write."""
        return {"held_bytes": self._held, "entries": self._entries}

    def _in_transaction(self, change: Callable[[sqlite3.Connection], object]) -> None:
        if self._writer.replaced():  # the file was removed, or another process began a new one
            self._writer.close()
            self._reader.stale = True
        with self._writer.used() as connection:
            connection.execute("BEGIN IMMEDIATE")
            change(connection)
            self._entries, self._held = connection.execute("SELECT entries, bytes FROM held").fetchone()
            connection.execute("COMMIT")

    def _keep(
        self, connection: sqlite3.Connection, items: Mapping[bytes, bytes], touched: Mapping[bytes, float]
    ) -> None:
        now = time.time()
        connection.executemany(
            "UPDATE entries SET used = ? WHERE key = ?", [(used, key) for key, used in touched.items()]
        )
        connection.execute("DELETE FROM entries WHERE expires <= ?", (now,))
        connection.executemany("DELETE FROM entries WHERE key = ?", [(key,) for key in items])
        for key, value in items.items():
            if (size := entry_bytes(value)) <= self._max_bytes:
                self._make_room(connection, size)
                row = (key, self._space, size, now + self._ttl_s, now, value)
                connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?, ?)", row)

    def _make_room(self, connection: sqlite3.Connection, size: int) -> None:
        """Remove what was least recently used until so many bytes fit."""
        (held,) = connection.execute("SELECT bytes FROM held").fetchone()
        excess = held + size - self._max_bytes
        while excess > 0:
            rowid, freed = connection.execute(
                "SELECT rowid, bytes FROM entries ORDER BY used LIMIT 1"
            ).fetchone()
            connection.execute("DELETE FROM entries WHERE rowid = ?", (rowid,))
            excess -= freed


def entry_bytes(value: bytes) -> int:
    """The bytes of a file that an entry takes: what does not fit on a page with others has its own pages."""
    size = len(value) + ENTRY_BYTES
    return size if size < PAGE // 4 else -(-size // PAGE) * PAGE
