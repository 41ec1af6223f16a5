"""Whether two networks give the same answers: what every export, conversion and simplification is held to.

Per output: the largest error, the cosine, and whether the largest value of each row is the same one.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from pareflow.errors import WorkloadError
from pareflow.workload import Arrays, LoadedWorkload

TOLERANCE = 1e-3
BATCH_SIZES = (1, 3)
LOOKED_AT = 32
"""Calibration samples among which the shortest and the longest are looked for."""
_NOISE = 1e-5
"""Of the output's largest value: what is nearer is rounding."""

Run = Callable[[Arrays], Arrays]


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one output is from the source's.

    `error` is the largest, as a share of the output's largest value; `cosine` the lowest over samples;
    `agreement` the share of rows (along the last axis) with the same largest value, ties agreeing.
    """

    output: str
    error: float
    cosine: float
    agreement: float

    def within(self, tolerance: float) -> bool:
        """Whether error and cosine are within `tolerance` and every row agrees. NaN is never within."""
        return self.error <= tolerance and self.cosine >= 1 - tolerance and self.agreement == 1

    def __str__(self) -> str:
        return (
            f"`{self.output}` differs by {self.error:.3g} of its largest value "
            f"(cosine {self.cosine:.4g}, top-1 agreement {self.agreement:.3g})"
        )


def difference(output: str, ours: np.ndarray, theirs: np.ndarray, tolerance: float = TOLERANCE) -> Difference:
    """Compare two arrays of one shape, the first axis the batch. Texts and the like must be equal.

    So must infinities, as which logits are masked: where both have the same one the others are compared.
    """
    if ours.dtype.kind not in "biuf" or theirs.dtype.kind not in "biuf":
        same = float(np.mean(ours == theirs)) if ours.size else 1.0
        return Difference(output, 1 - same, same, same)
    if ours.size == 0:
        return Difference(output, 0.0, 1.0, 1.0)
    ours, theirs = (np.atleast_1d(array).astype(np.float64) for array in (ours, theirs))
    masked = np.isinf(ours) & (ours == theirs)
    left, right = (np.where(masked, 0.0, array) for array in (ours, theirs))
    with np.errstate(invalid="ignore"):  # others than these give NaN
        largest = max(float(np.abs(left).max()), 1e-6)
        error = float(np.abs(left - right).max()) / largest
        floor = _NOISE * largest
        cosine, agreement = _cosine(left, right, floor), _agreement(ours, theirs, tolerance, floor)
    return Difference(output, error, cosine, agreement)


def _cosine(ours: np.ndarray, theirs: np.ndarray, floor: float) -> float:
    """The lowest of the samples whose length is over `floor`; the others are rounding, of no direction."""
    ours, theirs = (array.reshape(len(array), -1) for array in (ours, theirs))
    lengths = [np.linalg.norm(array, axis=1) for array in (ours, theirs)]
    products = (ours * theirs).sum(axis=1) / np.maximum(lengths[0] * lengths[1], 1e-300)
    return float(np.where(np.maximum(*lengths) > floor, products, 1.0).min())


def _agreement(ours: np.ndarray, theirs: np.ndarray, tolerance: float, floor: float) -> float:
    """The share of rows whose largest value lies at one place, or whose two candidates for it are as good."""
    if ours.ndim < 2 or ours.shape[-1] < 2:
        return 1.0
    first, second = (array.reshape(-1, array.shape[-1]) for array in (ours, theirs))
    rows = np.arange(len(first))
    lead = first[rows, first.argmax(axis=1)] - first[rows, second.argmax(axis=1)]
    sizes = np.abs(np.where(np.isinf(first), 0.0, first)).max(axis=1)
    return float(np.mean(~(lead > np.maximum(tolerance * sizes, floor))))


def mismatch(source: Run, made: Run, inputs: Iterator[Arrays], tolerance: float = TOLERANCE) -> str | None:
    """Where `made` first answers otherwise than `source`: the output, the numbers, the shape; or None.

    Outputs are compared by position. Several must have the source's names too; one alone may have any.
    """
    for feeds in inputs:
        shapes = ", ".join(f"{name} {'×'.join(map(str, array.shape))}" for name, array in feeds.items())
        expected = source(feeds)
        try:
            got = made(feeds)
        except Exception as refusal:
            return f"at {shapes} it says: {first_line(refusal)}"
        if list(got) != list(expected) and not len(got) == len(expected) == 1:
            return f"it has the outputs {', '.join(got)} where the source has {', '.join(expected)}"
        for (name, ours), theirs in zip(expected.items(), got.values(), strict=True):
            if ours.shape != theirs.shape:
                return f"`{name}` has the shape {theirs.shape}, not {ours.shape}, at {shapes}"
            found = difference(name, ours, theirs, tolerance)
            if not found.within(tolerance):
                return f"{found} at {shapes}"
    return None


def real_inputs(workload: LoadedWorkload) -> Iterator[Arrays]:
    """Calibration samples in several shapes: batches of `BATCH_SIZES`, the shortest and the longest sample,
    and, where the workload has lengths, half the longest."""
    for batch_size in BATCH_SIZES:
        yield workload.example(batch_size)
    split = workload.split("calibration")
    alone = [split.take(np.asarray([i])).samples for i in range(min(LOOKED_AT, len(split)))]
    given = sorted((workload.definition.preprocess(sample) for sample in alone), key=_size)
    if _size(given[0]) < _size(given[-1]):
        yield from (given[0], given[-1])
    with suppress(WorkloadError):  # it has no lengths, or not this one
        shorter = workload.definition.at_length(max(1, _longest(given[-1]) // 2))
        yield shorter.preprocess(split.take(np.arange(min(BATCH_SIZES[-1], len(split)))).samples)


def first_line(error: BaseException | str) -> str:
    """The first line of what an error says: runtimes add their stack. Its type where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _size(feeds: Arrays) -> int:
    return sum(array.size for array in feeds.values())


def _longest(feeds: Arrays) -> int:
    return max((array.shape[1] for array in feeds.values() if array.ndim > 1), default=1)
