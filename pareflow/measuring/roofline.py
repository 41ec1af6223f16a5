"""How much of the machine inference uses, and what it is bound by: computing, memory, or neither."""

from collections.abc import Mapping, Sequence
from typing import Any

NEAR = 0.5
"""A share of a ceiling from which on that ceiling counts as the bound."""

CACHED = 1.25
"""Moving so much more than memory can deliver shows that the caches delivered it."""

WORDS = {
    "compute": "bound by computing",
    "memory": "bound by memory",
    "overhead": "bound by neither: most of it is overhead (small operators, dispatch, waiting)",
}


def roofline(
    ceilings: Mapping[str, Any],
    work: Mapping[str, Any],
    operators: Sequence[Mapping[str, Any]],
    inference_ms: float,
) -> dict[str, Any]:
    """Inference and each of its operators under the machine's two ceilings; what is unknown is None.

    `ms` is the time of the input whose work is given, `intensity` flops per byte, `ridge` the intensity at
    which both ceilings meet; shares are of `matrix_gflops` and `copy_gb_per_s`. Bytes count each tensor once
    per operator, wherever it lies: the share of the copy bandwidth exceeds 1 where caches hold them.
    Source: Williams, Waterman and Patterson, 2009, "Roofline", CACM 52(4).
    """
    whole = placed(ceilings, work["flops"], work["bytes"], inference_ms)
    return {
        "machine": dict(ceilings),
        "ms": inference_ms,
        "ridge": ceilings["matrix_gflops"] / ceilings["copy_gb_per_s"],
        "counted_share": work["counted_share"],
        **whole,
        "operators": [
            {"name": row["name"], "ms": row["ms"], **placed(ceilings, row["flops"], row["bytes"], row["ms"])}
            for row in operators
        ],
        "words": words(whole),
    }


def placed(
    ceilings: Mapping[str, Any], flops: int | None, moved: int | None, took_ms: float
) -> dict[str, Any]:
    """Rates, shares of the ceilings, and the bound, of what took `took_ms`."""
    seconds = took_ms / 1000
    gflops = flops / seconds / 1e9 if flops is not None and seconds else None
    gb_per_s = moved / seconds / 1e9 if moved is not None and seconds else None
    matrix_share = None if gflops is None else gflops / ceilings["matrix_gflops"]
    copy_share = None if gb_per_s is None else gb_per_s / ceilings["copy_gb_per_s"]
    return {
        "flops": flops,
        "bytes": moved,
        "intensity": flops / moved if flops is not None and moved else None,
        "gflops": gflops,
        "gb_per_s": gb_per_s,
        "matrix_share": matrix_share,
        "copy_share": copy_share,
        "bound": bound(matrix_share, copy_share),
    }


def bound(matrix_share: float | None, copy_share: float | None) -> str | None:
    """`compute`, `memory` or `overhead`; None where a share that could decide is not known."""
    copied = 0.0 if copy_share is None or copy_share > CACHED else copy_share
    if max(matrix_share or 0.0, copied) >= NEAR:
        return "compute" if (matrix_share or 0.0) >= copied else "memory"
    return None if matrix_share is None or copy_share is None else "overhead"


def words(whole: Mapping[str, Any]) -> str | None:
    """One sentence; None where nothing can be said."""
    if whole["bound"] is None or whole["matrix_share"] is None or whole["copy_share"] is None:
        return None
    cached = ", which its caches hold" if whole["copy_share"] > CACHED else ""
    return (
        f"Inference uses {whole['matrix_share']:.0%} of the machine's matrix rate and moves"
        f" {whole['copy_share']:.0%} of what its memory copies{cached}: {WORDS[whole['bound']]}."
    )
