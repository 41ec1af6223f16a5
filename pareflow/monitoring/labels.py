"""Labels that come late: a CSV with the columns `request_id` and `label`, and `row` where requests have many.

Rows are added to it at its end, and one is whole when its line has ended. How far it was read is remembered,
with how it begins: another file, or one that was cut short, is read from its beginning. What was answered
waits for labels in a table per version, in SQLite, of the original's and of the served prediction of each
row. A label takes its answer away, so that it counts once, however often a file brings it.
"""

import csv
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pareflow.errors import InputError
from pareflow.variant import digest
from pareflow.workload import Arrays

TABLE = "answers.db"
DAY_S = 86_400.0
BEGINNING = 4096
"""Bytes by which a file is known again."""
_MAKE = """
create table if not exists answers (
    id text, position integer, original text, served text, at_s real, primary key (id, position)
) without rowid;
create index if not exists by_time on answers (at_s);
create table if not exists done (name text);
"""
Key = tuple[str, int]
"""The id of a request, and the position of a sample in it."""
Label = tuple[Key, str]


@dataclass(frozen=True, slots=True)
class Place:
    """How far a file was read, in bytes, and the digest of how it begins."""

    offset: int = 0
    began: str = ""


@dataclass(frozen=True, slots=True)
class New:
    """The labels behind a place, what is wrong with rows that are none, and where they end."""

    labels: list[Label]
    bad: list[str]
    place: Place


@dataclass(frozen=True, slots=True)
class Joined:
    """Per label that found its answer, whether the original and the version that is served were right."""

    original: np.ndarray
    served: np.ndarray
    alone: Sequence[Label] = ()
    """Labels of requests that were not kept, or not answered by this version."""


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

    def join(self, labels: Sequence[Label]) -> Joined:
        """Labels beside the answers that they are for, which wait for no other then."""
        taken = "delete from answers where id = ? and position = ? returning original, served"
        with self._open() as table:
            answers = [(label, table.execute(taken, label[0]).fetchall()) for label in labels]
        pairs = [
            (same_label(label, original), same_label(label, served))
            for (_, label), found in answers
            for original, served in found
        ]
        both = np.array(pairs, dtype=bool).reshape(-1, 2)
        return Joined(both[:, 0], both[:, 1], [label for label, found in answers if not found])

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=30)) as table, table:
            yield table


def are_kinds(predictions: np.ndarray) -> bool:
    """Whether each prediction is one of some kinds: a whole number, a flag or a text."""
    return predictions.ndim == 1 and predictions.dtype.kind in "biuU"


def join(folder: Path, labels: Sequence[Label]) -> dict[str, Joined]:
    """Labels beside the answers that they are for, by version: `folder` is the present one's, and those of
    earlier ones lie beside it. What is left `alone` is said of the present one."""
    others = sorted(path.parent for path in folder.parent.glob(f"*/{TABLE}") if path.parent != folder)
    found, left = dict[str, Joined](), labels
    for one in (folder, *others):
        if left or one == folder:
            found[one.name] = joined = Answers(one).join(left)
            left = joined.alone
    return {**found, folder.name: replace(found[folder.name], alone=left)}


def read(path: Path, place: Place) -> New:
    """What is new since this place. A row that is no label is told and left out.

    Raises: InputError where the file cannot be read, or has other columns.
    """
    try:
        with path.open("rb") as file:
            place = place if _goes_on(file, place) else Place()
            first = file.readline()
            columns = next(csv.reader([first.decode("utf-8-sig")]), []) if first.endswith(b"\n") else None
            start = max(place.offset, len(first))
            file.seek(start)
            text = file.read()
            text = text[: text.rfind(b"\n") + 1]
            place = Place(start + len(text), _beginning(file, start + len(text)))
    except (OSError, ValueError, csv.Error) as error:
        raise InputError("labels must be a CSV that can be read", f"{path}: {error}", "Mend it") from error
    if columns is None:
        return New([], [], Place())  # its first line is not whole yet
    if not {"request_id", "label"} <= set(columns):
        raise InputError(
            "labels must have the columns `request_id` and `label`",
            f"{path} has {', '.join(columns) or 'none'}",
            "Name them in its first line",
        )
    return _rows(columns, text, start, place)


def _rows(columns: Sequence[str], text: bytes, start: int, place: Place) -> New:
    labels, bad = list[Label](), list[str]()
    for line in text.splitlines(keepends=True):
        try:
            if line.strip():
                cells = next(csv.reader([line.decode().rstrip("\r\n")]))
                row = dict(zip(columns, cells, strict=False))
                labels.append(((row["request_id"], int(row.get("row") or 0)), row["label"]))
        except (ValueError, KeyError, csv.Error) as error:
            words = f"lacks {error}" if isinstance(error, KeyError) else f"is no label: {error}"
            bad.append(f"the row at byte {start} {words}")
        start += len(line)
    return New(labels, bad, place)


def _goes_on(file: BinaryIO, place: Place) -> bool:
    """Whether it is the file that was read up to this place."""
    return os.fstat(file.fileno()).st_size >= place.offset and _beginning(file, place.offset) == place.began


def _beginning(file: BinaryIO, offset: int) -> str:
    """The digest of its first bytes, as many of them as lie before the offset."""
    file.seek(0)
    found = digest(file.read(min(offset, BEGINNING)).hex())
    file.seek(0)
    return found


def same_label(label: str, prediction: str) -> bool:
    """Whether they are equal as texts, or as numbers where both are: a spreadsheet writes 7 as 7.0."""
    try:
        return label == prediction or float(label) == float(prediction)
    except ValueError:
        return False
