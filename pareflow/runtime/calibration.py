"""Calibration: how far cheaper tiers may be trusted, so that the loss stays within a budget.

Candidates are tested from the one that trusts least to the one that trusts most, each at the whole error,
until the first that may lose too much. The one before it is chosen. Since the order was fixed before the data
were seen, the chance that what is chosen loses more than the budget is at most that error.
Source: Angelopoulos et al., 2021, arXiv:2110.01052 (Learn then Test), sections 2 and 3.2 (fixed sequences).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from pareflow.errors import CalibrationError
from pareflow.runtime.endpoint import Endpoint
from pareflow.runtime.exact_tests import mean_p_value, shares_p_value

FEWEST = 500
"""Samples that decide on a threshold, at least."""

THRESHOLDS: tuple[float, ...] = tuple(1 / (1 + math.exp(-step / 4)) for step in range(64, -17, -1))
"""Of a confidence from 0 to 1, the strictest first: evenly spaced in log-odds, from 1 - 1e-7 to 0.018."""

FULL = "full"
"""The name of the endpoint that its tiers stand for."""

Candidate = TypeVar("Candidate")
Share = Annotated[float, Field(ge=0, le=1)]
Drop = Annotated[float, Field(gt=0, lt=1)]


class VariantBound(BaseModel):
    """Something that was decided for these very variants: for every other it is decided anew."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    variants: dict[str, str] = Field(
        description="the identity of each tier by name, cheapest first, and of the full model as `full`"
    )

    @property
    def tiers(self) -> tuple[str, ...]:
        """The names of the tiers, cheapest first."""
        return tuple(name for name in self.variants if name != FULL)

    def require(self, below: Endpoint) -> None:
        """Raises: CalibrationError unless this was calibrated for these very variants."""
        present = {**{name: tier.identity for name, tier in below.tiers.items()}, FULL: below.identity}
        for name, identity in self.variants.items():
            if present.get(name) != identity:
                found = f"is {present[name]}" if name in present else "is not there"
                raise CalibrationError(
                    f"`{name}` must be {identity}, which this calibration is for",
                    f"it {found}",
                    "Calibrate again: what one version earned is not another's",
                )


class Calibration(VariantBound):
    """What was decided, on how many samples."""

    max_drop: Drop = Field(description="the budget: the most that may be lost of the metric")
    confidence: Drop = Field(description="how surely no more is lost")
    samples: int = Field(ge=1, description="samples that decided")
    drop: float = Field(description="what was lost on these samples")


class ThresholdCalibration(Calibration):
    """From which score on the answer of a tier stands."""

    score: str = Field(
        description="what the threshold is of: a confidence or simplicity, and of which tensor"
    )
    threshold: float = Field(description="the lowest score with which a tier's answer stands")
    answered: dict[str, Share] = Field(description="share of the samples that each tier answered")


@dataclass(frozen=True, slots=True)
class Judged:
    """A tier on the calibration samples: how sure it was of each, and whether it was right, shape (n,)."""

    confidence: np.ndarray
    correct: np.ndarray


def calibrate_threshold(
    variants: Mapping[str, str],
    tiers: Sequence[Judged],
    full_correct: np.ndarray,
    *,
    max_drop: float,
    confidence: float = 0.95,
    score: str = "max_softmax",
    thresholds: Sequence[float] = THRESHOLDS,
) -> ThresholdCalibration:
    """The lowest threshold at which accuracy is at most `max_drop` below the full model's, so surely.

    `tiers` are in the order of `variants`, which ends with `full`; each row is answered by the first tier
    that is sure enough. One threshold holds for all. The test is exact, for right and wrong answers in pairs.
    `thresholds` go from the strictest to the loosest and must not be chosen by these samples; `score` names
    what they are of, as the policy does.

    Raises: CalibrationError where there are too few samples, and where even the strictest loses too much.
    """
    full = np.asarray(full_correct, dtype=bool)
    require_enough(len(full), max(FEWEST, fewest_samples(max_drop, confidence)))

    def loss(threshold: float) -> np.ndarray:
        return np.asarray(full.astype(int) - answered(tiers, full, threshold)[1])

    def p_value(losses: np.ndarray) -> float:
        return shares_p_value(int((losses > 0).sum()), int((losses < 0).sum()), len(full), max_drop)

    passed = last_passed(thresholds, lambda threshold: p_value(loss(threshold)), confidence)
    if passed is None:
        raise CalibrationError(
            f"at most {max_drop:g} may be lost with confidence {confidence:g}",
            f"even at {max(thresholds):.6g} the tiers may lose more on these {len(full)} samples",
            "Give more samples, a larger `max_drop`, or better tiers",
        )
    owner = answered(tiers, full, passed)[0]
    names = [name for name in variants if name != FULL]
    return ThresholdCalibration(
        variants=dict(variants),
        max_drop=max_drop,
        confidence=confidence,
        samples=len(full),
        drop=float(loss(passed).mean()),
        score=score,
        threshold=passed,
        answered={name: float((owner == i).mean()) for i, name in enumerate(names)},
    )


def last_passed(
    candidates: Iterable[Candidate], p_value: Callable[[Candidate], float], confidence: float
) -> Candidate | None:
    """The last candidate before the first whose p-value is above the error; None where the first's is."""
    passed = None
    for candidate in candidates:
        if p_value(candidate) > 1 - confidence:
            break
        passed = candidate
    return passed


def fewest_samples(max_drop: float, confidence: float) -> int:
    """How many samples without any loss it takes: 301 for 1 % at 95 %, and more for a smaller budget."""
    return _least(lambda n: shares_p_value(0, 0, n, max_drop) <= 1 - confidence)


def fewest_queries(max_drop: float, confidence: float) -> int:
    """The same for a mean of losses from -1 to 1, of which less is known than of right and wrong."""
    return _least(lambda n: mean_p_value(np.zeros(n), max_drop) <= 1 - confidence)


def _least(enough: Callable[[int], bool]) -> int:
    """The smallest number that is enough, of those from 1 on; all above it are."""
    high = 1
    while not enough(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def require_enough(found: int, needed: int) -> None:
    """Raises: CalibrationError."""
    if found < needed:
        raise CalibrationError(
            f"a calibration needs at least {needed} samples", f"there are {found}", "Give more"
        )


def answered(tiers: Sequence[Judged], full: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Which tier answers each sample (the full model is the last), and whether it is right, as 0 or 1."""
    owner, correct = np.full(len(full), len(tiers)), full.astype(int)
    for i, tier in reversed(list(enumerate(tiers))):
        sure = np.asarray(tier.confidence) >= threshold
        owner = np.where(sure, i, owner)
        correct = np.where(sure, np.asarray(tier.correct, dtype=int), correct)
    return owner, correct
