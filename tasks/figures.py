"""A variant as flat params and metrics."""

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from pareflow.stages.run import Row


def params(row: Row) -> dict[str, str]:
    """The settings of each step of a recipe, by position and name."""
    steps = enumerate((*row.recipe.techniques, row.recipe.backend))
    return {f"{i}.{step.name}": json.dumps(step.settings)[:500] for i, step in steps}


def metrics(document: Mapping[str, Any]) -> dict[str, float]:
    """Every number of a variant's document that is known, under a dotted name."""
    shown = {name: document[name] for name in _NUMBERS}
    if document["quality"]:
        shown[document["quality"]["metric"]] = document["quality"]["value"]
    return {name: value for name, value in _flat(shown) if math.isfinite(value)}


_NUMBERS = (
    "latency_ms",
    "throughput",
    "size_mib",
    "peak_memory_mib",
    "load_s",
    "first_request_ms",
    "cpu_ms",
    "utilisation",
    "energy_j",
    "device_memory_mib",
    "device_reserved_mib",
    "speedup",
    "speedup_over_eager",
)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)):
            yield f"{prefix}{name}", float(value)
