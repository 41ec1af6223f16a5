"""A challenger judged by live traffic: the gate's word on failures, disagreement and times."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pareflow.stages.deployment import BLOCKS, Seen, Tolerance, judge_live, merged

TOLERANCE = Tolerance(disagreement=0.05)
EQUAL = {"asked": 2000, "failed": 0, "late": 0, "unsound": 0, "compared": 2000, "agreed": 2000, "skipped": 0}


def seen(champion_ms: Any = (), challenger_ms: Any = (), **counts: int) -> Seen:
    """Blocks of times of each, and counts."""
    champion, challenger = (tuple(map(tuple, blocks)) for blocks in (champion_ms, challenger_ms))
    return Seen({**EQUAL, **counts}, champion, challenger)


def times(blocks: int, of: int, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    """Blocks of times in ms around `scale`, with the tail of a server."""
    found: np.ndarray = scale * np.random.default_rng(seed).lognormal(0, 0.1, (blocks, of))
    return found


def decisions(found: Seen, *, look: int = 1, timed: bool = False, **tolerance: Any) -> dict[str, str]:
    """Of each clause, and of all of them."""
    judged = judge_live(found, Tolerance(**{"disagreement": 0.05, **tolerance}), "2", look=look, timed=timed)
    return {"": judged.decision, **{check.clause: check.decision for check in judged.checks}}


def test_a_share_without_any_failure_passes_from_so_many_requests_on() -> None:
    """The first look is at 0.975: The exact bound is 1 - 0.025^(1/n), 0.0122 of 300 and 0.0092 of 400."""
    few, enough = seen(asked=300), seen(asked=400)
    assert decisions(few)["live.failures"] == "inconclusive"
    assert decisions(enough)["live.failures"] == "promote"
    (check, *_) = judge_live(few, TOLERANCE, "2", look=1, timed=False).checks
    assert check.high == pytest.approx(1 - 0.025 ** (1 / 300), rel=1e-3)
    assert check.more_samples


def test_later_looks_are_stricter() -> None:
    assert decisions(seen(asked=400), look=1)["live.failures"] == "promote"
    assert decisions(seen(asked=400), look=5)["live.failures"] == "inconclusive"


@pytest.mark.parametrize("kind", ["failed", "late", "unsound"])
def test_whatever_kept_the_challenger_from_answering_is_a_failure(kind: str) -> None:
    assert decisions(seen((), (), **{kind: 100}))[""] == "reject"


def test_too_many_other_answers_are_rejected_and_few_tolerated() -> None:
    assert decisions(seen(agreed=1960))[""] == "promote"  # 2 of 100
    assert decisions(seen(agreed=1900))[""] == "inconclusive"  # 5 of 100
    assert decisions(seen(agreed=1800))[""] == "reject"  # 10 of 100


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_nothing_seen_never_passes(asked: int, failed: int) -> None:
    """No answer was compared: whatever else is known, that is doubt (law 3)."""
    found = decisions(seen(asked=max(asked, failed), failed=failed, compared=0, agreed=0))
    assert found["live.disagreement"] == "inconclusive"
    assert found[""] != "promote"


@given(st.integers(1, 3000), st.data())
def test_who_agrees_less_does_not_fare_better(compared: int, data: st.DataObject) -> None:
    agreed = data.draw(st.integers(0, compared))
    less = data.draw(st.integers(0, agreed))
    order = ["reject", "inconclusive", "promote"]
    better, worse = (
        decisions(seen(compared=compared, agreed=number))["live.disagreement"] for number in (agreed, less)
    )
    assert order.index(worse) <= order.index(better)


def test_times_count_where_the_challenger_answers() -> None:
    champion, alike = times(60, 60), times(60, 60, seed=1)
    assert decisions(seen(champion, alike), timed=True)[""] == "promote"
    assert decisions(seen(champion, 0.5 * alike), timed=True)[""] == "promote"
    slower = decisions(seen(champion, 1.5 * alike), timed=True)
    assert (slower["live.speedup_p50"], slower["live.speedup_p99"]) == ("reject", "reject")
    assert "live.speedup_p50" not in decisions(seen(champion, 1.5 * alike))


def test_a_tail_is_seen_that_the_median_hides() -> None:
    """One answer in twenty takes four times as long."""
    champion, tail = times(60, 60), times(60, 60, seed=1)
    tail[:, ::20] *= 4
    found = decisions(seen(champion, tail), timed=True)
    assert (found["live.speedup_p50"], found["live.speedup_p99"]) == ("promote", "reject")


def test_few_times_give_doubt() -> None:
    """None at all; fewer stretches of time than it takes; fewer answers than tell of a 99th percentile."""
    champion, alike = times(60, 60), times(60, 60, seed=1)
    assert decisions(seen(), timed=True)["live.speedup_p50"] == "inconclusive"
    few = seen(champion[: BLOCKS - 1], alike[: BLOCKS - 1])
    assert decisions(few, timed=True)["live.speedup_p50"] == "inconclusive"
    short = seen(champion[:12, :20], alike[:12, :20])  # 240 answers; 368 are needed at 0.975
    assert decisions(short, timed=True)["live.speedup_p99"] == "inconclusive"


def test_the_answers_that_are_few_are_the_challengers() -> None:
    """A canary at a tenth: nine times as many of the champion, in as many stretches of time."""
    champion, alike = times(20, 180), times(20, 180, seed=1)
    few, enough = (seen(champion[:blocks], alike[:blocks, :20]) for blocks in (12, 20))
    assert decisions(few, timed=True)["live.speedup_p99"] == "inconclusive"  # 240 of 368
    (*_, check) = judge_live(few, TOLERANCE, "2", look=1, timed=True).checks
    assert (check.samples, check.more_samples) == (240, 128)
    assert decisions(enough, timed=True)["live.speedup_p50"] == "promote"
    (*_, check) = judge_live(enough, TOLERANCE, "2", look=1, timed=True).checks
    assert check.low is not None


def test_servers_are_judged_together() -> None:
    record = {
        "counts": dict(EQUAL, failed=1),
        "blocks_ms": [{"champion": [1.0, 2.0], "challenger": [3.0]}],
    }
    both = merged([record, record])
    assert (both.asked, both.counts["failed"]) == (4000, 2)
    assert both.champion_ms == ((1.0, 2.0), (1.0, 2.0))
    assert both.challenger_ms == ((3.0,), (3.0,))
    assert merged([]).asked == 0
