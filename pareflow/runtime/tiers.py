"""Rows of one request answered by several variants, and put together again."""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pareflow.errors import CalibrationError, InputError, UnsuitableError
from pareflow.runtime.calibration import FULL, Calibration, ThresholdCalibration
from pareflow.runtime.endpoint import Endpoint
from pareflow.runtime.rows import check_rows, row_count, taken
from pareflow.variant import digest
from pareflow.workload import Arrays

log = logging.getLogger(__name__)


def chosen(below: Endpoint, names: Iterable[str]) -> dict[str, Endpoint]:
    """The tiers of these names, in that order. Raises: InputError where one is not there."""
    for name in names:
        if name not in below.tiers:
            there = ", ".join(below.tiers) or "no tiers"
            raise InputError(
                f"the tier `{name}` must be there", f"there are {there}", "Mend its name, or load it"
            )
    return {name: below.tiers[name] for name in names}


def calibrated(below: Endpoint, calibration: Calibration | None) -> dict[str, Endpoint]:
    """The tiers that a calibration trusts, and none without one. Raises: CalibrationError."""
    if calibration is None:
        return {}
    calibration.require(below)
    return chosen(below, calibration.tiers)


def score_of(kind: str, tensor: str) -> str:
    """What a calibration calls a score of this kind that a tensor gives; nothing names the only one."""
    return f"{kind} of {tensor}" if tensor else kind


def scored_by(score: str, below: Endpoint, calibration: ThresholdCalibration | None) -> dict[str, Endpoint]:
    """The same, where the threshold is of this score, and none where it does not say of which tensor it is.

    Raises: CalibrationError.
    """
    tiers = calibrated(below, calibration)
    if calibration is None or calibration.score == score:
        return tiers
    if score.startswith(f"{calibration.score} of "):
        log.warning(
            "a threshold of `%s` was calibrated before records named the tensor: the full model answers "
            "everything; run `pareflow calibrate` again",
            score,
        )
        return {}
    raise CalibrationError(
        f"the threshold must be of `{score}`, by which rows are judged",
        f"it was calibrated on `{calibration.score}`",
        "Calibrate again, or judge rows by the other",
    )


def named_after(endpoint: Endpoint, calibration: Calibration | None) -> Endpoint:
    """With an identity of its own where tiers answer: what is kept of them is not the full model's."""
    if calibration is None:
        return endpoint
    return replace(endpoint, identity=f"{endpoint.identity}+{digest(calibration.model_dump(mode='json'))}")


@dataclass(frozen=True, slots=True)
class Part:
    """Some rows of a request, and what answers them: row i of every output belongs to row `rows[i]`.

    Raises: UnsuitableError where an output has not as many rows.
    """

    rows: np.ndarray
    outputs: Mapping[str, np.ndarray]

    def __post_init__(self) -> None:
        check_rows(self.outputs, len(self.rows), "", "Serve it without tiers")

    def only(self, kept: np.ndarray) -> "Part":
        """The part's rows where `kept` is true."""
        return Part(self.rows[kept], {name: array[kept] for name, array in self.outputs.items()})


Attempt = Callable[[str, Endpoint, Mapping[str, np.ndarray], np.ndarray], Awaitable[Part]]
"""What a tier, given by its name and endpoint, answers of these rows of a request: all, some or none."""


class Tiered:
    """Rows answered by the first tier that takes them, what is left by the full model.

    A tier that raises, whatever it is, answers nothing, and is counted: the next one answers.
    """

    def __init__(self, below: Endpoint, tiers: Mapping[str, Endpoint], attempt: Attempt) -> None:
        self._below, self._tiers, self._attempt = below, tiers, attempt
        self._answered, self._failed = Counter[str](), Counter[str]()

    async def answer(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Raises: what the full model raises, and UnsuitableError where its outputs are not the tiers'."""
        parts, count = list[Part](), row_count(feeds, otherwise=1)
        left = np.arange(count)
        for name, tier in self._tiers.items():
            try:
                part = await self._attempt(name, tier, feeds, left)
            except Exception:
                self._failed[name] += 1
                continue
            if len(part.rows):
                parts.append(part)
                self._answered[name] += len(part.rows)
                left = np.setdiff1d(left, part.rows, assume_unique=True)
            if not len(left):
                return together(parts, count)
        parts.append(Part(left, await self._below.answer(taken(feeds, left))))
        self._answered[FULL] += len(left)
        return together(parts, count)

    def figures(self) -> Mapping[str, float]:
        """Rows that each tier answered, and requests in which it failed."""
        answered = {f"answered_{name}": self._answered[name] for name in (*self._tiers, FULL)}
        return answered | {f"failed_{name}": self._failed[name] for name in self._tiers}


def together(parts: Sequence[Part], count: int) -> Arrays:
    """The answers to `count` rows, each in its place; every row must be in one part.

    Raises: UnsuitableError where variants differ in names or shapes of outputs.
    """
    if len(parts) == 1:
        return dict(parts[0].outputs)
    forms = [{name: array.shape[1:] for name, array in part.outputs.items()} for part in parts]
    if any(form != forms[0] for form in forms):
        raise UnsuitableError(
            "tiers must have outputs of the same names and shapes",
            f"one has {forms[0]}, another {next(form for form in forms if form != forms[0])}",
            "Export them alike",
        )
    answers = {}
    for name, shape in forms[0].items():
        kind = np.result_type(*(part.outputs[name] for part in parts))
        answers[name] = np.empty((count, *shape), kind)
        for part in parts:
            answers[name][part.rows] = part.outputs[name]
    return answers
