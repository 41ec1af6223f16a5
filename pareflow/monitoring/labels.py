"""Labels that come late: a CSV with the columns `request_id` and `label`, and `row` where requests have many.

Rows are added to it at its end. What was read is counted, and not read again.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pareflow.errors import InputError
from pareflow.monitoring import comparing

Key = tuple[str, int]
"""The id of a request, and the position of a sample in it."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Per label that found its answer, whether the original and the version that is served were right."""

    original: np.ndarray
    served: np.ndarray
    alone: int = 0
    """Labels of requests that were not kept."""


def read(path: Path, after: int) -> list[tuple[Key, str]]:
    """The labels behind so many rows. Raises: InputError."""
    try:
        with path.open(newline="") as file:
            table = csv.DictReader(file)
            if not {"request_id", "label"} <= set(table.fieldnames or ()):
                raise InputError(
                    "labels must have the columns `request_id` and `label`",
                    f"{path} has {', '.join(table.fieldnames or ()) or 'none'}",
                    "Name them in its first line",
                )
            rows = list(table)[after:]
            return [((row["request_id"], int(row.get("row") or 0)), row["label"]) for row in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError("labels must be a CSV that can be read", f"{path}: {error}", "Mend it") from error


def join(labels: Sequence[tuple[Key, str]], folder: Path) -> Joined:
    """Labels beside the compared requests in a folder. Raises: InputError where predictions are no kinds."""
    answers = _answers(folder)
    found = [(label, *answers[key]) for key, label in labels if key in answers]
    pairs = [(_right(label, original), _right(label, served)) for label, original, served in found]
    both = np.array(pairs, dtype=bool).reshape(-1, 2)
    return Joined(both[:, 0], both[:, 1], len(labels) - len(found))


def _answers(folder: Path) -> Mapping[Key, tuple[np.generic, np.generic]]:
    found: dict[Key, tuple[np.generic, np.generic]] = {}
    for path in comparing.results(folder):
        with np.load(path, allow_pickle=False) as rows:
            if "id" not in rows.files:
                continue
            columns = [rows[name] for name in ("id", "row", "original", "served")]
            for identity, row, original, served in zip(*columns, strict=True):
                found[str(identity), int(row)] = (original, served)
    return found


def _right(label: str, prediction: np.generic) -> bool:
    if prediction.dtype.kind == "f" or np.ndim(prediction):
        raise InputError(
            "labels can be joined where each prediction is one of some kinds",
            f"predictions are {prediction.dtype}, shape {np.shape(prediction)}",
            "Leave `--labels` out",
        )
    try:
        return bool(np.array(label).astype(prediction.dtype) == prediction)
    except ValueError:
        return False  # a label that no prediction can be
