"""Whether one answer does for another."""

import hashlib

import numpy as np

from pareflow.comparison import difference
from pareflow.workload import Arrays


def same(kept: Arrays, fresh: Arrays, classes: bool, judged: str | None, tolerance: float) -> bool:
    """By the class that they say, or by every value within `tolerance` of the largest."""
    if classes:
        return kind_of(kept, classes, judged) == kind_of(fresh, classes, judged)
    if kept.keys() != fresh.keys() or any(kept[name].shape != fresh[name].shape for name in fresh):
        return False
    return all(
        difference(name, array, kept[name], tolerance).within(tolerance)
        for name, array in fresh.items()
        if judged in (None, name)
    )


def kind_of(answer: Arrays, classes: bool, judged: str | None) -> int | None:
    """A number that answers of one class share; None where only values count.

    Of numbers along an axis it is where the largest lies; all else is a class as it is.
    """
    if not classes:
        return None
    digest = hashlib.sha256()
    for name, array in sorted(answer.items()):
        if judged in (None, name):
            wide = array.dtype.kind == "f" and array.ndim > 1 and array.shape[-1] > 1
            said = array.argmax(axis=-1) if wide else array
            digest.update(f"{name!r} {said.shape} {np.asarray(said).tolist()!r}\n".encode())
    return int.from_bytes(digest.digest()[:8], "big", signed=True)
