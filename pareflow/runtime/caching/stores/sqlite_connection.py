"""A connection to the SQLite file of a cache: made when it is needed, and anew after a failure."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pareflow.errors import StoreError

APPLICATION_ID = 0x70617265  # "pare": by this a damaged file is known to be ours, and may be replaced
OPEN_PATIENCE_S = 0.25
"""How long a lock of another process is waited for when the file is opened."""

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


class Connection:
    """A lock of another process is waited for `patience_s`. `stale`: open it anew before it is used again."""

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
