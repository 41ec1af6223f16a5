"""Under load: what finalists do at the rate that the SLA names, and how high a rate keeps its limit."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from pareflow.errors import MissingExtraError, VariantError
from pareflow.hardware.device import device_lock
from pareflow.intervals import neighbours_alike
from pareflow.measurement import Measurement
from pareflow.measuring import loadgen
from pareflow.measuring.arena import Protocol
from pareflow.measuring.load import Load, Served, queries_worth, serve
from pareflow.sla import LoadClause
from pareflow.stages.jobs import feeds_key
from pareflow.stages.optimization import strong_baseline
from pareflow.stages.run import Row, Run
from pareflow.stages.timing import Inputs, conditions, contestant
from pareflow.variant import digest, sources

SEARCH_S = 60.0
"""How long the search for the highest load may take per variant."""
PARTS = 3
"""Runs at most of one look, which go on while latencies are worth fewer than were asked for."""
LIMITS = 20
"""A run lasts so many limits of the latency: what comes faster than it is answered, by a twentieth, has a
line by then that is longer than the limit."""
PRECISION = 1.1
"""It ends where the lowest rate that fails is at most so many times the highest that holds."""

INSTRUMENT = ("contestant.py", "load.py", "loadgen.py", "loadgen_log.py", "stopwatch.py")


def check_loadgen(run: Run) -> None:
    """Raises: MissingExtraError where the SLA names a load, and LoadGen is not installed."""
    if run.spec.sla.load is not None:
        loadgen.imported()


def under_load(run: Run, row: Row, protocol: Protocol) -> Row:
    """The row with more latencies under the SLA's load, where it names one: worth as many as the protocol
    takes, or as many as come in the minutes of one variant.

    Without LoadGen they stay unknown, and the row says why (law 3). Raises: what the variant died of.
    """
    clause = run.spec.sla.load
    if clause is None:
        return row
    try:
        found = _in_parts(run, row, clause, protocol.blocks * protocol.least, protocol.seed)
    except MissingExtraError as error:
        return replace(row, reason=f"the load was not measured: {error.must}, but {error.found}")
    except VariantError as error:
        error.variant = row.id
        raise
    return replace(row, served=found if row.served is None else row.served.extended(found))


def _in_parts(run: Run, row: Row, clause: LoadClause, independent: int, seed: int) -> Measurement:
    """Latencies of runs one after the other, until they are worth so many independent ones."""
    assert row.measurement is not None  # what is a finalist was timed
    left = max(independent, int(clause.per_s * run.spec.budget.variant_minutes * 60))
    queries = queries_worth(independent, clause.per_s * row.measurement.quantile_ms(0.5) / 1000)
    found: Measurement | None = None
    for part in range(PARTS):
        load = Load("Server", clause.per_s, clause.p99_ms, min(queries, left), seed=PARTS * seed + part)
        more = measure(run, row, load)
        found = more.measurement if found is None else found.extended(more.measurement)
        left -= load.queries
        alike = neighbours_alike(found.samples_ms)
        missing = independent - len(found.samples_ms) / alike
        queries = math.ceil(missing * alike)
        if missing <= 0 or left < queries or more.said.trouble:
            break
    assert found is not None  # there is one part at least
    return found


def measure(run: Run, row: Row, load: Load) -> Served:
    """What a row does under a load. Kept in the store: the same question is asked once.

    Raises: what the variant died of, MissingExtraError.
    """
    inputs = Inputs(run.spec.sla.batch_size)

    def served() -> dict[str, Any]:
        with device_lock(run.spec.target.device, exclusive=True) as descriptor:
            return serve(contestant(run, row), load, **conditions(run, inputs, descriptor)).to_json()

    return Served.from_json(run.kept(loading_key(run, row, load), "served.json", served))


def loading_key(run: Run, row: Row, load: Load) -> str:
    """Names a run under load by all that it depends on: variant, machine, inputs, load, instrument."""
    inputs = feeds_key(run.facts.digest, run.spec.sla.batch_size)
    instrument = sources(*(f"measuring/{name}" for name in INSTRUMENT))
    return digest("load", row.id, run.environment.fingerprint, inputs, asdict(load), instrument)


def with_highest_load(run: Run, rows: Sequence[Row], winner: Row | None) -> list[Row]:
    """The rows, of which the winner and its strong baseline know the highest load that holds the SLA's p99.

    Only where the SLA has a load, and something has won.
    """
    if run.spec.sla.load is None or winner is None:
        return list(rows)
    chosen = {winner.id, strong_baseline(winner, rows).id}
    return [
        replace(row, highest_load_per_s=highest_load(run, row)) if row.id in chosen else row for row in rows
    ]


def highest_load(run: Run, row: Row) -> float | None:
    """Requests per second of the Server scenario at which LoadGen still finds the SLA's p99 kept.

    None where the search, which takes `SEARCH_S` and then ends, found none (a run takes `LIMITS` times the
    p99: of seconds there is none), where the variant died of it, or where the budget is used up. Kept in the
    store.
    """
    clause = run.spec.sla.load
    assert clause is not None  # there is nothing to hold otherwise
    start = Load("Server", clause.per_s, clause.p99_ms)
    if run.late(f"highest load of {row.id}"):
        return None
    key = digest("highest load", loading_key(run, row, start), SEARCH_S, LIMITS, PRECISION)
    found: float | None = run.kept(key, "highest.json", lambda: _searched(run, row, start))
    return found


def _searched(run: Run, row: Row, start: Load) -> float | None:
    assert start.per_s is not None and start.limit_ms is not None  # it is of the Server scenario
    limit_s = start.limit_ms / 1000
    deadline = time.monotonic() + SEARCH_S

    def holds(per_s: float) -> bool | None:
        load = replace(start, per_s=per_s, seconds=max(start.seconds, LIMITS * limit_s))
        if time.monotonic() + load.duration_s > deadline:
            return None
        return measure(run, row, load).said.valid

    try:
        return highest(holds, start.per_s)
    except VariantError:
        return None


def highest(holds: Callable[[float], bool | None], start: float) -> float | None:
    """The highest rate that holds: doubled (or halved) from `start`, then bisected to within `PRECISION`.

    `holds` answers None where there is no time to tell; the search then ends with what it knows.
    """
    low: float | None = None
    high: float | None = None
    rate = start
    while low is None or high is None or high > PRECISION * low:
        found = holds(rate)
        if found is None:
            break
        low, high = (rate, high) if found else (low, rate)
        rate = 2 * rate if high is None else rate / 2 if low is None else math.sqrt(low * high)
    return low
