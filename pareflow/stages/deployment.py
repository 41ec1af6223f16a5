"""Judge a challenger by live traffic beside the champion: failures, disagreement, times.

Pure: from what servers saw (`GET /v2/models/NAME/trial`) to a verdict of the gate. Agreement bounds the loss:
a challenger that answers a share d of the requests otherwise is at most d worse, whatever is right.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pareflow import intervals
from pareflow.gate import Verdict, judge_intervals
from pareflow.measurement import CONFIDENCE, Interval

TROUBLES = ("failed", "late", "unsound")
BLOCKS = 10
"""Stretches of time that a comparison of times needs, at least."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What live traffic must show: shares of requests, and the challenger's median over the champion's. Its
    99th percentile may be longer by twice as much, since so little is seen of a tail."""

    disagreement: float
    failures: float = 0.01
    slowdown: float = 1.1
    confidence: float = CONFIDENCE


@dataclass(frozen=True, slots=True)
class Seen:
    """What all servers saw of one challenger under one traffic: counts, and times in blocks, in ms."""

    counts: Mapping[str, int]
    champion_ms: tuple[tuple[float, ...], ...]
    challenger_ms: tuple[tuple[float, ...], ...]

    @property
    def asked(self) -> int:
        return self.counts["asked"]


def merged(records: Sequence[Mapping[str, Any]]) -> Seen:
    """The records of several servers as one: each serves a part of the requests."""
    blocks = [block for record in records for block in record["blocks_ms"]]
    names = ("asked", "compared", "agreed", "skipped", *TROUBLES)
    return Seen(
        {name: sum(record["counts"][name] for record in records) for name in names},
        tuple(tuple(block["champion"]) for block in blocks),
        tuple(tuple(block["challenger"]) for block in blocks),
    )


def judge_live(seen: Seen, tolerance: Tolerance, version: str, *, look: int, timed: bool) -> Verdict:
    """The verdict on a challenger after so many looks, from 1: look k spends 1/(k(k+1)) of the error.

    `timed`: it answers a share of the requests, so that its times can be compared; copies in the background
    take turns with the champion, and their times are not its own.
    """
    confidence = 1 - (1 - tolerance.confidence) / (look * (look + 1))
    counts = seen.counts
    failures = sum(counts[kind] for kind in TROUBLES)
    disagreed = counts["compared"] - counts["agreed"]
    clauses: dict[str, tuple[float, Interval | None, bool]] = {
        "live.failures": (tolerance.failures, _share(failures, counts["asked"], confidence), True),
        "live.disagreement": (
            tolerance.disagreement,
            _share(disagreed, counts["compared"], confidence),
            True,
        ),
    }
    if timed:
        longer = tolerance.slowdown - 1
        for name, quantile, least in (("p50", 0.5, 1 / (1 + longer)), ("p99", 0.99, 1 / (1 + 2 * longer))):
            clauses[f"live.speedup_{name}"] = (least, _speedup(seen, quantile, confidence), False)
    return judge_intervals(version, "live", clauses)


def _share(count: int, of: int, confidence: float) -> Interval | None:
    return None if not of else intervals.share_interval(count, of, confidence)


def _speedup(seen: Seen, quantile: float, confidence: float) -> Interval | None:
    """How many times faster the challenger is, by bootstrap over stretches of time; few give no bounds.

    Nor do few answers of either. That answers resemble those before them is seen where stretches are drawn,
    each of both: a server that is slower for an hour is so for both.
    """
    if not seen.challenger_ms:
        return None
    found = intervals.quantile_ratio(seen.champion_ms, seen.challenger_ms, quantile, confidence)
    if len(seen.challenger_ms) < BLOCKS:
        return Interval(found.estimate, None, None, found.samples, confidence)
    return found
