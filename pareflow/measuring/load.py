"""The load: one executable answers requests that arrive as a scenario of MLPerf LoadGen has them arrive.

LoadGen decides when each request arrives and counts its latency from that moment, so that waiting in line
counts. Numbers from here are of "the LoadGen Server scenario", say; they are no MLPerf results.
Source: Reddi et al., 2020, arXiv:1911.02549, section IV (the scenarios).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pareflow.hardware import probe
from pareflow.hardware.noise import await_quiet
from pareflow.isolation import Limits, run_isolated
from pareflow.measurement import Measurement, Ran
from pareflow.measuring.arena import Contestant

Scenario = Literal["SingleStream", "MultiStream", "Server", "Offline"]
BLOCKS = 12
"""Parts of a run, one after the other: a machine that drifts makes those of one part alike."""


@dataclass(frozen=True, slots=True)
class Load:
    """How requests arrive; part of a measurement's key.

    SingleStream: the next when the last is answered. MultiStream: 8 at once, the next 8 when all are
    answered. Server: `per_s` in a second on average, at random (Poisson). Offline: all at once. A run lasts
    for `queries` and for `seconds` at least; `limit_ms` is what 99 % of a Server run's latencies must keep.
    """

    scenario: Scenario
    per_s: float | None = None
    limit_ms: float | None = None
    queries: int = 700
    seconds: float = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.scenario == "Server" and (self.per_s is None or self.limit_ms is None):
            raise ValueError(
                "the Server scenario must have a rate and a limit, but got "
                f"per_s={self.per_s}, limit_ms={self.limit_ms}. Give both."
            )

    @property
    def label(self) -> str:
        """Such as `Server 100/s`: the `load` of its measurements."""
        return self.scenario if self.per_s is None else f"{self.scenario} {self.per_s:g}/s"

    @property
    def duration_s(self) -> float:
        """How long requests keep arriving in a Server run; the least that any other takes."""
        return max(self.seconds, self.queries / self.per_s if self.per_s else 0)


def queries_worth(independent: int, busy: float) -> int:
    """How many queries of a Server run tell about as much as so many independent ones.

    A line that computes `busy` of the time forgets slowly: (1 + busy) / (1 - busy)² latencies are worth one
    where all take equally long (by simulation, `bench/gate.py`), and half as many again are asked, since
    they do not. What is busy above nine tenths is asked as often as there; a line that only grows tells soon.
    """
    if busy >= 1:
        return independent
    busy = min(busy, 0.9)
    return math.ceil(1.5 * independent * (1 + busy) / (1 - busy) ** 2)


@dataclass(frozen=True, slots=True)
class Said:
    """What LoadGen says of its run.

    `valid` where all its constraints are met, among them that so many queries tell its percentile at 99 %
    confidence (`early_stopping` says it). `trouble` holds its errors: a run that ended early has one.
    """

    valid: bool
    early_stopping: str
    queries: int
    percentiles_ms: Mapping[str, float]
    samples_per_s: float | None
    trouble: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Served:
    """A run under load: the latency of every query, and what LoadGen says."""

    measurement: Measurement
    said: Said

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Served":
        said = {**document["said"], "trouble": tuple(document["said"]["trouble"])}
        return cls(Measurement.from_json(document["measurement"]), Said(**said))


def serve(
    contestant: Contestant,
    load: Load,
    *,
    feeds: Path,
    batch_size: int,
    environment: str,
    workload: tuple[Mapping[str, Any], Path],
    limits: Limits,
    logs: Path,
    descriptors: Sequence[int] = (),
    patience_s: float = 300,
) -> Served:
    """What a contestant does under a load, in a process of its own; the caller holds the device lock.

    A query is one request of `batch_size` samples (MultiStream: eight). Raises: what the process died of,
    MissingExtraError where LoadGen is not installed, BusyMachineError.
    """
    noise = await_quiet(patience_s).words(contestant.threads, len(probe.cores()))
    arguments = {
        **contestant.arguments(feeds, workload),
        "threads": contestant.threads,
        "load": asdict(load),
    }
    # A Server run lasts as long as it must, whatever a single variant may take otherwise.
    limits = Limits(limits.seconds + 2 * load.duration_s, limits.memory_mib, contestant.threads)
    log = logs / f"load-{contestant.variant[:12]}.log"
    found = run_isolated("pareflow.measuring.loadgen:answer", arguments, limits, log, descriptors)
    blocks = np.array_split(found["ms"], min(BLOCKS, len(found["ms"])))
    measurement = Measurement(
        variant=contestant.variant,
        environment=environment,
        batch_size=batch_size,
        ran=Ran(**found["ran"]),
        blocks_ms=tuple(tuple(map(float, block)) for block in blocks),
        load_s=found["load_s"],
        first_request_ms=found["first_request_ms"],
        peak_memory_mib=found["peak_memory_mib"],
        size_mib=contestant.size_mib,
        load=load.label,
        noise=noise,
    )
    return Served(measurement, Said(**{**found["said"], "trouble": tuple(found["said"]["trouble"])}))
