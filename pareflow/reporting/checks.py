"""Checks of the SLA as the page reads them: what a decision comes to, how far a value is beyond its limit."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pareflow.reporting.formats import UNKNOWN, known, span

Record = Mapping[str, Any]
Outcome = Literal["pass", "fail", "doubt", "unknown"]
_OUTCOMES: dict[str, Outcome] = {
    **dict.fromkeys(("promote", "promoted", "pass", "passed", "met"), "pass"),
    **dict.fromkeys(("reject", "rejected", "fail", "failed", "missed"), "fail"),
    **dict.fromkeys(("inconclusive", "missing"), "doubt"),
}
# What each clause is called in a sentence, and the unit at the end of its name.
_NAMES = {
    "quality.max_drop": "the drop in quality",
    "quality.harm": "the drop in quality",
    "quality.worst_slice_max_drop": "the drop on the worst slice",
    "quality.min": "the quality",
    "quality.max": "the error",
    "latency.p50_ms": "the p50 latency",
    "latency.p99_ms": "the p99 latency",
    "latency.p99_over_p50": "the tail, p99 over p50",
    "load.p99_ms": "the p99 latency under load",
    "throughput.min_per_s": "the throughput",
    "size.max_mib": "the size",
    "memory.max_mib": "the peak memory",
    "energy.max_j": "the energy per request",
    "energy.max_w": "the power",
    "do_no_harm": "the gain over the baseline",
}
_UNITS = {
    "_ms": "ms",
    "_mib": "MiB",
    "_per_s": "samples/s",
    "_j": "J",
    "_w": "W",
    "_p50": "×",
    "do_no_harm": "×",
}


def named(check: Record) -> str:
    """The clause in words: `the p50 latency`; the clause itself if it has none."""
    clause = str(check.get("clause") or UNKNOWN)
    return _NAMES.get(clause, clause)


def bounds_of(check: Record) -> str:
    """Its interval in words; `measured once` where that is all that is known of it, `exact` of a size."""
    once = span(check) == "exact" and check.get("samples") == 1 and check.get("clause") != "size.max_mib"
    return "measured once" if once else span(check)


def unit_of(check: Record) -> str:
    """The unit of a check's numbers: as it says, else as its clause's name ends; empty for a share."""
    clause = str(check.get("clause"))
    ending = (unit for suffix, unit in _UNITS.items() if clause.endswith(suffix))
    return str(check.get("unit") or next(ending, ""))


def outcome(decision: Any) -> Outcome:
    """What a decision comes to; a word that is not known is never a pass."""
    return _OUTCOMES.get(str(decision).lower(), "unknown")


def at_least(check: Record) -> bool:
    """Whether its limit is a lower one: `quality.min`, `throughput.min_per_s`, `do_no_harm`."""
    clause = str(check.get("clause"))
    return clause == "do_no_harm" or clause.rpartition(".")[2].startswith("min")


def checks_of(row: Record | None) -> list[Record]:
    """The checks of a variant's own verdict; empty if it was not judged."""
    return list(((row or {}).get("verdict") or {}).get("checks") or [])


def misses(checks: Sequence[Record]) -> list[Record]:
    """The checks that did not pass, whether failed or in doubt."""
    return [check for check in checks if outcome(check.get("decision")) != "pass"]


def beyond(check: Record, value: float) -> float:
    """How far `value` lies on the wrong side of the limit, in the check's unit; negative on the right one."""
    if not known(check.get("limit")):
        return 0.0
    difference = value - check["limit"]
    return float(-difference if at_least(check) else difference)


def excess(check: Record) -> float:
    """How far the estimate is beyond its limit, as a share of the limit; infinite if it is not known."""
    value = check.get("estimate")
    if not known(value) or not known(check.get("limit")):
        return math.inf
    return max(beyond(check, value), 0.0) / (abs(check["limit"]) or 1.0)


def worst(check: Record) -> Any:
    """The end of the interval that lies towards the limit; None if it is not known."""
    return check.get("low" if at_least(check) else "high")


def closest(variants: Sequence[Record]) -> Record | None:
    """The judged variant with the fewest clauses missed, then with the least excess; candidates first."""
    judged = [row for row in variants if checks_of(row)]
    candidates = [row for row in judged if row.get("role") not in ("baseline", "original")]
    return min(candidates or judged, key=_distance, default=None)


def _distance(row: Record) -> tuple[int, float]:
    missed = misses(checks_of(row))
    return len(missed), sum(excess(check) for check in missed)
