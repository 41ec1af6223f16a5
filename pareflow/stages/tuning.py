"""The serving plan of a packaged model: which sessions and batches keep a p99 at a rate, through the server.

The simulation of the line leaves out what is hopeless; LoadGen's Server scenario, asked over HTTP of the real
server, decides.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pareflow.errors import StepFailedError, VariantError
from pareflow.gate import Decision, decided
from pareflow.hardware import probe
from pareflow.hardware.device import device_lock
from pareflow.hardware.noise import await_quiet
from pareflow.intervals import pooled_quantile_interval, samples_needed
from pareflow.isolation import Limits, run_isolated
from pareflow.measurement import Interval
from pareflow.measuring.load import BLOCKS, Load
from pareflow.runtime.batching import DynamicBatching
from pareflow.runtime.simulation import Setting, poisson, simulate
from pareflow.serving.load import Post, under_load
from pareflow.serving.model import network
from pareflow.serving.plan import ServingPlan
from pareflow.variant import Step

BATCHES = (1, 2, 4, 8, 16)
HELD_BACK = ((1, 0.0), (2, 2.0), (4, 5.0))
"""Samples worth waiting for, and the ms that a request waits for them at most."""
ARRIVALS = 4000
MEASURED = 3
"""Settings that are served for real: those of the lowest simulated p99."""
POSTS = 8


@dataclass(frozen=True, slots=True)
class Promise:
    """What the served model must keep: 99 % of the answers within a time, at a rate of requests."""

    per_s: float
    p99_ms: float
    queries: int = 700
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Tried:
    """A plan: its simulated p99, and where it was served what that said. Unknown is None, never 0."""

    plan: ServingPlan
    simulated_ms: float
    p50_ms: float | None = None
    p99: Interval | None = None
    valid: bool | None = None
    decision: Decision | Literal["left out", "failed"] = "left out"
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "plan": self.plan.model_dump(mode="json"),
            "p99": None if self.p99 is None else self.p99.bounds(),
        }


def tune(package: Path, promise: Promise, limits: Limits, logs: Path, patience_s: float) -> list[Tried]:
    """Every plan that was considered, those that were served first, the best of them first.

    The first is to be taken if its decision is `promote`. Raises: InputError where the package is damaged,
    BusyMachineError, MissingExtraError where LoadGen or the server is not installed.
    """
    document = network(package)
    threads = int(Step.from_json(document["backend"]).settings.get("threads", 1))
    most = max(1, len(probe.cores()) // threads)
    counts = tuple(range(1, most + 1))
    name = str(document["pipeline"])
    with device_lock("cpu", exclusive=True) as held:
        await_quiet(patience_s)
        arguments = {"folder": str(package), "sessions": counts, "sizes": BATCHES}
        log = logs / f"service-{package.name[:12]}.log"
        times = run_isolated("pareflow.serving.service_times:measure", arguments, limits, log, [held])
        ranked = sorted(_simulated(times, promise), key=lambda tried: tried.simulated_ms)
        posts = _posts(package, limits, logs)
        served = [_served(package, name, tried, promise, posts, times, logs) for tried in ranked[:MEASURED]]
    served.sort(key=lambda tried: (_ORDER.index(tried.decision), tried.p99.estimate if tried.p99 else 0))
    return [*served, *ranked[MEASURED:]]


_ORDER = ("promote", "inconclusive", "reject", "failed", "left out")


def _simulated(times: Mapping[str, Mapping[str, float]], promise: Promise) -> Iterator[Tried]:
    """Each setting once, with its p99 by simulation."""
    arrivals = poisson(promise.per_s, ARRIVALS, promise.seed)
    for sessions, known in times.items():
        service = {int(size): seconds for size, seconds in known.items()}
        for most in BATCHES:
            for least, wait_ms in HELD_BACK:
                if least <= most:
                    settings = {"max_batch_size": most, "min_batch_size": least, "max_wait_ms": wait_ms}
                    batching = DynamicBatching.model_validate(settings)
                    found = simulate(Setting(int(sessions), batching), service, arrivals)
                    plan = ServingPlan(sessions=int(sessions), policies=(batching.step.to_json(),))
                    yield Tried(plan, 1000 * float(np.quantile(found, 0.99)))


def _served(
    package: Path,
    name: str,
    tried: Tried,
    promise: Promise,
    posts: Sequence[bytes],
    times: Mapping[str, Mapping[str, float]],
    logs: Path,
) -> Tried:
    """The plan after a run of LoadGen through the server; a run that fails is a failed row (law 7)."""
    queries = max(promise.queries, samples_needed(0.99))
    load = Load("Server", promise.per_s, promise.p99_ms, queries, seed=promise.seed)
    try:
        with _running(package, tried.plan, logs) as address:
            url = f"{address}/v2/models/{name}/infer"
            made = [Post(url, body, {"Content-Type": "application/json"}) for body in posts]
            log = under_load(made, load, service_s=times["1"]["1"])
    except VariantError as error:
        return replace(tried, decision="failed", reason=str(error))
    blocks = [block.tolist() for block in np.array_split(log.latencies_ms, BLOCKS)]
    p99 = pooled_quantile_interval(blocks, 0.99)
    decision = decided(p99, promise.p99_ms, upper=True)
    p50 = float(np.median(log.latencies_ms))
    return replace(tried, p50_ms=p50, p99=p99, valid=log.said.valid, decision=decision)


def _posts(package: Path, limits: Limits, logs: Path) -> list[bytes]:
    """Requests of one golden sample each, as they go out."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "feeds.json"
        arguments = {"folder": str(package), "into": str(path), "count": POSTS}
        log = logs / f"feeds-{package.name[:12]}.log"
        run_isolated("pareflow.serving.service_times:feeds", arguments, limits, log)
        return [json.dumps({"inputs": tensors}).encode() for tensors in json.loads(path.read_text())]


@contextmanager
def _running(package: Path, plan: ServingPlan, logs: Path) -> Iterator[str]:
    """The address of the real server, in a process of its own. Raises: StepFailedError."""
    log = logs / f"serve-{package.name[:12]}.log"
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file, log.open("w") as written:
        file.write(json.dumps(plan.model_dump(mode="json")))
        file.flush()
        command = [sys.executable, "-P", "-m", "pareflow.serving", str(package)]
        process = subprocess.Popen(
            [*command, "--port", "0", "--plan", file.name], stdout=subprocess.PIPE, stderr=written, text=True
        )
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if not url:
                raise StepFailedError(
                    "the server must start", f"it ended with status {process.wait()}", f"Look at {log}"
                )
            yield url
        finally:
            process.kill()
            process.communicate()
