"""Whether one answer does for another."""

import hashlib

import numpy as np

from pareflow.comparison import difference
from pareflow.errors import UnsuitableError
from pareflow.workload import Arrays


def same(kept: Arrays, fresh: Arrays, classes: bool, judged: str | None, tolerance: float) -> bool:
    """By the class that they say, or by every value within `tolerance` of the largest.

    `judged` names the output that counts, or all do. Raises: UnsuitableError where it is not there.
    """
    if classes:
        return kind_of(kept, classes, judged) == kind_of(fresh, classes, judged)
    kept, fresh = _judged(kept, judged), _judged(fresh, judged)
    if kept.keys() != fresh.keys() or any(kept[name].shape != fresh[name].shape for name in fresh):
        return False
    return all(
        difference(name, array, kept[name], tolerance).within(tolerance) for name, array in fresh.items()
    )


def kind_of(answer: Arrays, classes: bool, judged: str | None) -> int | None:
    """A number that answers of one class share; None where only values count.

    Of numbers along an axis it is where the largest lies; all else is a class as it is. Raises: as `same`.
    """
    if not classes:
        return None
    digest = hashlib.sha256()
    for name, array in sorted(_judged(answer, judged).items()):
        wide = array.dtype.kind == "f" and array.ndim > 1 and array.shape[-1] > 1
        said = array.argmax(axis=-1) if wide else array
        digest.update(f"{name!r} {said.shape} {np.asarray(said).tolist()!r}\n".encode())
    return int.from_bytes(digest.digest()[:8], "big", signed=True)


def _judged(answer: Arrays, judged: str | None) -> Arrays:
    """The outputs that count. Raises: UnsuitableError."""
    if judged is None:
        return answer
    if judged not in answer:
        raise UnsuitableError(
            "`judged` must name an output of what answers",
            f"it is '{judged}', and there are {', '.join(sorted(answer))}",
            "Mend `judged`",
        )
    return {judged: answer[judged]}
