"""The service-level agreement: what a variant must meet. `gate.py` judges it."""

import math
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from pareflow.measurement import CONFIDENCE

Objective = Literal["latency_p50", "latency_p99", "throughput", "size", "peak_memory"]
OBJECTIVES: Mapping[str, str] = {
    "latency_p50": "p50 latency",
    "latency_p99": "p99 latency",
    "throughput": "throughput",
    "size": "size",
    "peak_memory": "peak memory",
}
"""What each is called in a sentence."""


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"a limit must be a finite number, but got {value}")
    return value


Limit = Annotated[float, Field(gt=0), AfterValidator(_finite)]
Drop = Annotated[float, Field(ge=0), AfterValidator(_finite)]
Level = Annotated[float, AfterValidator(_finite)]

_CONDITIONS = {"metric", "batch_size", "per_s"}
"""Keys that say under which conditions the limits of a clause hold."""


class _Clause(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="after")
    def _says_something(self) -> "_Clause":
        limits = {name: getattr(self, name) for name in type(self).model_fields if name not in _CONDITIONS}
        if all(value is None for value in limits.values()):
            raise ValueError(f"at least one of {', '.join(limits)} must be given")
        return self


class QualityClause(_Clause):
    """How good it must be, on the metric's own scale.

    Not worse than the original by more than `max_drop`, on no slice by more than `worst_slice_max_drop`, and
    itself at least `min` (accuracy, say) or at most `max` (an error).
    """

    metric: str | None = Field(default=None, description="none: the workload's own")
    max_drop: Drop | None = None
    worst_slice_max_drop: Drop | None = None
    min: Level | None = None
    max: Level | None = None

    def problems(self, metric: str, scale: tuple[float, float]) -> list[str]:
        """What no variant could miss, or none could meet, where the metric lies between two values.

        A percentage that was written for a share, most often: a `max_drop` of 1 lets all of it be lost.
        """
        least, most = scale
        bounds = {
            "max_drop": (0.0, most - least),
            "worst_slice_max_drop": (0.0, most - least),
            "min": (least, most),
            "max": (least, most),
        }
        found = []
        for name, (low, high) in bounds.items():
            limit = getattr(self, name)
            no_drop = limit == 0 and name.endswith("drop")
            if limit is not None and not (no_drop or low < limit < high):
                words = f"must lie between {low:g} and {high:g} for `{metric}`, but got {limit:g}"
                found.append(f"sla.quality.{name}: {words}; 0.01 is one point in a hundred")
        return found

    def wrong_way(self, metric: str, *, higher_is_better: bool) -> list[str]:
        """The limit that the worst variants would meet: `max` where higher is better, `min` of an error."""
        name, other, better = ("max", "min", "higher") if higher_is_better else ("min", "max", "lower")
        limit = getattr(self, name)
        if limit is None:
            return []
        words = f"the worst would meet it, since {better} is better for `{metric}`, but got {limit:g}"
        remedy = f"write `{other}`, or let a metric of your own say HIGHER_IS_BETTER in its module"
        return [f"sla.quality.{name}: {words}; {remedy}"]


class LatencyClause(_Clause):
    """How fast one request of `batch_size` samples must be answered, one at a time.

    `p99_over_p50` bounds the tail: 2 says that the slowest hundredth may take twice the median.
    """

    p50_ms: Limit | None = None
    p99_ms: Limit | None = None
    p99_over_p50: Annotated[float, Field(ge=1), AfterValidator(_finite)] | None = None
    batch_size: int = Field(default=1, ge=1, description="samples per request, for all clauses")


class LoadClause(_Clause):
    """How fast requests must be answered that arrive at random (Poisson), `per_s` of them in a second."""

    per_s: Limit
    p99_ms: Limit


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
    """How much energy one request may take, and what power may be drawn meanwhile, where a counter exists."""

    max_j: Limit | None = None
    max_w: Limit | None = None


class SLA(BaseModel):
    """What a variant must meet. At least one clause; every clause is judged (law 2).

    Whatever it says, no variant may be worse than the strong baseline by the objective. Without a clause of
    quality none may be surely worse than the original either: how much may be lost, `quality` says.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    quality: QualityClause | None = None
    latency: LatencyClause | None = None
    load: LoadClause | None = None
    throughput: ThroughputClause | None = None
    size: SizeClause | None = None
    memory: MemoryClause | None = None
    energy: EnergyClause | None = None
    confidence: float = Field(default=CONFIDENCE, gt=0.5, lt=1, description="of the whole choice")

    @model_validator(mode="after")
    def _promises_something(self) -> "SLA":
        if not self.clauses():
            raise ValueError(
                "an SLA must have at least one clause (quality, latency, load, throughput, size, memory, "
                "energy), but it has none"
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
