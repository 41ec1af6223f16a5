"""The samples of a request, as policies count them, take some of them, and expect an answer to each."""

from collections.abc import Mapping, Sequence

import numpy as np

from pareflow.errors import UnsuitableError


def row_count(feeds: Mapping[str, np.ndarray], otherwise: int = 0) -> int:
    """The samples of a request: the most that an input has; `otherwise` where none has rows."""
    return max((len(array) for array in feeds.values() if array.ndim), default=otherwise)


def has_rows(array: np.ndarray, count: int) -> bool:
    """Whether an input has a row for each of so many samples; else it belongs to all of them."""
    return array.ndim > 0 and len(array) == count


def taken(feeds: Mapping[str, np.ndarray], rows: Sequence[int] | np.ndarray) -> Mapping[str, np.ndarray]:
    """The request that has only these of the samples, in their order; itself where they are all of it."""
    count = row_count(feeds)
    if len(rows) == count:
        return feeds
    return {name: array[rows] if has_rows(array, count) else array for name, array in feeds.items()}


def unfilled(row: np.ndarray) -> np.ndarray:
    """What of a row, shape (n,), lies before the zeros at its end; of zeros alone the first."""
    kept = np.flatnonzero(row)
    return row[: kept[-1] + 1 if len(kept) else 1]


def check_rows(outputs: Mapping[str, np.ndarray], count: int, to: str, remedy: str) -> None:
    """Raises: UnsuitableError where an output has not a row for each of so many samples."""
    for name, array in outputs.items():
        if not has_rows(array, count):
            raise UnsuitableError(
                f"every output must have the batch as its first axis{to}",
                f"`{name}` has shape {array.shape} for a batch of {count}",
                remedy,
            )
