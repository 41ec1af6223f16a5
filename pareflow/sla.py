"""The promotion gate: a service-level agreement, and `judge`, a pure function from evidence to a verdict.

Each clause becomes one Check with an estimate and its interval. A check promotes only if the whole interval
is on the right side of its limit, rejects only if the whole interval is on the wrong side, and is
inconclusive otherwise; so is what was not measured (law 3).
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from scipy import stats

from pareflow.measurement import CONFIDENCE, Interval, Measurement, Quality, quantile_interval

Decision = Literal["promote", "reject", "inconclusive"]
Objective = Literal["latency_p50", "latency_p99", "throughput", "size", "peak_memory"]


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"a limit must be a finite number, but got {value}")
    return value


Limit = Annotated[float, Field(gt=0), AfterValidator(_finite)]


class _Clause(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="after")
    def _says_something(self) -> "_Clause":
        limits = {name: getattr(self, name) for name in type(self).model_fields if name not in _CONDITIONS}
        if all(value is None for value in limits.values()):
            raise ValueError(f"at least one of {', '.join(limits)} must be given")
        return self


_CONDITIONS = {"metric", "batch_size"}


class QualityClause(_Clause):
    """How good it must be: not worse than the original by more than `max_drop`, and at least `min`."""

    metric: str | None = None
    max_drop: Annotated[float, Field(ge=0, lt=1)] | None = None
    min: Limit | None = None


class LatencyClause(_Clause):
    """How fast one request of `batch_size` samples must be answered."""

    p50_ms: Limit | None = None
    p99_ms: Limit | None = None
    batch_size: int = Field(default=1, ge=1)


class ThroughputClause(_Clause):
    """How many samples per second must be answered, one request of `batch_size` at a time."""

    min_per_s: Limit


class SizeClause(_Clause):
    """How large the files may be."""

    max_mib: Limit


class MemoryClause(_Clause):
    """How much memory the serving process may hold at its peak."""

    max_mib: Limit


class EnergyClause(_Clause):
    """How much energy one request may take, where a counter exists."""

    max_j: Limit


class SLA(BaseModel):
    """What a variant must meet. At least one clause; every clause is judged (law 2)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    quality: QualityClause | None = None
    latency: LatencyClause | None = None
    throughput: ThroughputClause | None = None
    size: SizeClause | None = None
    memory: MemoryClause | None = None
    energy: EnergyClause | None = None
    confidence: float = Field(default=CONFIDENCE, gt=0.5, lt=1)

    @model_validator(mode="after")
    def _promises_something(self) -> "SLA":
        if not self.clauses():
            raise ValueError(
                "an SLA must have at least one clause (quality, latency, throughput, size, memory, energy), "
                "but it has none"
            )
        return self

    @property
    def batch_size(self) -> int:
        """Samples per request, for every clause and every measurement."""
        return self.latency.batch_size if self.latency else 1

    def clauses(self) -> dict[str, float]:
        """Every limit by its dotted name, such as `latency.p99_ms`."""
        found = {}
        for family, clause in self:
            if isinstance(clause, _Clause):
                for name, limit in clause:
                    if name not in _CONDITIONS and limit is not None:
                        found[f"{family}.{name}"] = float(limit)
        return found


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of one finalist; what is None was not measured.

    `original` is the quality of the original on the same samples. `gain` says how many times better than
    the strong baseline the finalist is on the objective (1: as good).
    """

    variant: str
    quality: Quality | None
    original: Quality | None
    measurement: Measurement | None
    gain: Interval | None


@dataclass(frozen=True, slots=True)
class Check:
    """One clause, judged."""

    clause: str
    limit: float
    estimate: float | None
    low: float | None
    high: float | None
    decision: Decision
    reason: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Promote if every check promotes, reject if any rejects, else inconclusive."""

    variant: str
    environment: str
    decision: Decision
    checks: tuple[Check, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "checks": [asdict(check) for check in self.checks]}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Verdict":
        return cls(**{**document, "checks": tuple(Check(**check) for check in document["checks"])})


def judge(sla: SLA, evidence: Evidence) -> Verdict:
    """The verdict on one finalist: one check per clause of the SLA, and `do_no_harm` (law 1)."""
    checks = tuple(_checks(sla, evidence))
    decisions = {check.decision for check in checks}
    environment = evidence.measurement.environment if evidence.measurement else "not measured"
    return Verdict(evidence.variant, environment, _worst(decisions), checks)


def _worst(decisions: set[Decision]) -> Decision:
    if "reject" in decisions:
        return "reject"
    return "promote" if decisions == {"promote"} else "inconclusive"


def _checks(sla: SLA, evidence: Evidence) -> Iterator[Check]:
    for clause, limit in sla.clauses().items():
        upper = not clause.endswith((".min", "min_per_s"))
        yield _check(clause, limit, _interval(clause, sla, evidence), upper=upper)
    yield _check("do_no_harm", 1.0, evidence.gain, upper=False)


def _interval(clause: str, sla: SLA, evidence: Evidence) -> Interval | None:
    """The interval that bears on a clause, or None if it was not measured."""
    measurement, quality, confidence = evidence.measurement, evidence.quality, sla.confidence
    if clause == "quality.max_drop":
        return drop_interval(evidence.original, quality, confidence)
    if clause == "quality.min":
        return None if quality is None else value_interval(quality, confidence)
    if measurement is None or clause == "energy.max_j":
        return None
    if not measurement.blocks_ms or not all(measurement.blocks_ms):
        return None  # a block without samples: it failed while it was timed
    if clause == "latency.p50_ms":
        return quantile_interval(measurement.samples_ms, 0.50, confidence)
    if clause == "latency.p99_ms":
        return quantile_interval(measurement.samples_ms, 0.99, confidence)
    if clause == "throughput.min_per_s":
        return throughput_interval(measurement, confidence)
    return _exact(measurement.size_mib if clause == "size.max_mib" else measurement.peak_memory_mib)


def _exact(value: float | None) -> Interval | None:
    """A value that has no sampling error."""
    return None if value is None else Interval(value, value, value, samples=1)


def _check(clause: str, limit: float, interval: Interval | None, *, upper: bool) -> Check:
    """One clause; `upper` says that the limit is an upper one."""
    if interval is None or not math.isfinite(interval.estimate):
        found = None if interval is None else "not a finite number"
        return Check(clause, limit, None, None, None, "inconclusive", found or "not measured")
    low, high = interval.low, interval.high
    good, bad = (high, low) if upper else (low, high)
    sign = 1 if upper else -1
    decision: Decision = "inconclusive"
    if good is not None and sign * good <= sign * limit:
        decision = "promote"
    elif bad is not None and sign * bad > sign * limit:
        decision = "reject"
    return Check(
        clause, limit, interval.estimate, low, high, decision, _reason(decision, interval, limit, upper=upper)
    )


def _reason(decision: Decision, interval: Interval, limit: float, *, upper: bool) -> str:
    side = "at most" if upper else "at least"
    bound = interval.high if upper else interval.low
    if decision == "promote":
        return f"{bound:.4g} is {side} {limit:g}, at {interval.confidence:.0%} confidence"
    if decision == "reject":
        other = interval.low if upper else interval.high
        return f"{other:.4g} is not {side} {limit:g}, at {interval.confidence:.0%} confidence"
    if bound is None:
        return f"{interval.samples} samples give no bound on it; more are needed"
    return f"the limit {limit:g} lies inside the interval; {interval.samples} samples cannot tell"


def drop_interval(original: Quality | None, candidate: Quality | None, confidence: float) -> Interval | None:
    """How much quality was lost, paired sample by sample; each bound one-sided at `confidence`.

    For scores of 0 and 1: the adjusted Wald interval for matched proportions, which adds half a pair to
    each of the four cells. Source: Agresti and Min, 2005, Statistics in Medicine 24:729, section 3.
    For every other metric: the percentile interval of paired bootstrap replicates.
    Raises: ValueError if the two were not taken on the same samples.
    """
    if original is None or candidate is None:
        return None
    if (original.split_digest, original.metric) != (candidate.split_digest, candidate.metric):
        raise ValueError(
            "a drop must be taken on the same samples and metric, but got "
            f"{original.metric} on {original.split_digest[:12]} and "
            f"{candidate.metric} on {candidate.split_digest[:12]}. Evaluate both on one split."
        )
    if original.scores is None or candidate.scores is None:
        drops = np.subtract(original.replicates, candidate.replicates)
        return _percentiles(original.value - candidate.value, drops, len(drops), confidence)
    before, after = np.asarray(original.scores), np.asarray(candidate.scores)
    lost, won = int(((before == 1) & (after == 0)).sum()), int(((before == 0) & (after == 1)).sum())
    n = len(before) + 2
    shares = (lost + 0.5) / n, (won + 0.5) / n
    centre = shares[0] - shares[1]
    error = math.sqrt((sum(shares) - centre**2) / n)
    z = float(stats.norm.ppf(confidence))
    return Interval(
        (lost - won) / len(before), centre - z * error, centre + z * error, len(before), confidence
    )


def value_interval(quality: Quality, confidence: float) -> Interval:
    """The metric itself: Wilson's score interval for a share, else bootstrap percentiles."""
    if quality.scores is None:
        return _percentiles(
            quality.value, np.asarray(quality.replicates), len(quality.replicates), confidence
        )
    successes, n = round(sum(quality.scores)), len(quality.scores)
    bounds = stats.binomtest(successes, n).proportion_ci(2 * confidence - 1, method="wilson")
    return Interval(quality.value, float(bounds.low), float(bounds.high), n, confidence)


def throughput_interval(measurement: Measurement, confidence: float) -> Interval:
    """Samples per second, with Student's interval of the mean over blocks."""
    rates = [measurement.batch_size * 1000 / float(np.mean(block)) for block in measurement.blocks_ms]
    mean, n = float(np.mean(rates)), len(rates)
    if n < 2:
        return Interval(mean, None, None, n, confidence)
    error = float(np.std(rates, ddof=1) / math.sqrt(n) * stats.t.ppf(confidence, n - 1))
    return Interval(mean, mean - error, mean + error, n, confidence)


def _percentiles(estimate: float, replicates: np.ndarray, samples: int, confidence: float) -> Interval:
    low, high = np.quantile(replicates, [1 - confidence, confidence])
    return Interval(estimate, float(low), float(high), samples, confidence)
