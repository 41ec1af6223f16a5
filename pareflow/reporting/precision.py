"""Bits, bytes, speed and quality: what each precision gave."""

from typing import Any

from pareflow.catalog import TECHNIQUES
from pareflow.reporting.checks import Record
from pareflow.reporting.formats import known

_BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "int8": 8}


def precisions(document: Record) -> list[dict[str, Any]]:
    """The fastest measured variant of each precision, by what stores the numbers and what computes.

    Only variants of the whole network: one that was also made smaller says nothing of precisions; and none
    that failed after it was timed. Its `bits` are those stored per weight of the original: the baseline's
    own, times the share of its size that is left; None where a size is not known, or where the baseline has a
    note: it then computes in another type than it stores, as a graph of fp16 on most processors.
    """
    fastest: dict[tuple[str, str], Record] = {}
    for row in document.get("variants") or []:
        precision, speedup = (row.get("ran") or {}).get("precision"), _speedup(row)
        if row.get("status", "ok") != "ok" or precision is None or not known(speedup) or not _is_whole(row):
            continue
        key = (_stored_by(row), precision)
        if key not in fastest or speedup > _speedup(fastest[key]):
            fastest[key] = row
    rows = [
        {"stored_by": stored, "computed_in": computed, "bits": _bits(row, document), "variant": row}
        for (stored, computed), row in fastest.items()
    ]
    return sorted(rows, key=lambda row: -(row["bits"] or 0))


def _speedup(row: Record) -> Any:
    return (row.get("speedup") or {}).get("estimate")


def _bits(row: Record, document: Record) -> float | None:
    baseline = document.get("baseline") or {}
    ran = baseline.get("ran") or {}
    whole = None if ran.get("notes") else _BITS.get(ran.get("precision", ""))
    size, full = row.get("size_mib"), baseline.get("size_mib")
    return whole * size / full if whole and known(size) and known(full) else None


def _stored_by(row: Record) -> str:
    """The quantization techniques of the recipe, in order."""
    return " → ".join(filter(_quantizes, _techniques(row))) or "the original"


def _is_whole(row: Record) -> bool:
    """Whether nothing in the recipe changes the network but quantization."""
    return all(map(_quantizes, _techniques(row)))


def _techniques(row: Record) -> list[str]:
    return [name for step in row.get("steps") or [] for name in step if name in TECHNIQUES]


def _quantizes(name: str) -> bool:
    return ".quantization." in TECHNIQUES[name].__module__
