"""Answers in a SQLite file, which processes of one machine share."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pareflow.errors import StoreError

APPLICATION_ID = 0x70617265  # "pare": by this a damaged file is known to be ours, and may be replaced
READ_PATIENCE_S, WRITE_PATIENCE_S = 0.01, 5.0
"""How long a lock of another process is waited for. Readers wait only while the log is begun anew."""
OPEN_PATIENCE_S = 0.25
PAGE, ENTRY_BYTES = 4096, 200
MAX_TOUCHED = 10_000

_TABLES = """
CREATE TABLE IF NOT EXISTS entries (
    key BLOB PRIMARY KEY, space BLOB NOT NULL, bytes INTEGER NOT NULL, expires REAL NOT NULL,
    used REAL NOT NULL, value BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS entries_by_use ON entries (used, bytes);
CREATE INDEX IF NOT EXISTS entries_by_expiry ON entries (expires);
CREATE INDEX IF NOT EXISTS entries_by_space ON entries (space);
CREATE TABLE IF NOT EXISTS held (entries INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO held SELECT 0, 0 WHERE NOT EXISTS (SELECT * FROM held);
CREATE TRIGGER IF NOT EXISTS entry_comes AFTER INSERT ON entries
BEGIN UPDATE held SET entries = entries + 1, bytes = bytes + new.bytes; END;
CREATE TRIGGER IF NOT EXISTS entry_goes AFTER DELETE ON entries
BEGIN UPDATE held SET entries = entries - 1, bytes = bytes - old.bytes; END;
"""


class SqliteBackend:
    """A file in write-ahead mode; what was least recently used goes first, whoever kept it.

    Reads are done on the event loop: they take less than the way to a thread and back. Writes, which may
    wait for a disk or for another process, are done in a thread. `max_bytes` bounds the rounded-up entries of
    all endpoints that share the file; SQLite's log comes on top of it, some MiB.
    """

    def __init__(self, path: Path, space: bytes, max_bytes: int, ttl_s: float | None) -> None:
        self._path, self._space, self._max_bytes = path, space, max_bytes
        self._ttl_s = float("inf") if ttl_s is None else ttl_s
        self._reader = _Connection(path, READ_PATIENCE_S)
        self._writer = _Connection(path, WRITE_PATIENCE_S)
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


class _Connection:
    """A connection that is made when it is needed, and anew after a failure."""

    def __init__(self, path: Path, patience_s: float) -> None:
        self._path, self._patience_s = path, patience_s
        self._open: sqlite3.Connection | None = None
        self._inode: int | None = None
        self.stale = False

    @contextmanager
    def used(self) -> Iterator[sqlite3.Connection]:
        """Raises: StoreError. Where a file of ours is damaged it is removed, so that the next begins anew."""
        if self.stale:
            self.close()
        try:
            yield self._connected()
        except (sqlite3.Error, OSError) as error:
            code = getattr(error, "sqlite_errorcode", None)
            damaged = code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
            self.close()
            if damaged and _is_ours(self._path):
                _remove(self._path)
            raise StoreError(
                f"the cache {self._path} must be a SQLite file that can be used",
                f"SQLite says: {error}",
                "Make room, or give another `store`",
            ) from error

    def replaced(self) -> bool:
        """Whether another file, or none, lies where the one that is open lay."""
        if self._open is None:
            return False
        try:
            return self._path.stat().st_ino != self._inode
        except OSError:
            return True

    def close(self) -> None:
        if self._open is not None:
            with suppress(sqlite3.Error):  # a failed connection may fail to close; it is gone either way
                self._open.close()
        self._open, self.stale = None, False

    def _connected(self) -> sqlite3.Connection:
        if self._open is None:
            self._open = sqlite3.connect(
                self._path, timeout=OPEN_PATIENCE_S, isolation_level=None, check_same_thread=False
            )
            self._set_up(self._open)
            self._inode = self._path.stat().st_ino
        return self._open

    def _set_up(self, connection: sqlite3.Connection) -> None:
        (found,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables and found != APPLICATION_ID:
            raise sqlite3.DatabaseError("it is the file of another application")
        if not tables:
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} COMMIT;")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(f"PRAGMA busy_timeout = {int(1000 * self._patience_s)}")


def entry_bytes(value: bytes) -> int:
    """The bytes of a file that an entry takes: what does not fit on a page with others has its own pages."""
    size = len(value) + ENTRY_BYTES
    return size if size < PAGE // 4 else -(-size // PAGE) * PAGE


def _is_ours(path: Path) -> bool:
    """By the application id in the header, at byte 68."""
    try:
        with path.open("rb") as file:
            return file.read(72)[68:] == APPLICATION_ID.to_bytes(4, "big")
    except OSError:
        return False


def _remove(path: Path) -> None:
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        path.with_name(name).unlink(missing_ok=True)
