"""The plan: every candidate with its level, the effort it takes, and what it can gain at most."""

import json
from collections.abc import Mapping
from math import prod
from typing import Any, Literal

from pareflow.catalog import TECHNIQUES
from pareflow.hardware import graphics, probe
from pareflow.measuring.advice import REACH
from pareflow.model.training import TrainedTechnique
from pareflow.stages import optimization
from pareflow.stages.building import variant_of
from pareflow.stages.run import Row, Run
from pareflow.variant import Recipe

Level = Literal["hardware", "compiler", "runtime", "model", "architecture"]
LEVELS: tuple[Level, ...] = ("hardware", "compiler", "runtime", "model", "architecture")
"""In the order of the effort that they take: less is tried first."""

EFFORT: Mapping[Level, str] = {
    "hardware": "a setting",
    "compiler": "another executable of the same network",
    "runtime": "another way to serve it",
    "model": "the network changed, without training",
    "architecture": "a network that is trained",
}
NARROW: Mapping[str, str] = {
    "bf16": "bfloat16",
    "dynamic_int8": "int8",
    "mixed_int8": "int8",
    "nncf_int8": "int8",
    "qat_int8": "int8",
    "static_int8": "int8",
}
"""What a technique lets matrix products be computed in."""


def plan(run: Run) -> dict[str, Any]:
    """The accelerator to use, and the candidates: what takes least effort first, then what can gain most.

    Gains are bounds, and estimates: of a family by Amdahl's law where a profile of this run is at hand, of a
    narrower precision by the ratio of the peak rates that the target's profile tells.
    """
    families = _families(run)
    rows = [planned(run, row, families) for row in optimization.candidates(run, [])]
    return {"accelerator": accelerator(run), "candidates": sorted(rows, key=_first)}


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


def planned(run: Run, row: Row, families: Mapping[str, float]) -> dict[str, Any]:
    """One candidate. `at_most` is how many times faster a request could become; None where nothing tells."""
    variant = variant_of(row.recipe, run.facts.digest)
    level = level_of(row.recipe)
    return {
        "recipe": row.label,
        "id": variant.id,
        "level": level,
        "effort": EFFORT[level],
        "at_most": at_most(run, row.recipe, families),
        "unavailable": optimization.unrunnable(run, row.recipe),
        "made": run.store.find(variant.id) is not None,
    }


def level_of(recipe: Recipe) -> Level:
    """The level of the most laborious of its steps."""
    found: list[Level] = ["compiler"]
    settings = recipe.backend.settings
    if not recipe.techniques and (settings.get("threads", 1) > 1 or settings.get("device", "cpu") != "cpu"):
        found = ["hardware"]
    for step in recipe.techniques:
        found.append("architecture" if issubclass(TECHNIQUES[step.name], TrainedTechnique) else "model")
    return max(found, key=LEVELS.index)


def at_most(run: Run, recipe: Recipe, families: Mapping[str, float]) -> float | None:
    """The product of its techniques' bounds, or the compiler's where it has none; None if one is unknown."""
    names: list[str | None] = [step.name for step in recipe.techniques] or [None]
    bounds = [_bound(families.get(_family(name)), _times(run, name)) for name in names]
    return None if None in bounds else prod(bound for bound in bounds if bound is not None)


def _bound(share: float | None, times: float | None) -> float | None:
    """`1 / (1 - f + f/s)`: how much faster the whole is where a share f becomes s times faster.

    An unknown share is taken as all, an unknown s as without bound. Source: Amdahl, 1967.
    """
    if share is None and times is None:
        return None
    f = 1.0 if share is None else share
    left = 1 - f + (0.0 if times is None else f / times)
    return 1 / left if left > 0 else None


def _times(run: Run, name: str | None) -> float | None:
    """How many times faster than 32 bits the device multiplies what a technique leaves; None if unknown."""
    profile = run.spec.target.profile
    if profile is None or name is None or name not in NARROW:
        return None
    ratios = [
        unit.gops[number] / unit.gops["float32"]
        for unit in profile.units
        for number in unit.gops
        if number == NARROW[name] and "float32" in unit.gops
    ]
    return max(ratios, default=None)


def _family(name: str | None) -> str:
    """The family of `advice.REACH` that a technique belongs to, by where its file lies."""
    if name is None:
        return "compiler"
    parts = TECHNIQUES[name].__module__.split(".")
    folder = parts[2] if len(parts) > 2 else ""
    known = {"low_rank": "low rank", "architecture_search": "distillation", "weight_sharing": "compiler"}
    family = known.get(folder, folder)
    return family if family in REACH else "compiler"


def _families(run: Run) -> dict[str, float]:
    """The share of a request that each family can touch, by this run's profile; empty before there is one."""
    path = run.output / "run.json"
    if not path.is_file():
        return {}
    profile = json.loads(path.read_text())["profile"]
    return {} if profile is None else {row["family"]: row["share"] for row in profile["advice"]["families"]}


def _first(row: Mapping[str, Any]) -> tuple[bool, int, float]:
    """Runnable before not, less effort before more, more to gain before less."""
    return row["unavailable"] is not None, LEVELS.index(row["level"]), -(row["at_most"] or 0)
