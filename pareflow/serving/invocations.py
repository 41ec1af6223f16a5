"""MLflow's `/invocations`: the samples in a body, in each of the forms that `mlflow models serve` takes."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from pareflow.errors import InputError
from pareflow.serving import protocol

FORMS = ("inputs", "instances", "dataframe_split", "dataframe_records")


def samples_in(body: bytes, content_type: str, fields: Sequence[str] | None = None) -> Any:
    """The raw samples of a request, as `PackagedModel.predict` takes them. Raises: InputError.

    A table has one column, or where samples are records, each of their `fields`.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind in ("text/csv", "application/csv"):
        head, *rows = _lines(body) or [[]]
        return _of_table(head, rows, fields)
    document = protocol.loads(body)
    given = [form for form in FORMS if isinstance(document, dict) and form in document]
    if len(given) != 1:
        raise _refused(f"one of {', '.join(FORMS)} must be given", f"{' and '.join(given) or 'none'} is")
    return _READ[given[0]](document[given[0]], fields)


def _lines(body: bytes) -> list[list[str]]:
    try:
        return list(csv.reader(io.StringIO(body.decode()), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise _refused("a table must be CSV in UTF-8", str(error)) from None


def _plain(samples: Any, fields: Sequence[str] | None) -> Any:
    """A list of samples, or a mapping of columns to their values."""
    if isinstance(samples, Mapping):
        columns = list(samples.values())
        if not all(isinstance(column, list) for column in columns) or len(set(map(len, columns))) != 1:
            raise _refused("columns must be lists of one length", "they are not")
        return _of_table(list(samples), list(zip(*columns, strict=True)), fields)
    if not isinstance(samples, list) or not samples:
        raise _refused("samples must be a list that is not empty", f"got {type(samples).__name__}")
    return samples


def _split(table: Any, fields: Sequence[str] | None) -> Any:
    rows = table.get("data") if isinstance(table, dict) else None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, list) for row in rows):
        raise _refused("`dataframe_split` must have `columns` and `data`, a list of rows", "it has not")
    head = table.get("columns", list(range(len(rows[0]))))  # pandas counts them, too
    if not isinstance(head, list):
        raise _refused("`columns` must be a list of names", f"it is {type(head).__name__}")
    return _of_table(head, rows, fields)


def _records(rows: Any, fields: Sequence[str] | None) -> Any:
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise _refused("`dataframe_records` must be a list of objects that is not empty", "it is not")
    head = list(rows[0])
    if any(row.keys() != rows[0].keys() for row in rows):
        raise _refused("every record must have the same columns", "one has others")
    return _of_table(head, [[row[name] for name in head] for row in rows], fields)


def _of_table(head: Sequence[Any], rows: Sequence[Sequence[Any]], fields: Sequence[str] | None) -> list[Any]:
    """The samples in a table: the values of its one column, or of each row a record."""
    if not rows or any(len(row) != len(head) for row in rows):
        raise _refused("a table must have rows, and a value of each column in each", "it has not")
    if fields is not None:
        if sorted(map(str, head)) != sorted(fields):
            raise _refused(f"a table must have the columns {', '.join(fields)}", f"it has {_named(head)}")
        return [dict(zip(head, row, strict=True)) for row in rows]
    if len(head) != 1:
        raise _refused("a table must have one column", f"it has {_named(head)}")
    return [row[0] for row in rows]


def _named(head: Sequence[Any]) -> str:
    return ", ".join(map(str, head)) or "none"


_READ = {"inputs": _plain, "instances": _plain, "dataframe_split": _split, "dataframe_records": _records}


def _refused(must: str, found: str) -> InputError:
    return InputError(must, found, "See MLflow's documentation of /invocations")
