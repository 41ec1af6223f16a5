"""Labels that come late: a CSV with the columns `request_id` and `label`, and `row` where requests have many.

Rows are added to it at its end, and one is whole when its line has ended. What was read is counted, and not
read again. What was answered waits for them in a table, in SQLite, of the original's and of the served
prediction of each row.
"""

import csv
import io
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pareflow.errors import InputError
from pareflow.workload import Arrays

TABLE = "answers.db"
DAY_S = 86_400.0
_MAKE = """
create table if not exists answers (
    id text, position integer, original text, served text, at_s real, primary key (id, position)
) without rowid;
create index if not exists by_time on answers (at_s);
create table if not exists done (name text);
"""
Key = tuple[str, int]
"""The id of a request, and the position of a sample in it."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Per label that found its answer, whether the original and the version that is served were right."""

    original: np.ndarray
    served: np.ndarray
    alone: int = 0
    """Labels of requests that were not kept."""


class Answers:
    """The table in a folder: of one served version."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / TABLE
        with self._open() as table:
            table.execute("pragma journal_mode=wal")
            table.executescript(_MAKE)

    def add(self, rows: Arrays, name: str) -> None:
        """What was compared in the file of this name; predictions that are no kinds wait for no labels."""
        with self._open() as table:
            if "served" in rows and are_kinds(rows["served"]):
                columns = (rows[key].tolist() for key in ("id", "row", "original", "served"))
                named = (
                    (one, row, str(a), str(b), time.time()) for one, row, a, b in zip(*columns, strict=True)
                )
                table.executemany("insert or replace into answers values (?, ?, ?, ?, ?)", named)
            table.execute("delete from done")
            table.execute("insert into done values (?)", (name,))

    def done(self) -> str:
        """The last file that was added, or nothing."""
        with self._open() as table:
            found = table.execute("select name from done").fetchone()
        return "" if found is None else str(found[0])

    def forget(self, keep_days: float) -> None:
        """Remove what is older than so many days."""
        with self._open() as table:
            table.execute("delete from answers where at_s < ?", (time.time() - keep_days * DAY_S,))

    def join(self, labels: Sequence[tuple[Key, str]]) -> Joined:
        """Labels beside the answers that they are for."""
        asked = "select original, served from answers where id = ? and position = ?"
        with self._open() as table:
            answers = [(label, table.execute(asked, key).fetchone()) for key, label in labels]
        found = [(label, *answer) for label, answer in answers if answer is not None]
        pairs = [
            (same_label(label, original), same_label(label, served)) for label, original, served in found
        ]
        both = np.array(pairs, dtype=bool).reshape(-1, 2)
        return Joined(both[:, 0], both[:, 1], len(labels) - len(found))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=30)) as table, table:
            yield table


def are_kinds(predictions: np.ndarray) -> bool:
    """Whether each prediction is one of some kinds: a whole number, a flag or a text."""
    return predictions.ndim == 1 and predictions.dtype.kind in "biuU"


def read(path: Path, after: int) -> list[tuple[Key, str]]:
    """The labels behind so many rows. Raises: InputError."""
    try:
        with path.open(newline="") as file:
            text = file.read()
        table = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
        if not {"request_id", "label"} <= set(table.fieldnames or ()):
            raise InputError(
                "labels must have the columns `request_id` and `label`",
                f"{path} has {', '.join(table.fieldnames or ()) or 'none'}",
                "Name them in its first line",
            )
        rows = list(table)
        for number, row in enumerate(rows, 1):
            if row["request_id"] is None or row["label"] is None:
                raise ValueError(f"its row {number} lacks a column")
        return [((row["request_id"], int(row.get("row") or 0)), row["label"]) for row in rows[after:]]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError("labels must be a CSV that can be read", f"{path}: {error}", "Mend it") from error


def same_label(label: str, prediction: str) -> bool:
    """Whether they are equal as texts, or as numbers where both are: a spreadsheet writes 7 as 7.0."""
    try:
        return label == prediction or float(label) == float(prediction)
    except ValueError:
        return False
