"""Which candidates are judged: rows of the tiny images with invented answers and latencies."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from pareflow.measurement import Quality
from pareflow.stages import validation
from pareflow.stages.run import Row, Run

SAMPLES = 700


@pytest.fixture
def run(judged: Any) -> Run:
    """At most a point may be lost, and two candidates are judged."""
    quality = {"metric": "accuracy", "max_drop": 0.01}
    sla = type(judged.run.spec.sla).model_validate({"quality": quality})
    changed = judged.run.spec.model_copy(update={"sla": sla, "finalists": 2, "objective": "latency_p50"})
    found: Run = dataclasses.replace(judged.run, spec=changed)
    return found


def answering(row: Row, wrong: int, right_instead: int = 0, *, times: float = 1.0, name: str = "") -> Row:
    """The row `times` as fast, wrong on the first samples, and right on some that the original misses."""
    assert row.measurement is not None
    scores = [0] * wrong + [1] * (SAMPLES - 20 - wrong) + [1] * right_instead + [0] * (20 - right_instead)
    value = sum(scores) / SAMPLES
    quality = Quality(name, "accuracy", "search", "invented", value, SAMPLES, tuple(scores))
    blocks = tuple(tuple(ms / times for ms in block) for block in row.measurement.blocks_ms)
    measurement = dataclasses.replace(row.measurement, blocks_ms=blocks)
    return dataclasses.replace(row, id=name or row.id, quality=quality, measurement=measurement)


def chosen(run: Run, judged: Any, candidates: Sequence[Row]) -> list[str]:
    baselines = [answering(row, 0) for row in judged.baselines]
    found = validation.finalists(run, [*baselines, *candidates])
    return [str(row.id) for row in found if row.role == "candidate"]


def test_the_last_place_is_for_one_that_is_no_bet(run: Run, judged: Any) -> None:
    """20 answers lost and 20 won are no loss, but 700 samples cannot tell that from two points."""
    fast, faster = (answering(judged.candidate, 20, 20, times=t, name=f"bet {t}") for t in (50.0, 60.0))
    safe = [answering(judged.candidate, 0, times=t, name=f"safe {t}") for t in (20.0, 30.0)]
    assert chosen(run, judged, [fast, faster, *safe]) == ["bet 60.0", "safe 30.0"]
    assert chosen(run, judged, [fast, faster]) == ["bet 60.0", "bet 50.0"]


def test_a_gain_on_the_split_that_chose_it_makes_no_bet_safe(run: Run, judged: Any) -> None:
    """Two points better on the search split. Pruned networks were so, and none passed (docs/log.md)."""
    lucky = [answering(judged.candidate, 5, 20, times=t, name=f"lucky {t}") for t in (50.0, 60.0)]
    safe = answering(judged.candidate, 0, times=20.0, name="safe")
    assert chosen(run, judged, [*lucky, safe]) == ["lucky 60.0", "safe"]


def test_one_that_gains_nothing_takes_no_place(run: Run, judged: Any) -> None:
    bets = [answering(judged.candidate, 20, 20, times=t, name=f"bet {t}") for t in (50.0, 60.0)]
    slow = answering(judged.candidate, 0, times=0.001, name="slow")
    assert chosen(run, judged, [*bets, slow]) == ["bet 60.0", "bet 50.0"]


def test_the_best_ones_are_judged_where_one_of_them_is_no_bet(run: Run, judged: Any) -> None:
    safe = [answering(judged.candidate, 0, times=t, name=f"safe {t}") for t in (50.0, 20.0)]
    bet = answering(judged.candidate, 20, 20, times=60.0, name="bet 60.0")
    assert chosen(run, judged, [*safe, bet]) == ["bet 60.0", "safe 50.0"]
