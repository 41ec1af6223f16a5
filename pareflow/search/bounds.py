"""How much faster a recipe can become at most: Amdahl's law on measured shares and the device's rates."""

from collections.abc import Iterable, Mapping
from math import prod

from pareflow.catalog import BACKENDS, TECHNIQUES, find
from pareflow.hardware.device_profile import DeviceProfile
from pareflow.measuring.advice import REACH
from pareflow.variant import Recipe, Step

NARROW: Mapping[str, str] = {
    "bf16": "bfloat16",
    "dynamic_int8": "int8",
    "mixed_int8": "int8",
    "nncf_int8": "int8",
    "qat_int8": "int8",
    "static_int8": "int8",
}
"""What a technique lets matrix products be computed in."""


def at_most(
    recipe: Recipe, strong: Step, profile: DeviceProfile | None, families: Mapping[str, float]
) -> float | None:
    """Amdahl's bound on its techniques together, and on the compiler where it has none or runs otherwise than
    the strong baseline's step; None if one is unknown. What one touches lies within what another does, as
    matrix operators lie within inference: taken once, and the largest.

    `families` holds the share of the time that each family of techniques can touch.
    """
    names: list[str | None] = [step.name for step in recipe.techniques]
    if not names or find(BACKENDS, recipe.backend, "backend") != find(BACKENDS, strong, "backend"):
        names.append(None)
    shares = _known(families.get(family(name)) for name in names)
    times = _known(_times(profile, name) for name in names)
    return amdahl(None if shares is None else max(shares), None if times is None else prod(times))


def _known(values: Iterable[float | None]) -> list[float] | None:
    """All of them, or None if one is unknown."""
    found = list(values)
    known = [value for value in found if value is not None]
    return known if len(known) == len(found) else None


def amdahl(share: float | None, times: float | None) -> float | None:
    """`1 / (1 - f + f/s)`: how much faster the whole is where a share f becomes s times faster.

    An unknown share is taken as all, an unknown s as without bound. Source: Amdahl, 1967.
    """
    if share is None and times is None:
        return None
    f = 1.0 if share is None else share
    left = 1 - f + (0.0 if times is None else f / times)
    return 1 / left if left > 0 else None


def family(name: str | None) -> str:
    """The family of `advice.REACH` that a technique belongs to, by where its file lies."""
    if name is None:
        return "compiler"
    parts = TECHNIQUES[name].__module__.split(".")
    folder = parts[2] if len(parts) > 2 else ""
    known = {"low_rank": "low rank", "architecture_search": "distillation", "weight_sharing": "compiler"}
    found = known.get(folder, folder)
    return found if found in REACH else "compiler"


def _times(profile: DeviceProfile | None, name: str | None) -> float | None:
    """How many times faster than 32 bits the device multiplies what a technique leaves; None if unknown."""
    if profile is None or name is None or name not in NARROW:
        return None
    ratios = [
        unit.gops[number] / unit.gops["float32"]
        for unit in profile.units
        for number in unit.gops
        if number == NARROW[name] and "float32" in unit.gops
    ]
    return max(ratios, default=None)
