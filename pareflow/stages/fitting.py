"""How a variant fits the device of the target's profile: estimated from its graph, bounded by a run here."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from pareflow.errors import DoesNotFitError, ExportError, VariantError
from pareflow.hardware import probe
from pareflow.hardware.budget import NetworkFacts, does_not_run, fits
from pareflow.hardware.device import INTERRUPTED, device_lock
from pareflow.isolation import Limits, run_isolated
from pareflow.stages.jobs import feeds_key
from pareflow.stages.run import Row, Run
from pareflow.stages.timing import contestant
from pareflow.variant import Recipe, digest, sources


def not_for(run: Run, recipe: Recipe) -> str | None:
    """Why a recipe is nothing for the target's device, or None: its runtime, or its threads."""
    profile = run.spec.target.profile
    if profile is None:
        return None
    threads = int(recipe.backend.settings.get("threads", 1))
    if threads > profile.cores:
        return f"the device does not run it: {profile.name} has {profile.cores} cores for {threads} threads"
    return does_not_run(profile, recipe.backend.name)


def fitted(run: Run, row: Row) -> Row:
    """The built row with its fit, where the target has a profile; what cannot be computed is unknown.

    So it is for a package of another workload: its recipe would be computed on a network that is not its own.
    """
    profile = run.spec.target.profile
    if profile is None or row.size_mib is None:
        return row
    try:
        facts = _facts(run, row, row.size_mib) if row.processing is None else None
    except (VariantError, ExportError):
        facts = None
    return dataclasses.replace(row, fit=fits(row.size_mib, facts, profile, row.recipe.backend.name))


def check(row: Row) -> None:
    """Raises: DoesNotFitError, naming what the device lacks, with its limit."""
    if row.fit is not None and row.fit.decision == "does not fit":
        raise DoesNotFitError(
            f"a variant must fit {row.fit.device}",
            row.fit.excess,
            "Take a smaller network or narrower numbers",
        )


def confine(run: Run, row: Row) -> Row:
    """The row with what it did here on one core within the device's memory.

    A failure there is told, not raised: it may be the runtime's own need on this machine.
    """
    profile = run.spec.target.profile
    if profile is None or row.fit is None:
        return row
    inputs = feeds_key(run.facts.digest, run.spec.sla.batch_size)
    code = sources("measuring/confined.py", "measuring/contestant.py")
    key = digest("confined", row.id, profile.memory_mib, inputs, run.environment.fingerprint, code)
    told = run.kept(key, "confined.json", lambda: _confined(run, row, inputs, profile.memory_mib))
    return dataclasses.replace(row, fit=dataclasses.replace(row.fit, confined=told))


def _confined(run: Run, row: Row, inputs: str, memory_mib: float) -> dict[str, Any]:
    """What the run within these bounds gave; where it failed, why, and what it takes here without them."""
    feeds = run.held(inputs, "the measuring inputs") / "feeds.npz"
    arguments = {
        **contestant(run, row).arguments(feeds, (run.spec.workload, run.folder)),
        "core": probe.cores()[-1],
    }
    log = run.data_dir / "logs" / f"confined-{str(row.id)[:12]}.log"
    limits = Limits(run.limits.seconds, threads=1)
    told: dict[str, Any] = {"machine": run.environment.processor, "cores": 1, "memory_mib": memory_mib}
    told |= {"reason": None, "held_mib": None, "p50_ms": None, "ran": None}
    function = "pareflow.measuring.confined:confined"
    with device_lock(run.spec.target.device, exclusive=True) as descriptor:
        for bound in (memory_mib, None):
            try:
                given = {**arguments, "memory_mib": bound}
                return {**told, **run_isolated(function, given, limits, log, (descriptor,))}
            except VariantError as error:
                if INTERRUPTED.is_set():  # it was ended, which says nothing of it
                    raise
                told["reason"] = told["reason"] or f"{type(error).__name__}: {error.found}"
    return told


def with_nearest(rows: Sequence[Row]) -> list[Row]:
    """The rows; those that do not fit say which is the largest that does."""
    fitting = [
        row for row in rows if row.status == "ok" and row.fit is not None and row.fit.decision == "fits"
    ]
    nearest = max(fitting, key=lambda row: row.size_mib or 0, default=None)
    words = (
        "none that was made fits"
        if nearest is None
        else (f"the nearest that fits is {nearest.label} ({nearest.size_mib:.3g} MiB)")
    )
    return [
        dataclasses.replace(row, reason=f"{row.reason}; {words}")
        if row.reason is not None and row.reason.startswith(DoesNotFitError.__name__)
        else row
        for row in rows
    ]


def nothing_fits(run: Run, rows: Sequence[Row]) -> bool:
    """Whether there is a device, and no variant that was made fits it."""
    return run.spec.target.profile is not None and not any(
        row.status == "ok" and row.fit is not None and row.fit.decision == "fits" for row in rows
    )


def _facts(run: Run, row: Row, size_mib: float) -> NetworkFacts:
    """Raises: VariantError, ExportError."""
    asked = {
        "recipe": row.recipe.to_json(),
        "batch_size": run.spec.sla.batch_size,
        "size_mib": size_mib,
    }
    names = ("measuring/network_facts.py", "measuring/liveness.py", "measuring/work.py", "hardware/budget.py")
    key = digest("facts", row.id, asked, sources(*names))

    def find_out() -> None:
        with device_lock(run.spec.target.device, exclusive=False):
            run.job("facts", {"key": key, **asked}, f"facts-{str(row.id)[:12]}")

    return NetworkFacts.from_json(json.loads((run.made(key, find_out) / "facts.json").read_text()))
