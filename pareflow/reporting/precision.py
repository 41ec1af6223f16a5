"""Bits, bytes, speed and quality: what each precision gave."""

from collections.abc import Mapping
from typing import Any

from pareflow.catalog import TECHNIQUES

_BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "int8": 8}


def precisions(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fastest measured variant of each precision, by what stores the numbers and what computes.

    Its `bits` are those stored per weight of the original, pruned ones too: the baseline's own, times the
    share of its size that is left.
    """
    baseline = document["baseline"]
    whole = _BITS[baseline["ran"]["precision"]] / baseline["size_mib"]
    fastest: dict[tuple[str, str], Mapping[str, Any]] = {}
    for row in document["variants"]:
        if row["latency_ms"] is None or row["speedup"] is None:
            continue
        key = (_stored_by(row), row["ran"]["precision"])
        if key not in fastest or row["speedup"]["estimate"] > fastest[key]["speedup"]["estimate"]:
            fastest[key] = row
    rows = [
        {"stored_by": stored, "computed_in": computed, "bits": whole * row["size_mib"], "variant": row}
        for (stored, computed), row in fastest.items()
    ]
    return sorted(rows, key=lambda row: -row["bits"])


def _stored_by(row: Mapping[str, Any]) -> str:
    """The quantization techniques of the recipe, in order."""
    names = [name for step in row["steps"] for name in step if name in TECHNIQUES]
    found = [name for name in names if ".quantization." in TECHNIQUES[name].__module__]
    return " → ".join(found) or "the original"
