"""Scales: from a value to a place on the page, linear or logarithmic, with round ticks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LOG_ABOVE = 10.0  # a wider range than this crowds most points into one end of a linear axis


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps `low` to `start` and `high` to `end`, in pixels; `end` < `start` where values grow upwards."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 6) -> list[float]:
        """About `count` round values inside the range; on a log axis the 1, 2, 5 of each decade."""
        if self.log:
            return _log_ticks(self.low, self.high, count)
        step = _round_step((self.high - self.low) / count)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(i * step, 12) for i in range(first, last + 1)]


def covering(
    values: Sequence[float], start: float, end: float, *, may_log: bool = False, margin: float = 0.06
) -> Scale:
    """A scale that shows all `values` with a margin at both ends; logarithmic if allowed and worth it."""
    low, high = min(values), max(values)
    if may_log and low > 0 and high / low > LOG_ABOVE:
        factor = (high / low) ** margin
        return Scale(low / factor, high * factor, start, end, log=True)
    # One value alone still needs a range around it.
    space = margin * (high - low) or abs(high) * margin or 1.0
    return Scale(low - space, high + space, start, end)


def _round_step(step: float) -> float:
    """The smallest 1, 2 or 5 times a power of ten that is at least `step`."""
    power = 10.0 ** math.floor(math.log10(step))
    return next((f * power for f in (1, 2, 5) if f * power >= step * (1 - 1e-9)), 10 * power)


def _log_ticks(low: float, high: float, count: int) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for digits in ((1, 2, 5), (1, 3), (1,)):
        ticks = [d * 10.0**e for e in decades for d in digits if low <= d * 10.0**e <= high]
        if len(ticks) <= count + 1:
            break
    return ticks
