"""Batches of answers taken apart into rows, and put together again."""

from collections.abc import Mapping, Sequence

import numpy as np

from pareflow.runtime.rows import check_rows
from pareflow.workload import Arrays


def parted(outputs: Mapping[str, np.ndarray], count: int, policy: str) -> list[Arrays]:
    """One batch of one sample each. Raises: UnsuitableError where an output has not the batch's rows."""
    check_rows(outputs, count, " to be kept by row", f"Serve it without `{policy}`")
    return [{name: array[i : i + 1] for name, array in outputs.items()} for i in range(count)]


def joined(rows: Sequence[Mapping[str, np.ndarray]]) -> Arrays | None:
    """One batch of all rows; None where they differ in names, types or shapes."""
    first = rows[0]
    if any(_kind(row) != _kind(first) for row in rows):
        return None
    return {name: np.concatenate([row[name] for row in rows]) for name in first}


def _kind(row: Mapping[str, np.ndarray]) -> object:
    return [(name, array.dtype.str, array.shape) for name, array in sorted(row.items())]
