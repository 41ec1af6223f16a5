"""What was measured: raw samples with units in the names, the environment they belong to, and intervals."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
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

    def bounds(self) -> dict[str, float | None]:
        """`{estimate, low, high}`, as documents show it."""
        return {"estimate": self.estimate, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Environment:
    """The machine and software that a measurement belongs to (law 8).

    Nothing that changes by itself, such as a frequency or a load: equal machines have equal environments.
    `accelerator` and `driver` are the graphics processors', `governor` the cores'; `cpu_quota` (in cores) and
    `memory_limit_mib` a container's, where they are less than the machine's. None where there is none.
    """

    processor: str
    flags: tuple[str, ...]
    cores: int
    memory_mib: int
    system: str
    python: str
    runtimes: Mapping[str, str]
    driver: str | None = None
    accelerator: str | None = None
    governor: str | None = None
    cpu_quota: float | None = None
    memory_limit_mib: int | None = None

    @property
    def fingerprint(self) -> str:
        """Equal for two environments in which the same verdict holds."""
        return digest(self.to_json())

    def to_json(self) -> dict[str, Any]:
        bounds = ("cpu_quota", "memory_limit_mib")  # only where there are: fingerprints are older than they
        told = {
            name: value for name, value in asdict(self).items() if value is not None or name not in bounds
        }
        return {**told, "flags": list(self.flags), "runtimes": dict(self.runtimes)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Environment":
        return cls(**{**document, "flags": tuple(document["flags"])})


@dataclass(frozen=True, slots=True)
class Ran:
    """What really executed (law 10), as the open session tells it, and not the recipe."""

    runtime: str
    version: str
    precision: str
    device: str
    threads: int
    notes: str = ""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One variant in one environment, at one batch size and load.

    `blocks_ms` holds every sample in the order it was taken, in blocks that were interleaved with the
    baseline's: block i of both ran next to each other. The executable was loaded anew before every
    `blocks_per_load` of them, since where a load lies in memory makes it lastingly faster or slower: loads,
    not blocks, are independent. What is unknown is None, never 0.

    `load` is `closed` (the next request is sent when the last is answered) or a LoadGen scenario. `cpu_ms` is
    processor time and `energy_j` energy, both per request; `device_memory_mib` is the most that an
    accelerator allocated; `noise` says what disturbed the machine.
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
    blocks_per_load: int = 1
    load: str = "closed"
    cpu_ms: float | None = None
    energy_j: float | None = None
    device_memory_mib: float | None = None
    device_reserved_mib: float | None = None
    noise: str = ""

    @property
    def samples_ms(self) -> np.ndarray:
        """All latencies in ms, shape (n,), in the order taken."""
        return np.asarray([ms for block in self.blocks_ms for ms in block], dtype=float)

    @property
    def loads_ms(self) -> tuple[tuple[float, ...], ...]:
        """The samples of each load of the executable, in ms."""
        blocks, size = self.blocks_ms, self.blocks_per_load
        return tuple(sum(blocks[i : i + size], ()) for i in range(0, len(blocks), size))

    def quantile_ms(self, quantile: float) -> float:
        """A quantile of all latencies, in ms."""
        return float(np.quantile(self.samples_ms, quantile))

    @property
    def throughput_per_s(self) -> float:
        """Samples (not batches) answered per second, one request at a time."""
        return self.batch_size * 1000 / float(np.mean(self.samples_ms))

    @property
    def utilisation(self) -> float | None:
        """Processor time over the time of the cores it was given; 1 where every thread always computes."""
        if self.cpu_ms is None:
            return None
        return self.cpu_ms / float(np.mean(self.samples_ms)) / self.ran.threads

    @property
    def power_w(self) -> float | None:
        """Mean power in watts while requests were answered; None where energy is not counted."""
        return None if self.energy_j is None else self.energy_j * 1000 / float(np.mean(self.samples_ms))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Measurement":
        blocks = tuple(tuple(block) for block in document["blocks_ms"])
        return cls(**{**document, "ran": Ran(**document["ran"]), "blocks_ms": blocks})

    def extended(self, more: "Measurement") -> "Measurement":
        """This measurement with the blocks of `more` behind its own; what is per request is averaged, and
        what disturbed either is kept."""
        ours, theirs = len(self.samples_ms), len(more.samples_ms)

        def mean(before: float | None, after: float | None) -> float | None:
            unknown = before is None or after is None
            return None if unknown else (before * ours + after * theirs) / (ours + theirs)  # type: ignore[operator]

        peaks = [peak for peak in (self.peak_memory_mib, more.peak_memory_mib) if peak is not None]
        return replace(
            self,
            blocks_ms=(*self.blocks_ms, *more.blocks_ms),
            peak_memory_mib=max(peaks, default=None),
            cpu_ms=mean(self.cpu_ms, more.cpu_ms),
            energy_j=mean(self.energy_j, more.energy_j),
            noise="; ".join(dict.fromkeys(filter(None, (self.noise, more.noise)))),
        )


@dataclass(frozen=True, slots=True)
class Quality:
    """How good one variant's predictions are on one split, or on one slice of it.

    `scores` holds one 0 or 1 per sample where the metric is their mean, so that two variants can be paired;
    else it is None, `replicates` holds the metric on bootstrap resamples that are the same for all variants
    (same seed), and `jackknife` the metric with each sample, or each group of samples, left out: both are
    paired too. `value_range` is the least and the most that the metric can be, None where it has no such
    limits. `slices` are parts of the split, such as one per class.
    """

    variant: str
    metric: str
    split: str
    split_digest: str
    value: float
    samples: int
    scores: tuple[int, ...] | None
    replicates: tuple[float, ...] = ()
    jackknife: tuple[float, ...] = ()
    higher_is_better: bool = True
    value_range: tuple[float, float] | None = None
    slices: "Mapping[str, Quality]" = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        slices = {name: part.to_json() for name, part in self.slices.items()}
        return {**{name: getattr(self, name) for name in self.__slots__}, "slices": slices}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Quality":
        scores, limits = document["scores"], document.get("value_range")
        return cls(
            **{
                **document,
                "scores": None if scores is None else tuple(scores),
                "replicates": tuple(document["replicates"]),
                "jackknife": tuple(document["jackknife"]),
                "value_range": None if limits is None else (limits[0], limits[1]),
                "slices": {name: cls.from_json(part) for name, part in document["slices"].items()},
            }
        )
