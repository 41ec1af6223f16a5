"""The serving plan of a run's winner: tuned for the SLA's load, beside the strong baseline at its own best.

Both are served as `pareflow serve` does. Plans are candidates like all others; what none keeps is said.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pareflow.errors import MissingExtraError, VariantError
from pareflow.intervals import quantile_ratio
from pareflow.stages import registration
from pareflow.stages.jobs import feeds_key
from pareflow.stages.optimization import strong_baseline
from pareflow.stages.run import Row, Run
from pareflow.stages.tuning import MEASURED, Ground, Promise, Tried, tune
from pareflow.variant import digest, file_digest

START_MINUTES = 0.1
"""A server is started with a plan, warmed up, and ended."""
_CORE = Path(__file__).parents[1]


def skipped(reason: str) -> dict[str, Any]:
    """The document of a run whose plan was not tuned."""
    unknown = dict.fromkeys(("kept", "promise", "plan", "optimized", "original", "speedup"))
    return {"decision": "skipped", "reason": f"no serving plan was tuned: {reason}", **unknown}


NO_LOAD = skipped("the SLA states no load")


def planned(run: Run) -> dict[str, float] | None:
    """The load that plans are tuned for, and about how many minutes that takes where no look is repeated, of
    sessions that are seldom busy: how busy they are is not known before they are timed."""
    promise = _promise(run)
    if promise is None or _not_tuned(run) is not None:
        return None
    each = START_MINUTES + promise.load(1, busy=0).duration_s / 60
    return {"per_s": promise.per_s, "p99_ms": promise.p99_ms, "minutes": 2 * MEASURED * each}


def tuned(run: Run, rows: Sequence[Row], winner: Row | None) -> dict[str, Any]:
    """The plan that keeps the SLA's load, how sure that is, and winner and baseline through the server.

    `decision` is the gate's on the winner's best plan; `kept` says that it is `promote`, and None that plans
    were not tried. All that plans are judged by is kept in the store. Raises: BusyMachineError.
    """
    promise = _promise(run)
    if promise is None:
        return NO_LOAD
    if winner is None:
        return skipped("nothing met the SLA")
    absent = _not_tuned(run, winner)
    if absent is not None:
        return skipped(absent)
    strong = strong_baseline(winner, rows)
    try:
        ours = _tried(run, winner, promise)
        theirs = ours if strong.id == winner.id else _tried(run, strong, promise)
    except MissingExtraError as error:
        return skipped(f"{error.must}, but {error.found}")
    return told(promise, (winner, ours), (strong, theirs))


def _promise(run: Run) -> Promise | None:
    """What the SLA asks of whoever serves; None where it states no load."""
    load, sla = run.spec.sla.load, run.spec.sla
    if load is None:
        return None
    return Promise(load.per_s, load.p99_ms, samples=sla.batch_size, confidence=sla.confidence)


def _not_tuned(run: Run, winner: Row | None = None) -> str | None:
    """Why there is no plan to tune, in words; None where there is."""
    if winner is not None and winner.role == "original":
        return "the original is kept as it is, and not registered"
    if run.spec.target.profile is not None:
        return f"it would be this machine's, not {run.spec.target.profile.name}'s; `pareflow tune` there"
    return None


Side = list[Tried] | VariantError
"""Every plan of one row, the best first; or what the row died of."""


def told(promise: Promise, optimized: tuple[Row, Side], original: tuple[Row, Side]) -> dict[str, Any]:
    """The document of both sides: what became of the plan, and what was measured."""
    (winner, ours), (strong, theirs) = optimized, original
    decision, reason = _decided(ours)
    chosen = ours[0].plan if isinstance(ours, list) and decision == "promote" else None
    return {
        "decision": decision,
        "reason": _words(promise, decision, reason),
        "kept": decision == "promote",
        "promise": asdict(promise),
        "plan": None if chosen is None else chosen.to_json(),
        "optimized": _side(winner, ours),
        "original": _side(strong, theirs),
        "speedup": _speedup(theirs, ours, promise.confidence),
    }


def _tried(run: Run, row: Row, promise: Promise) -> Side:
    try:
        ground = Ground(
            registration.package(run, row),
            run.limits,
            run.data_dir / "logs",
            run.spec.budget.quiet_minutes * 60,
            _kept(run, row),
            lambda asked, minutes: run.left(f"serve {row.id}: {asked}") < minutes,
            _feeds(run, row),
        )
        return tune(ground, promise)
    except VariantError as error:
        return error


def _feeds(run: Run, row: Row) -> Path | None:
    """The inputs of the search split that the row was timed with; None where they are gone."""
    entry = run.store.find(feeds_key(run.facts.digest, run.spec.sla.batch_size, own=row.processing))
    return None if entry is None else entry / "feeds.npz"


def _kept(run: Run, row: Row) -> Callable[[str, Mapping[str, Any], Callable[[], Any]], Any]:
    """What the store knows of a row's plans: the same question is asked once (law 6)."""
    instrument = _instrument()

    def kept(what: str, conditions: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        key = digest(what, row.id, run.environment.fingerprint, conditions, instrument)
        return run.kept(key, "planned.json", make)

    return kept


def _instrument() -> list[str]:
    """A digest of each file that serves, and of those that ask."""
    files = [*(_CORE / "serving").glob("*.py"), *(_CORE / "runtime").glob("*.py")]
    return [file_digest(path) for path in sorted([*files, *(_CORE / "measuring").glob("load*.py")])]


def _decided(side: Side) -> tuple[str, str]:
    """What became of the best plan, and why."""
    if isinstance(side, VariantError):
        return "failed", f"{type(side).__name__}: {side.must}, but {side.found}"
    return side[0].decision, str(side[0].reason)


def _words(promise: Promise, decision: str, told: str) -> str:
    asked = f"a p99 of {promise.p99_ms:g} ms at {promise.per_s:g} requests/s through the server"
    if decision == "promote":
        return f"a plan keeps {asked}: {told}"
    sure = "was proved to keep" if decision == "inconclusive" else "keeps"
    return f"no plan {sure} {asked}; of the closest: {told}"


def _side(row: Row, side: Side) -> dict[str, Any]:
    """One row through the server: its best plan, and all that were considered."""
    tried = [] if isinstance(side, VariantError) else [one.to_json() for one in side]
    known = ("plan", "words", "p50_ms", "p99", "samples", "distinct_requests")
    best = {name: tried[0][name] if tried else None for name in known}
    decision, reason = _decided(side)
    named = {"variant": row.id, "recipe": row.label, "decision": decision, "reason": reason}
    return {**named, **best, "tried": tried}


def _speedup(before: Side, after: Side, confidence: float) -> dict[str, Any] | None:
    """How many times smaller p50 and p99 are, each side at its best plan; None where one has no answers."""
    if isinstance(before, VariantError) or isinstance(after, VariantError):
        return None
    ours, theirs = before[0].blocks_ms, after[0].blocks_ms
    if not ours or not theirs:
        return None
    quantiles = {"p50": 0.5, "p99": 0.99}
    found = {name: quantile_ratio(ours, theirs, q, confidence, in_line=True) for name, q in quantiles.items()}
    return {name: interval.bounds() for name, interval in found.items()}
