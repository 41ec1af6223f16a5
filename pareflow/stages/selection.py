"""What the choice among many hides: how much luck is in its numbers, and on which slices it is worse."""

import math
from collections.abc import Sequence
from typing import Any

from pareflow.gate import drop_interval
from pareflow.stages.run import Row
from pareflow.stages.screening import original_of


def selection(rows: Sequence[Row], screened: Sequence[Row], chosen: Row | None) -> dict[str, Any] | None:
    """What choosing the best of many did to the chosen one's numbers; None where no candidate was chosen.

    `quality_bias` is how much better it looked against the baseline on the search split than on the
    verdict split; `speedup_bias` how many times faster while it was screened than when it was timed again.
    """
    if chosen is None or chosen.role != "candidate":
        return None
    before = {row.id: row for row in screened}
    early, baseline, late = before[chosen.id], before[rows[0].id], rows[0]
    optimism = _lead(early, baseline) - _lead(chosen, late)
    faster = early.speedup.estimate / chosen.speedup.estimate if early.speedup and chosen.speedup else None
    return {
        "candidates": sum(row.role == "candidate" and row.status == "ok" for row in screened),
        "finalists": sum(row.role == "candidate" and row.verdict is not None for row in rows),
        "correction": "Holm",
        "quality_bias": optimism,
        "speedup_bias": faster,
    }


def _lead(row: Row, baseline: Row) -> float:
    """How much better than the baseline a row's quality is, on the split that both were evaluated on."""
    assert row.quality is not None and baseline.quality is not None  # both were evaluated
    lead = row.quality.value - baseline.quality.value
    return lead if row.quality.higher_is_better else -lead


def slice_drops(rows: Sequence[Row], chosen: Row | None, confidence: float) -> list[dict[str, Any]]:
    """Quality on each slice of the verdict data beside the original's: the worst drop first, unknown last."""
    judged = [row for row in rows if row.verdict is not None]
    if chosen is None or chosen.quality is None or not judged:
        return []
    found = []
    original = original_of(judged).quality
    assert original is not None  # it was judged
    for name, part in chosen.quality.slices.items():
        before = original.slices[name]
        drop = drop_interval(before, part, confidence)
        assert drop is not None  # both were evaluated
        bounds = {side: _known(value) for side, value in drop.bounds().items()}
        values = {"original": _known(before.value), "value": _known(part.value)}
        found.append({"name": name, "samples": part.samples, **values, "drop": bounds})
    return sorted(found, key=lambda row: math.inf if (lost := row["drop"]["estimate"]) is None else -lost)


def _known(value: float | None) -> float | None:
    """The value; None where it is no number, as a metric is on a slice where it is undefined."""
    return value if value is not None and math.isfinite(value) else None
