"""What the choice among many hides."""

import dataclasses
from typing import Any

from pareflow.stages.selection import selection, slice_drops


def test_baselines_are_no_candidates_that_were_judged(judged: Any) -> None:
    """They have verdicts too."""
    assert all(row.verdict is not None for row in judged.finalists)
    chosen = judged.finalists[-1]
    found = selection(judged.finalists, [*judged.baselines, judged.candidate], chosen)
    assert found is not None
    assert (found["candidates"], found["finalists"]) == (1, 1)


def test_slice_without_a_value_is_unknown_and_last(judged: Any) -> None:
    rows = []
    for row in judged.finalists:
        part = dataclasses.replace(row.quality.slices["class 0"], value=float("nan"), scores=None)
        slices = {"undefined": part, **row.quality.slices}
        rows.append(dataclasses.replace(row, quality=dataclasses.replace(row.quality, slices=slices)))
    found = slice_drops(rows, rows[-1], 0.95)
    assert len(found) > 1
    assert found[-1] == {
        "name": "undefined",
        "samples": rows[-1].quality.slices["undefined"].samples,
        "original": None,
        "value": None,
        "drop": {"estimate": None, "low": None, "high": None},
    }
