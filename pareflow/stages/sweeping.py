"""The sweep: winner and strong baseline side by side at each batch size and length that the YAML names."""

from collections.abc import Sequence
from typing import Any

from pareflow.errors import VariantError
from pareflow.hardware.device import device_lock
from pareflow.intervals import speedup
from pareflow.measurement import Measurement
from pareflow.measuring.arena import Protocol
from pareflow.stages.jobs import feeds_key
from pareflow.stages.optimization import strong_baseline
from pareflow.stages.run import Row, Run
from pareflow.stages.timing import Inputs, measure

SWEEPING = Protocol()


def sweep(run: Run, rows: Sequence[Row], winner: Row | None) -> list[dict[str, Any]]:
    """One document per point of `sweep:`; none where nothing won that the baseline can be compared with.

    A point at which one of the two fails has its reason, and no numbers.
    """
    if run.spec.sweep is None or winner is None or winner.role == "baseline":
        return []
    pair = (strong_baseline(winner, rows), winner)
    return [point(run, *pair, Inputs(*axes), SWEEPING) for axes in run.spec.sweep.points()]


def point(run: Run, baseline: Row, winner: Row, inputs: Inputs, protocol: Protocol) -> dict[str, Any]:
    """Latencies in ms, samples per second and speedup at one batch size and length.

    Raises: WorkloadError where the workload has no such length.
    """
    document = {"batch_size": inputs.batch_size, "length": inputs.length}
    try:
        feed(run, inputs)
        measured = measure(run, [baseline, winner], protocol, inputs)
    except VariantError as error:
        unknown = dict.fromkeys(("baseline", "winner", "speedup"))
        return {**document, **unknown, "reason": f"{type(error).__name__}: {error.must}, but {error.found}"}
    ours, theirs = measured[str(baseline.id)], measured[str(winner.id)]
    gained = speedup(ours, theirs)
    return {
        **document,
        "baseline": _numbers(ours),
        "winner": _numbers(theirs),
        "speedup": gained.bounds(),
        "reason": None,
    }


def feed(run: Run, inputs: Inputs) -> None:
    """Make the inputs where the store lacks them."""
    if run.store.find(feeds_key(run.facts.digest, inputs.batch_size, inputs.length)) is None:
        arguments = {"batch_size": inputs.batch_size, "length": inputs.length}
        with device_lock(run.spec.target.device, exclusive=False):
            run.job("feeds", arguments, f"feeds-{run.id}-{inputs.batch_size}-{inputs.length}")


def _numbers(measurement: Measurement) -> dict[str, Any]:
    return {
        "latency_ms": {"p50": measurement.quantile_ms(0.5), "p99": measurement.quantile_ms(0.99)},
        "throughput": measurement.throughput_per_s,
        "samples": len(measurement.samples_ms),
    }
