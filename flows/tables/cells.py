"""Values as the words of a cell."""

from collections.abc import Mapping
from typing import Any, TypeAlias

from pareflow.reporting import formats

Document: TypeAlias = Mapping[str, Any]


def estimate(value: Document | None) -> str:
    return "" if value is None else f"{value['estimate']:.3g}"


def interval(ratio: Document) -> str:
    low, high = ("?" if ratio[side] is None else f"{ratio[side]:.2f}" for side in ("low", "high"))
    return f"{ratio['estimate']:.2f}× ({low}–{high})"


def quality(found: Document) -> str:
    """The value, marked where it is of the search split: only of finalists is it the verdict split's."""
    return formats.quality(found["value"]) + (" (search)" if found.get("split") == "search" else "")


def bounds(check: Document) -> str:
    if check["estimate"] is None:
        return "not measured"
    low, high = ("?" if check[side] is None else f"{check[side]:.4g}" for side in ("low", "high"))
    return f"{check['estimate']:.4g} ({low} to {high})"


def plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(value)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
