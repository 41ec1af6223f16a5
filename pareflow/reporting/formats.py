"""Numbers as a reader wants them: three significant digits, a real minus, and – for what is unknown."""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

UNKNOWN = "–"
_THIN_SPACE = "\u202f"


def known(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number: None, NaN and what is missing are not, and never become 0."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any, digits: int = 3) -> str:
    """`digits` significant digits at least (4.13, 0.0862, 12 345); whole numbers stay whole."""
    if not known(value):
        return UNKNOWN
    if isinstance(value, int) or value == 0:
        return _typeset(f"{value:,.0f}")
    if abs(value) < 1e-4:
        return _typeset(f"{value:.{digits - 1}e}")
    return _typeset(f"{value:,.{_decimals(value, digits)}f}")


def quality(value: Any) -> str:
    """Four decimals, since a metric is compared between rows; below 0.01 three significant digits: errors may
    be small."""
    if known(value) and 0 < abs(value) < 0.01:
        return number(float(value))
    return _typeset(f"{value:.4f}") if known(value) else UNKNOWN


def percent(share: Any) -> str:
    """A share from 0 to 1 as percent: 86 %, 0.4 %."""
    if not known(share):
        return UNKNOWN
    return f"{number(share * 100, 2) if 0 < round(abs(share), 3) < 0.1 else f'{share * 100:.0f}'} %"


def limit(value: Any, digits: int = 10) -> str:
    """A limit exactly as the user gave it, without digits of our own."""
    return _typeset(f"{value:.{digits}g}") if known(value) else UNKNOWN


def span(interval: Mapping[str, Any] | None) -> str:
    """`low to high`, both to the same decimal; `exact` where they are one, empty where neither is known."""
    low, high = (interval or {}).get("low"), (interval or {}).get("high")
    if known(low) and known(high):
        return "exact" if low == high else _both(low, high)
    if known(low):
        return f"at least {number(low)}"
    return f"at most {number(high)}" if known(high) else ""


def amount(text: str, unit: str) -> str:
    """A number with its unit, which it never loses at the end of a line; `–` needs none."""
    if text == UNKNOWN or not unit:
        return text
    return text + unit if unit == "×" else f"{text}\u00a0{unit}"


def duration(seconds: Any) -> str:
    """`2 min 3 s`, `1 h 2 min`."""
    if not known(seconds):
        return UNKNOWN
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _both(low: float, high: float) -> str:
    largest = max(abs(low), abs(high))
    if largest < 1e-4:
        return f"{number(low)} to {number(high)}"
    decimals = _decimals(largest)
    return _typeset(f"{low:,.{decimals}f} to {high:,.{decimals}f}")


def _decimals(value: float, digits: int = 3) -> int:
    """How many decimals show `digits` significant digits."""
    return max(digits - 1 - math.floor(math.log10(abs(value))), 0)


def _typeset(text: str) -> str:
    return text.replace(",", _THIN_SPACE).replace("-", "−")
