"""What was measured: raw samples with units in the names, the environment they belong to, and intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pareflow.variant import digest

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and where the truth lies, at `confidence`; a bound is None where the data give none."""

    estimate: float
    low: float | None
    high: float | None
    samples: int
    confidence: float = CONFIDENCE

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Environment:
    """The machine and software that a measurement belongs to (law 8)."""

    processor: str
    flags: tuple[str, ...]
    cores: int
    memory_mib: int
    system: str
    python: str
    runtimes: Mapping[str, str]
    driver: str | None = None

    @property
    def fingerprint(self) -> str:
        """Equal for two environments in which the same verdict holds."""
        return digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "flags": list(self.flags), "runtimes": dict(self.runtimes)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Environment":
        return cls(**{**document, "flags": tuple(document["flags"])})


@dataclass(frozen=True, slots=True)
class Ran:
    """What really executed (law 10): read back from the runtime, not from the request."""

    runtime: str
    version: str
    precision: str
    device: str
    threads: int
    notes: str = ""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One variant in one environment, at one batch size, one request at a time.

    `blocks_ms` holds every sample in the order it was taken, in blocks that were interleaved with the
    baseline's: block i of both ran next to each other. What is unknown is None, never 0.
    """

    variant: str
    environment: str
    batch_size: int
    ran: Ran
    blocks_ms: tuple[tuple[float, ...], ...]
    load_s: float | None
    first_request_ms: float | None
    peak_memory_mib: float | None
    size_mib: float | None

    @property
    def samples_ms(self) -> np.ndarray:
        """All latencies in ms, shape (n,), in the order taken."""
        return np.asarray([ms for block in self.blocks_ms for ms in block], dtype=float)

    def quantile_ms(self, quantile: float) -> float:
        """A quantile of all latencies, in ms."""
        return float(np.quantile(self.samples_ms, quantile))

    @property
    def throughput_per_s(self) -> float:
        """Samples (not batches) answered per second, one request at a time."""
        return self.batch_size * 1000 / float(np.mean(self.samples_ms))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Measurement":
        blocks = tuple(tuple(block) for block in document["blocks_ms"])
        return cls(**{**document, "ran": Ran(**document["ran"]), "blocks_ms": blocks})

    def extended(self, more: "Measurement") -> "Measurement":
        """This measurement with the blocks of `more` behind its own."""
        document = {**asdict(self), "blocks_ms": (*self.blocks_ms, *more.blocks_ms)}
        return Measurement.from_json(document)


@dataclass(frozen=True, slots=True)
class Quality:
    """How good one variant's predictions are on one split.

    `scores` holds one 0 or 1 per sample where the metric is their mean, so that two variants can be paired;
    else it is None, and `replicates` holds the metric on bootstrap resamples that are the same for all
    variants (same seed), which pairs them too.
    """

    variant: str
    metric: str
    split: str
    split_digest: str
    value: float
    scores: tuple[int, ...] | None
    replicates: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Quality":
        scores = document["scores"]
        return cls(
            **{
                **document,
                "scores": None if scores is None else tuple(scores),
                "replicates": tuple(document["replicates"]),
            }
        )


def quantile_interval(
    samples: Sequence[float] | np.ndarray, quantile: float, confidence: float = CONFIDENCE
) -> Interval:
    """A distribution-free interval for a quantile, from order statistics.

    With sorted samples x(1) ≤ … ≤ x(n), the number of samples at or below the true q-quantile is
    binomial(n, q); x(k) bounds it from above with confidence P[binomial ≤ k-1]. Each bound is one-sided at
    `confidence`, as a clause needs it. Too few samples give no bound: an upper bound on p99 at 95 % needs
    299. Source: Hahn and Meeker, 1991, Statistical Intervals, section 5.2.
    """
    from scipy import stats  # slow to import, and contestants do without

    ordered = np.sort(np.asarray(samples, dtype=float))
    n = len(ordered)
    if n == 0:
        return Interval(float("nan"), None, None, samples=0, confidence=confidence)
    estimate = float(np.quantile(ordered, quantile))
    upper = int(stats.binom.ppf(confidence, n, quantile)) + 1
    lower = int(stats.binom.ppf(1 - confidence, n, quantile))
    return Interval(
        estimate=estimate,
        low=float(ordered[lower - 1]) if lower >= 1 else None,
        high=float(ordered[upper - 1]) if upper <= n else None,
        samples=n,
        confidence=confidence,
    )


def speedup(
    baseline: Measurement, candidate: Measurement, confidence: float = CONFIDENCE, quantile: float = 0.5
) -> Interval:
    """How many times faster `candidate` is: the median over blocks of the ratio of the block quantiles.

    Blocks are paired by position, since they ran next to each other. The interval is the order-statistic
    interval of the median of the ratios.
    Raises: ValueError if the two were not measured alike, for then a ratio means nothing.
    """
    alike = ("environment", "batch_size")
    for name in alike:
        if getattr(baseline, name) != getattr(candidate, name):
            raise ValueError(
                f"`{name}` must be equal to compare two measurements, but "
                f"{getattr(baseline, name)} != {getattr(candidate, name)}. Measure both together."
            )
    if len(baseline.blocks_ms) != len(candidate.blocks_ms):
        raise ValueError(
            "two measurements must come from one arena to be compared, but they have "
            f"{len(baseline.blocks_ms)} and {len(candidate.blocks_ms)} blocks. Measure both together."
        )
    ratios = [
        float(np.quantile(ours, quantile) / np.quantile(theirs, quantile))
        for ours, theirs in zip(baseline.blocks_ms, candidate.blocks_ms, strict=True)
    ]
    return quantile_interval(ratios, 0.5, confidence)
