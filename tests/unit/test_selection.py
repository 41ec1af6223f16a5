"""What the choice among many hides."""

from typing import Any

from pareflow.stages.selection import selection


def test_baselines_are_no_candidates_that_were_judged(judged: Any) -> None:
    """They have verdicts too."""
    assert all(row.verdict is not None for row in judged.finalists)
    chosen = judged.finalists[-1]
    found = selection(judged.finalists, [*judged.baselines, judged.candidate], chosen)
    assert found is not None
    assert (found["candidates"], found["finalists"]) == (1, 1)
