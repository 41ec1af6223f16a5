"""The serving plan of a packaged model: which sessions and batches keep a p99 at a rate, through the server.

The simulation of the line leaves out what is hopeless; LoadGen's Server scenario, asked over HTTP of the real
server, decides, and the gate judges.
"""

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pareflow.errors import VariantError
from pareflow.gate import Check, Decision, judge_served
from pareflow.hardware import probe
from pareflow.hardware.device import device_lock
from pareflow.hardware.noise import await_quiet
from pareflow.intervals import pooled_quantile_interval, samples_needed
from pareflow.isolation import Limits, run_isolated
from pareflow.measurement import CONFIDENCE
from pareflow.measuring.load import BLOCKS, Load, queries_worth
from pareflow.serving.model import network
from pareflow.serving.plan import ServingPlan, default
from pareflow.serving.server import check_extra
from pareflow.stages import plan_space
from pareflow.variant import Step, file_digest

MEASURED = 3
"""Plans that are served for real: those of the lowest simulated p99, and what `serve` does by default."""
LOOKS = 3
"""How often the gate may look: while no plan passes, what is inconclusive is asked as much again."""
POSTS = 8
"""Requests of golden samples, which are as many."""

Kept = Callable[[str, Mapping[str, Any], Callable[[], Any]], Any]
"""What a measurement of this name and these conditions said; made where it is not known."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What the served model must keep: 99 % of the answers within a time, at a rate of requests.

    A request holds so many `samples`. The chance that any plan is taken wrongly is at most 1 - `confidence`.
    """

    per_s: float
    p99_ms: float
    queries: int = 700
    seed: int = 0
    samples: int = 1
    confidence: float = CONFIDENCE

    def at_look(self, look: int) -> float:
        """The confidence of one plan's interval: the error is shared by the plans, and spent over looks."""
        return 1 - (1 - self.confidence) / MEASURED / (look * (look + 1))

    def load(self, look: int, busy: float) -> Load:
        """What is asked at a look; as much as at all before it, and at the first enough to bound p99.

        `busy` is the share of time that the sessions compute.
        """
        independent = math.ceil(1.2 * samples_needed(0.99, self.at_look(1)))
        queries = max(self.queries, queries_worth(independent, busy)) * 2 ** max(look - 2, 0)
        return Load("Server", self.per_s, self.p99_ms, queries, seed=self.seed + look - 1)


def _anew(what: str, conditions: Mapping[str, Any], make: Callable[[], Any]) -> Any:
    return make()


@dataclass(frozen=True, slots=True)
class Ground:
    """Where plans are tried: the package, what each process may use, what is kept, and when it is too late.

    `late` is asked before all that is not the least that must be done, with the minutes that it takes. Unless
    they are given nothing is late, and all is measured anew. Requests hold the inputs in `feeds`,
    as contestants read them, or else the package's golden samples.
    """

    package: Path
    limits: Limits
    logs: Path
    patience_s: float
    kept: Kept = _anew
    late: Callable[[str, float], bool] = lambda asked, minutes: False
    feeds: Path | None = None

    def alone(self, function: str, arguments: Mapping[str, Any], limits: Limits) -> Any:
        """What a function says that times something, in a process of its own, alone on the machine."""
        log = self.logs / f"{function.rpartition(':')[2]}-{self.package.name[:12]}.log"
        with device_lock("cpu", exclusive=True) as held:
            await_quiet(self.patience_s)
            return run_isolated(f"pareflow.serving.{function}", arguments, limits, log, [held])


@dataclass(frozen=True, slots=True)
class Tried:
    """A plan: its simulated p99, and where it was served what that said. Unknown is None, never 0."""

    plan: ServingPlan
    simulated_ms: float
    blocks_ms: tuple[tuple[float, ...], ...] = ()
    valid: bool | None = None
    check: Check | None = None
    decision: Decision | Literal["left out", "failed"] = "left out"
    reason: str | None = None
    distinct: int | None = None
    """Requests that differ, among those that were asked again and again."""

    @property
    def p50_ms(self) -> float | None:
        return float(np.median(np.concatenate(self.blocks_ms))) if self.blocks_ms else None

    @property
    def words(self) -> str:
        steps = " → ".join(policy.label for policy in self.plan.chosen())
        return f"{self.plan.sessions} session{'' if self.plan.sessions == 1 else 's'} behind {steps}"

    def to_json(self) -> dict[str, Any]:
        check = self.check
        return {
            "plan": self.plan.model_dump(mode="json"),
            "words": self.words,
            "simulated_ms": self.simulated_ms,
            "p50_ms": self.p50_ms,
            "p99": check and {"estimate": check.estimate, "low": check.low, "high": check.high},
            "samples": sum(map(len, self.blocks_ms)) or None,
            "distinct_requests": self.distinct,
            "valid": self.valid,
            "decision": self.decision,
            "reason": self.reason,
        }


def tune(ground: Ground, promise: Promise) -> list[Tried]:
    """Every plan that was considered, those that were served first, the best of them first.

    The first is to be taken if its decision is `promote`. Raises: InputError where the package is damaged,
    BusyMachineError, MissingExtraError where LoadGen or the server is not installed.
    """
    check_extra()
    document = network(ground.package)
    threads = int(Step.from_json(document["backend"]).settings.get("threads", 1))
    most = max(1, probe.usable_cores() // threads)
    without = default(document)
    sizes = plan_space.sizes(promise.samples, document.get("judged_batch_size"), without)
    arguments = {"folder": str(ground.package), "sessions": list(range(1, most + 1)), "sizes": sizes}
    asked = {name: value for name, value in arguments.items() if name != "folder"}
    times = ground.kept(
        "service times", asked, lambda: ground.alone("service_times:measure", arguments, ground.limits)
    )
    found = plan_space.ranked(times, promise.per_s, promise.samples, promise.seed)
    usual = plan_space.usual(without, most, promise.samples)
    chosen = plan_space.worth_serving(found, usual, MEASURED)
    requests = cache(partial(_requests, ground, promise.samples))
    served = _served(
        ground, promise, [Tried(*one) for one in chosen], requests, service_s=times["1"][str(promise.samples)]
    )
    served.sort(key=lambda t: (_ORDER.index(t.decision), t.check.estimate or 0 if t.check else 0))
    return [*served, *(Tried(*one) for one in found if one not in chosen)]


_ORDER = ("promote", "inconclusive", "reject", "failed", "left out")


def _served(
    ground: Ground,
    promise: Promise,
    chosen: Sequence[Tried],
    requests: Callable[[], Any],
    service_s: float,
) -> list[Tried]:
    """The plans as LoadGen found them: all once, then while none passes those that it could not tell of.

    The first plan is looked at once whatever the time: what is not measured is not kept.
    """
    served = list(chosen)
    for look in range(1, LOOKS + 1):
        for position, tried in enumerate(served):
            if look > 1 and tried.decision != "inconclusive":
                continue
            load = promise.load(look, promise.per_s * service_s / (tried.plan.sessions or 1))
            minutes = load.duration_s / 60
            if (look, position) != (1, 0) and ground.late(f"look {look} at plan {position}", minutes):
                if look == 1:
                    served[position] = replace(tried, reason="too little of the budget was left")
                continue
            served[position] = _looked_at(ground, promise, tried, look, load, requests, service_s)
        if any(tried.decision == "promote" for tried in served):
            break
    return served


def _looked_at(
    ground: Ground,
    promise: Promise,
    tried: Tried,
    look: int,
    load: Load,
    requests: Callable[[], Any],
    service_s: float,
) -> Tried:
    """The plan after (another) run of LoadGen through the server; one that fails is a failed row (law 7)."""
    plan = tried.plan.model_dump(mode="json")
    inputs = "golden" if ground.feeds is None else file_digest(ground.feeds)
    asked = {"plan": plan, "load": asdict(load), "samples": promise.samples, "inputs": inputs}
    limits = Limits(ground.limits.seconds + 2 * load.duration_s)  # a run lasts as long as it must

    def run() -> Any:
        arguments = {
            "folder": str(ground.package),
            "plan": plan,
            "load": asdict(load),
            "requests": requests(),
            "service_s": service_s,
            "limits": asdict(replace(ground.limits, threads=None)),
            "log": str(ground.logs / f"serve-{ground.package.name[:12]}.log"),
        }
        return ground.alone("plan_under_load:answer", arguments, limits)

    try:
        found = ground.kept("a plan under load", asked, run)
    except VariantError as error:
        reason = f"{type(error).__name__}: {error.must}, but {error.found}"
        return replace(tried, decision="failed", reason=reason)
    more = (tuple(map(float, block)) for block in np.array_split(found["ms"], BLOCKS))
    blocks = (*tried.blocks_ms, *more)
    p99 = pooled_quantile_interval(blocks, 0.99, promise.at_look(look), in_line=True)
    check, distinct = judge_served(p99, promise.p99_ms), found["distinct"]
    return replace(
        tried,
        blocks_ms=blocks,
        valid=bool(found["said"]["valid"]),
        check=check,
        decision=check.decision,
        reason=f"{check.reason} (distinct requests: {distinct})",
        distinct=distinct,
    )


def _requests(ground: Ground, samples: int) -> Any:
    """The tensors of requests of so many samples each, in the protocol's form."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "feeds.json"
        arguments = {"folder": str(ground.package), "into": str(path), "count": POSTS, "rows": samples}
        if ground.feeds is not None:
            arguments["given"] = str(ground.feeds)
        log = ground.logs / f"feeds-{ground.package.name[:12]}.log"
        run_isolated("pareflow.serving.service_times:feeds", arguments, ground.limits, log)
        return json.loads(path.read_text())
