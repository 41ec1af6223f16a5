"""The plan: every candidate with its level, the effort it takes, and what it can gain at most."""

import json
from collections.abc import Mapping
from typing import Any

from pareflow.compiler import OnnxRuntime
from pareflow.hardware import graphics, probe
from pareflow.search import bounds
from pareflow.search.effort import EFFORT, LEVELS, Effort, level_of
from pareflow.stages import optimization, searching, serving_plans
from pareflow.stages.building import variant_of
from pareflow.stages.run import Row, Run


def plan(run: Run) -> dict[str, Any]:
    """The accelerator to use, the candidates, and what the winner's serving plan is tuned for.

    Candidates are in an order: what takes least effort first, then what can gain most. What trains does so as
    long as the search has it first; `unseen` says which candidates only a profile could name.

    Gains are bounds, and estimates: of a family by Amdahl's law where a profile of this run is at hand, of a
    narrower precision by the ratio of the peak rates that the target's profile tells. `minutes` is estimated
    from what the baseline took in an earlier run; before there is one, from what the network takes as it is
    made. Raises: WorkloadError where it is not made, or does not answer.
    """
    before = _before(run)
    profile = None if before is None else before["profile"]
    families, effort = _families(profile), _effort(run, before)
    passes = searching.first_passes(run, effort)
    found = searching.first_rows(run, profile=profile, passes=passes)
    rows = [planned(run, row, families, effort) for row in found]
    return {
        "accelerator": accelerator(run),
        "candidates": sorted(rows, key=_first),
        "unseen": _unseen(run, profile),
        "serving": serving_plans.planned(run),
    }


def accelerator(run: Run) -> dict[str, str]:
    """`name` of what should compute, and `why`; of the target's device where there is one, else here."""
    profile = run.spec.target.profile
    if profile is not None:
        strongest = max(profile.units, key=lambda unit: max(unit.gops.values()))
        number, rate = max(strongest.gops.items(), key=lambda item: item[1])
        by = ", ".join(strongest.backends)
        return {"name": strongest.name, "why": f"{rate:g}×10⁹ operations per second in {number}, by {by}"}
    devices = graphics.graphics()
    if devices:
        strongest_gpu = max(devices, key=lambda device: float(device["compute_capability"]))
        takes = ", ".join(strongest_gpu["tensor_cores"]) or "none"
        return {"name": strongest_gpu["name"], "why": f"tensor cores take: {takes}"}
    products = {"bfloat16": probe.has_bf16(), "int8": probe.has_vnni()}
    known = ", ".join(name for name, has in products.items() if has) or "no narrower numbers than 32 bits"
    why = f"there is no graphics processor; it has instructions for {known}"
    return {"name": probe.processor(), "why": why}


def planned(run: Run, row: Row, families: Mapping[str, float], effort: Effort) -> dict[str, Any]:
    """One candidate. `at_most` is how many times faster a request could become; None where nothing tells."""
    variant = variant_of(row.recipe, run.facts.digest)
    level, strong = level_of(row.recipe), OnnxRuntime(threads=row.threads).step
    return {
        "recipe": row.label,
        "id": variant.id,
        "level": level,
        "effort": EFFORT[level],
        "minutes": effort.minutes(row.recipe),
        "at_most": bounds.at_most(row.recipe, strong, run.spec.target.profile, families),
        "unavailable": optimization.unrunnable(run, row.recipe),
        "made": run.store.find(variant.id) is not None,
    }


def _before(run: Run) -> dict[str, Any] | None:
    """The document of this run's last outcome, or None."""
    path = run.output / "run.json"
    return json.loads(path.read_text()) if path.is_file() else None


def _families(profile: Mapping[str, Any] | None) -> dict[str, float]:
    """The share of a request that each family can touch, by this run's profile; empty before there is one."""
    if profile is None:
        return {}
    return {row["family"]: row["share"] for row in profile["advice"]["families"]}


def _unseen(run: Run, profile: Mapping[str, Any] | None) -> str | None:
    """In words, what only a profile of the network tells of the candidates; None where nothing is lacking."""
    chosen = run.spec.candidates is not None or run.spec.space is not None
    if chosen or profile is not None or run.facts.tokens:
        return None
    return "a first run shows whether there is attention, or layers to prune: nothing for these is listed yet"


def _effort(run: Run, before: Mapping[str, Any] | None) -> Effort:
    """Minutes per pass of training, by what the strong baseline took to answer; or, before it was timed, by
    what the network takes for one of many samples, which is about as long (`effort.PASSES`)."""
    if before is None:
        per_sample = float(run.job("answering", {"threads": run.threads[0]}, f"{run.spec.name}-answering"))
    else:
        per_sample = before["baseline"]["latency_ms"]["p50"] / run.spec.sla.batch_size
    return Effort.of(run.facts.sizes["train"], per_sample)


def _first(row: Mapping[str, Any]) -> tuple[bool, int, float]:
    """Runnable before not, less effort before more, more to gain before less."""
    return row["unavailable"] is not None, LEVELS.index(row["level"]), -(row["at_most"] or 0)
