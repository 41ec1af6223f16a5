"""How long something has been as it is, seen in looks minutes apart: a SQLite file in the data folder.

Times of heartbeats are their senders' clocks', which may be wrong. That none came between two looks is not.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from pareflow.errors import StoreError


class Looks:
    """What was seen when, of each kind of thing by its id. Raises: StoreError where it cannot be kept."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def unchanged_s(self, kind: str, name: str, seen: str, now: float) -> float:
        """Seconds since the first look that saw this and nothing else; 0 for the first.

        `now` is the time of this look, by the clock of who looks. Where that went back the count begins anew.
        """
        with self._database() as database:
            query = "SELECT since, last FROM looks WHERE kind = ? AND id = ? AND seen = ?"
            row = database.execute(query, (kind, name, seen)).fetchone()
            since = row[0] if row is not None and row[1] <= now else now
            values = (kind, name, seen, since, now)
            database.execute("INSERT OR REPLACE INTO looks VALUES (?, ?, ?, ?, ?)", values)
        return float(now - since)

    def forget(self, kind: str, now: float) -> None:
        """Forget what this look, the one of `now`, did not see: it is gone."""
        with self._database() as database:
            database.execute("DELETE FROM looks WHERE kind = ? AND last <> ?", (kind, now))

    @contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._path, timeout=10)) as database, database:
                database.execute(
                    "CREATE TABLE IF NOT EXISTS looks"
                    " (kind TEXT, id TEXT, seen TEXT, since REAL, last REAL, PRIMARY KEY (kind, id))"
                )
                yield database
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                "what each look saw must be kept for the next one",
                f"{self._path} takes nothing: {error}",
                "Free some disk, or remove the file: the next look is then the first one",
            ) from error
