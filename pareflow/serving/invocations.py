"""MLflow's `/invocations`: the samples in a body, in each of the forms that `mlflow models serve` takes."""

import csv
import io
from collections.abc import Mapping
from typing import Any

from pareflow.errors import InputError
from pareflow.serving import protocol

FORMS = ("inputs", "instances", "dataframe_split", "dataframe_records")


def samples_in(body: bytes, content_type: str) -> Any:
    """The raw samples of a request, as `PackagedModel.predict` takes them. Raises: InputError.

    Of a table the first column counts, or all columns where samples are records.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind in ("text/csv", "application/csv"):
        return _first_column(_rows(body)[1:])
    document = protocol.loads(body)
    given = [form for form in FORMS if isinstance(document, dict) and form in document]
    if len(given) != 1:
        raise _refused(f"one of {', '.join(FORMS)} must be given", f"{' and '.join(given) or 'none'} is")
    return _FORMS[given[0]](document[given[0]])


def _rows(body: bytes) -> list[list[str]]:
    try:
        return list(csv.reader(io.StringIO(body.decode()), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise _refused("a table must be CSV in UTF-8", str(error)) from None


def _plain(samples: Any) -> Any:
    """A list of samples, or a mapping of one column to them."""
    if isinstance(samples, Mapping):
        columns = list(samples.values())
        if len(columns) != 1:
            raise _refused("samples must be a list, or one column", f"there are {len(columns)} columns")
        samples = columns[0]
    if not isinstance(samples, list) or not samples:
        raise _refused("samples must be a list that is not empty", f"got {type(samples).__name__}")
    return samples


def _split(table: Any) -> Any:
    rows = table.get("data") if isinstance(table, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        raise _refused("`dataframe_split` must have `columns` and `data`, a list of rows", "it has not")
    return _first_column(rows)


def _records(rows: Any) -> Any:
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and row for row in rows):
        raise _refused("`dataframe_records` must be a list of objects that is not empty", "it is not")
    return [next(iter(row.values())) for row in rows] if len(rows[0]) == 1 else rows


def _first_column(rows: list[list[Any]]) -> list[Any]:
    if not rows or not all(rows):
        raise _refused("a table must have rows, and a column", "it has none")
    return [row[0] for row in rows]


_FORMS = {"inputs": _plain, "instances": _plain, "dataframe_split": _split, "dataframe_records": _records}


def _refused(must: str, found: str) -> InputError:
    return InputError(must, found, "See MLflow's documentation of /invocations")
