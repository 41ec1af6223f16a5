"""Quality against latency: which variants no other beats, and the axes that show them all."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pareflow.reporting.labels import REACH
from pareflow.reporting.scale import Scale, covering

Kind = Literal["winner", "baseline", "original", "rejected", "candidate"]
LEFT, RIGHT, TOP, BOTTOM = 58.0, 14.0, 26.0, 50.0  # the margins around the plot


@dataclass(frozen=True, slots=True)
class Point:
    """A variant in the plot; `low` and `high` bound its latency, `row` is its row in the table."""

    row: int
    kind: Kind
    latency_ms: float
    low: float | None
    high: float | None
    quality: float
    judged: bool  # on the verdict data, and not only on the data of the search
    tip: str


@dataclass(frozen=True, slots=True)
class Limits:
    """What the SLA allows: at most this p50 latency, at least this quality; None where it says nothing.

    At most this quality where that is an error, and not `higher_is_better`.
    """

    latency_ms: float | None = None
    quality: float | None = None
    worst: float | None = None  # what is worse is drawn at the edge, so as not to crowd the rest
    higher_is_better: bool = True

    def better(self, quality: float, than: float) -> bool:
        """Whether a quality is better than another."""
        return quality > than if self.higher_is_better else quality < than


@dataclass(frozen=True, slots=True)
class Axes:
    """Both scales and the size of the whole drawing, in pixels."""

    x: Scale
    y: Scale
    width: float
    height: float
    higher_is_better: bool

    @property
    def right(self) -> float:
        return self.width - RIGHT

    @property
    def bottom(self) -> float:
        return self.height - BOTTOM

    def place(self, point: Point) -> tuple[float, float]:
        """Where its mark stands; a quality that is worse than the range is held at the edge."""
        y = self.y(point.quality)
        held = min(y, self.bottom - REACH) if self.higher_is_better else max(y, TOP + REACH)
        return self.x(point.latency_ms), held

    def beyond(self, point: Point) -> bool:
        """Whether its quality is worse than the range."""
        return point.quality < self.y.low if self.higher_is_better else point.quality > self.y.high


def front(points: Iterable[Point], limits: Limits) -> list[Point]:
    """The points that no other beats in both latency and quality, from the fastest to the best."""
    best: list[Point] = []
    sign = -1 if limits.higher_is_better else 1
    for point in sorted(points, key=lambda point: (point.latency_ms, sign * point.quality)):
        if not best or limits.better(point.quality, than=best[-1].quality):
            best.append(point)
    return best


def axes_for(points: Sequence[Point], limits: Limits, width: float, height: float) -> Axes:
    """Axes that show all points with their whiskers, and the limits if these are not far away."""
    ends = [end for p in points for end in (p.low, p.high, p.latency_ms) if end is not None]
    latencies = [*ends, *_near(limits.latency_ms, min(ends) / 4, max(ends) * 4)]
    low, high = _shown(limits)
    qualities = [p.quality for p in points if low <= p.quality <= high] or [p.quality for p in points]
    qualities += _near(limits.quality, low, high)
    return Axes(
        covering(latencies, LEFT, width - RIGHT, may_log=True),
        covering(qualities, height - BOTTOM, TOP, margin=0.1),
        width,
        height,
        limits.higher_is_better,
    )


def _shown(limits: Limits) -> tuple[float, float]:
    """Between which qualities points shape the axis."""
    if limits.worst is None:
        return -math.inf, math.inf
    return (limits.worst, math.inf) if limits.higher_is_better else (-math.inf, limits.worst)


def _near(value: float | None, low: float, high: float) -> list[float]:
    return [] if value is None or not low <= value <= high else [value]
