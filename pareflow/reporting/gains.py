"""What a variant gains over the strong baseline, in words: by the pipeline's objective, and in speed.

`{estimate, low, high}` says how many times better, as the gate and documents have it; a reader is told how
many times the size, the latency or the throughput it has.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pareflow.reporting.formats import known

Ratio = Mapping[str, Any]


def share(objective: Any, gain: Ratio) -> Ratio:
    """How many times the baseline's that is: less than 1 is better, but of the throughput."""
    return gain if objective == "throughput" else _inverted(gain)


def in_speed(speedup: Ratio, shown: Callable[[Ratio], str]) -> str:
    """`1.20 times as fast`, or plainly `4.76 times slower`; `shown` writes a ratio."""
    if speedup["estimate"] >= 1:
        return f"{shown(speedup)} as fast"
    return f"{shown(_inverted(speedup))} slower"


def _inverted(ratio: Ratio) -> Ratio:
    estimate, low, high = (
        1 / v if known(v) and v else None for v in map(ratio.get, ("estimate", "low", "high"))
    )
    return {"estimate": estimate, "low": high, "high": low}
