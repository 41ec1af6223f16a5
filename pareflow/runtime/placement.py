"""Where to cut, for a given link and device: everything on the device, everything on the server, or between.

Times on the server are measured; those on the device are too where it is as fast as this machine, and else
estimated by a factor, as the transfer is by bandwidth and round trip. Source: Kang et al., 2017, Neurosurgeon
(ASPLOS), section 5.2, which predicts the layers' times where here the halves' are measured.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from pareflow.measurement import Interval

ON_DEVICE, ON_SERVER = "all on the device", "all on the server"


class Link(BaseModel):
    """What lies between the device and the server, and how much slower the device is than this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    bandwidth_mbit: float = Field(gt=0, description="of the slower direction, in 10⁶ bit per second")
    round_trip_ms: float = Field(ge=0, description="of an empty request and its answer")
    slower: float = Field(default=1, gt=0, description="the device's time is this machine's times so much")

    def transfer_ms(self, size_bytes: float) -> float:
        """One request with its answer, of this size together: the round trip, and 8 bits a byte."""
        return self.round_trip_ms + size_bytes * 8 / (self.bandwidth_mbit * 1000)


@dataclass(frozen=True, slots=True)
class Halves:
    """What was measured of one cut on this machine; None where nothing runs on that side, or it failed."""

    layer: str
    crossing: tuple[str, ...]
    up_bytes: float
    down_bytes: float
    device: Interval | None
    server: Interval | None
    reason: str | None = None

    @property
    def sends(self) -> bool:
        return self.layer != ON_DEVICE


@dataclass(frozen=True, slots=True)
class Placement:
    """One row of the table: ms per request, end to end. A total of None cannot be chosen."""

    halves: Halves
    device: Interval | None
    transfer_ms: float
    server: Interval | None
    total: Interval | None

    def to_json(self) -> dict[str, Any]:
        halves = self.halves
        return {
            "layer": halves.layer,
            "crossing": list(halves.crossing),
            "bytes": halves.up_bytes + halves.down_bytes if halves.sends else 0,
            "device_ms": _bounds(self.device),
            "transfer_ms": self.transfer_ms,
            "server_ms": _bounds(self.server),
            "total_ms": _bounds(self.total),
            "reason": halves.reason,
        }


def placed(halves: Halves, link: Link) -> Placement:
    """The cut over this link and on this device."""
    device = None if halves.device is None else scaled(halves.device, link.slower)
    transfer_ms = link.transfer_ms(halves.up_bytes + halves.down_bytes) if halves.sends else 0.0
    parts = [part for part in (device, halves.server) if part is not None]
    total = None if halves.reason or not parts else summed(parts, transfer_ms)
    return Placement(halves, device, transfer_ms, halves.server, total)


def choose(placements: Sequence[Placement]) -> int:
    """The position of the placement to take: the faster of the two simple ones, unless a split beats it.

    It must be faster beyond doubt, its upper bound below the simple one's lower; of those that are, the one
    with the lowest estimate (laws 1 and 3). Both simple ones must be among the placements.
    """
    timed = {i: p.total for i, p in enumerate(placements) if p.total is not None}
    simple = [i for i in timed if placements[i].halves.layer in (ON_DEVICE, ON_SERVER)]
    best = min(simple, key=lambda i: timed[i].estimate)
    faster = [i for i in timed if i not in simple and _below(timed[i], timed[best])]
    return min([*faster, best], key=lambda i: timed[i].estimate)


def scaled(interval: Interval, factor: float) -> Interval:
    """The interval of `factor` times the quantity."""
    low, high = (None if bound is None else bound * factor for bound in (interval.low, interval.high))
    return Interval(interval.estimate * factor, low, high, interval.samples, interval.confidence)


def summed(parts: Sequence[Interval], constant: float) -> Interval:
    """The interval of a sum: bounds are added, so that it is wide enough however the parts depend."""
    lows, highs = [part.low for part in parts], [part.high for part in parts]
    return Interval(
        sum(part.estimate for part in parts) + constant,
        None if None in lows else sum(low for low in lows if low is not None) + constant,
        None if None in highs else sum(high for high in highs if high is not None) + constant,
        min(part.samples for part in parts),
        min(part.confidence for part in parts),
    )


def _below(one: Interval, other: Interval) -> bool:
    return one.high is not None and other.low is not None and one.high < other.low


def _bounds(interval: Interval | None) -> dict[str, float | None] | None:
    return None if interval is None else interval.bounds()
