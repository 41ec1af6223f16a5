"""Time variants side by side, alone on the device, and keep every sample in the store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pareflow.errors import VariantError
from pareflow.hardware.device import device_lock
from pareflow.measurement import Measurement
from pareflow.measuring.arena import Arena, Contestant, Protocol
from pareflow.measuring.race import Race
from pareflow.stages import processing
from pareflow.stages.jobs import feeds_key
from pareflow.stages.run import Row, Run
from pareflow.variant import digest, sources


@dataclass(frozen=True, slots=True)
class Inputs:
    """Which real inputs requests hold; a length of None is what the samples have."""

    batch_size: int
    length: int | None = None


def measure(
    run: Run,
    rows: Sequence[Row],
    protocol: Protocol,
    inputs: Inputs | None = None,
    race: Race | None = None,
) -> dict[str, Measurement]:
    """A measurement per row id, all from one arena. Kept in the store: the same question is asked once.

    The inputs are those of the SLA unless others are given. It is shorter where `race` is lost; one that was
    not is as good for any other race.
    Raises: the error of the first row that could not be timed; then nothing is kept.
    """
    inputs = inputs or Inputs(run.spec.sla.batch_size)
    whole, raced = (measuring_key(run, rows, protocol, inputs, one) for one in (None, race))

    def timed() -> list[dict[str, Any]]:
        with (
            device_lock(run.spec.target.device, exclusive=True) as descriptor,
            Arena(
                [contestant(run, row, inputs) for row in rows], **conditions(run, inputs, descriptor)
            ) as arena,
        ):
            measured = arena.measure(protocol, race)
            for variant, error in arena.failures.items():
                if isinstance(error, VariantError):
                    error.variant = variant
                raise error
        return [one.to_json() for one in measured.values()]

    known = not run.remeasure and run.store.find(raced) is None and run.store.find(whole) is not None
    documents = run.kept(whole if known else raced, "measurements.json", timed)
    found = {document["variant"]: Measurement.from_json(document) for document in documents}
    if raced != whole and all(len(one.blocks_ms) == protocol.blocks for one in found.values()):
        run.kept(whole, "measurements.json", lambda: documents)
    return found


def measuring_key(
    run: Run,
    rows: Sequence[Row],
    protocol: Protocol,
    inputs: Inputs | None = None,
    race: Race | None = None,
) -> str:
    """Names a measurement by all that it depends on: variants, machine, inputs, protocol, instrument."""
    inputs = inputs or Inputs(run.spec.sla.batch_size)
    return digest(
        "measure",
        [row.id for row in rows],
        run.environment.fingerprint,
        feeds_key(run.facts.digest, inputs.batch_size, inputs.length),
        document_of(protocol),
        None if race is None else race.needed,
        instrument(),
    )


def conditions(run: Run, inputs: Inputs, descriptor: int) -> dict[str, Any]:
    """What every instrument is told: what `Arena` and `load.serve` take by name."""
    feeds = run.held(feeds_key(run.facts.digest, inputs.batch_size, inputs.length), "the measuring inputs")
    return {
        "feeds": feeds / "feeds.npz",
        "batch_size": inputs.batch_size,
        "environment": run.environment.fingerprint,
        "workload": (run.spec.workload, run.folder),
        "limits": run.limits,
        "logs": run.data_dir / "logs",
        "descriptors": (descriptor,),
        "patience_s": run.spec.budget.quiet_minutes * 60,
    }


def contestant(run: Run, row: Row, inputs: Inputs | None = None) -> Contestant:
    """The row as instruments take it. Raises: TransientError where its artifact is gone.

    What is fed by its own processing has inputs of its own, made before by `building.feed`.
    """
    assert row.id is not None and row.size_mib is not None  # it was built
    artifact = run.held(row.id, f"the artifact of {row.label}")
    made = Contestant(row.id, artifact, row.recipe.backend, row.size_mib)
    if row.processing is None:
        return made
    inputs = inputs or Inputs(run.spec.sla.batch_size)
    what = f"the measuring inputs of {row.label}"
    feeds = run.held(feeds_key(run.facts.digest, inputs.batch_size, inputs.length, row.processing), what)
    own = run.held(row.processing, what)
    return replace(made, feeds=feeds / "feeds.npz", workload=processing.reference(own))


def instrument() -> list[str]:
    """A digest of each file that times."""
    names = ("arena.py", "contestant.py", "race.py", "stopwatch.py")
    return sources(*(f"measuring/{name}" for name in names))


def document_of(protocol: Protocol) -> Mapping[str, Any]:
    return {name: getattr(protocol, name) for name in protocol.__slots__}
