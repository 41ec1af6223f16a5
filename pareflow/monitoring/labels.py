"""Labels that come late: a CSV with the columns `request_id` and `label`, and `row` where requests have many.

Rows are added to it at its end, and one is whole when its line has ended. How far it was read is remembered,
with how it begins: another file, or one that was cut short, is read from its beginning. What was answered
waits for labels in a table per version, in SQLite, of the original's and of the served prediction of each
row; a label that comes before its answer was compared waits for that. An answer keeps its first label, so
that it counts once, however often a file brings it; and it counts again where whoever counted it was killed
before that was remembered.
"""

import csv
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pareflow.errors import InputError
from pareflow.variant import digest
from pareflow.workload import Arrays

TABLE = "labels.db"
DAY_S = 86_400.0
BEGINNING = 4096
"""Bytes by which a file is known again."""
FLAGS = {"true": "1", "false": "0"}
"""Flags as numbers."""
_MAKE = """
create table if not exists answers (
    id text, position integer, original text, served text, at_s real, label text, counted integer,
    primary key (id, position)
) without rowid;
create index if not exists by_time on answers (at_s);
create index if not exists labelled on answers (counted) where label is not null;
create table if not exists waiting (
    id text, position integer, label text, at_s real, primary key (id, position)
) without rowid;
create table if not exists done (name text);
"""
_ADD = """
insert or replace into answers
values (?1, ?2, ?3, ?4, ?5, (select label from waiting where id = ?1 and position = ?2), null)
"""
_COUNT = """
update answers set counted = ?1 + 1 where label is not null and (counted is null or counted > ?1)
returning label, original, served
"""
Key = tuple[str, int]
"""The id of a request, and the position of a sample in it."""
Label = tuple[Key, str]


@dataclass(frozen=True, slots=True)
class Place:
    """How far a file was read, in bytes, and the digest of how it begins; how often labels were counted."""

    offset: int = 0
    began: str = ""
    counted: int = 0


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
    alone: int = 0
    """Labels that wait for their answer: of requests that were not compared yet, or never will be."""


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
                columns = zip(
                    *(rows[key].tolist() for key in ("id", "row", "original", "served")), strict=True
                )
                named = [(one, row, str(a), str(b), time.time()) for one, row, a, b in columns]
                table.executemany(_ADD, named)
                keys = (one[:2] for one in named)
                table.executemany("delete from waiting where id = ? and position = ?", keys)
            table.execute("delete from done")
            table.execute("insert into done values (?)", (name,))

    def done(self) -> str:
        """The last file that was added, or nothing."""
        with self._open() as table:
            found = table.execute("select name from done").fetchone()
        return "" if found is None else str(found[0])

    def forget(self, keep_days: float) -> None:
        """Remove what is older than so many days."""
        until = (time.time() - keep_days * DAY_S,)
        with self._open() as table:
            table.execute("delete from answers where at_s < ?", until)
            table.execute("delete from waiting where at_s < ?", until)

    def label(self, labels: Sequence[Label], *, wait: bool = False) -> list[Label]:
        """Give answers their labels. Those whose answers are not here are left; they `wait` for them if asked
        to."""
        give = "update answers set label = coalesce(label, ?) where id = ? and position = ?"
        with self._open() as table:
            left = [(key, label) for key, label in labels if not table.execute(give, (label, *key)).rowcount]
            if wait:
                waiting = ((*key, label, time.time()) for key, label in left)
                table.executemany("insert or ignore into waiting values (?, ?, ?, ?)", waiting)
        return left

    def count(self, counted: int) -> Joined:
        """What has its label and was not in one of so many counts before, those that are remembered."""
        with self._open() as table:
            answers = table.execute(_COUNT, (counted,)).fetchall()
            (alone,) = table.execute("select count(*) from waiting").fetchone()
        pairs = [(same_label(label, one), same_label(label, other)) for label, one, other in answers]
        both = np.array(pairs, dtype=bool).reshape(-1, 2)
        return Joined(both[:, 0], both[:, 1], alone)

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=30)) as table, table:
            yield table


def are_kinds(predictions: np.ndarray) -> bool:
    """Whether each prediction is one of some kinds: a whole number, a flag or a text."""
    return predictions.ndim == 1 and predictions.dtype.kind in "biuU"


def join(folder: Path, labels: Sequence[Label], counted: int = 0) -> dict[str, Joined]:
    """Labels beside the answers that they are for, by version: `folder` is the present one's, and those of
    earlier ones lie beside it. What finds none waits for an answer of the present one.

    `counted` is that of the place from which they were read: what was joined at a later one counts again.
    """
    others = sorted(path.parent for path in folder.parent.glob(f"*/{TABLE}") if path.parent != folder)
    tables = {one.name: Answers(one) for one in (folder, *(others if labels else ()))}
    left = labels
    for one in tables.values():
        left = one.label(left)
    tables[folder.name].label(left, wait=True)
    return {version: one.count(counted) for version, one in tables.items()}


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
                if not row["label"].strip():
                    raise ValueError("it is empty")
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
    """Whether they are equal as texts, or as numbers where both are: tables write 7 as 7.0, and
    a flag as TRUE or as 1."""
    try:
        return label == prediction or _number(label) == _number(prediction)
    except ValueError:
        return False


def _number(text: str) -> float:
    """Raises: ValueError where it is none."""
    return float(FLAGS.get(text.strip().lower(), text))
