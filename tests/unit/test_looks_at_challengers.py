"""How often a challenger is looked at beside the champion: as finalists are, without the measuring."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from pareflow.gate import Verdict
from pareflow.measuring.arena import Protocol
from pareflow.stages import promotion
from pareflow.stages.run import Row, Run

OPEN = (1.9, 2.09)
"""Of 2 ms: faster in half of the blocks, so that the gain stays open."""


class Pair:
    """A champion that takes 2 ms and a challenger; `asked` are the blocks of each look, `sent` the seeds of
    each load."""

    def __init__(self, strong: Row, measured: Callable[..., Any], scored: Callable[..., Any]) -> None:
        self.champion, self.winner = (
            dataclasses.replace(strong, id=name, role="candidate", quality=scored([1] * 400, variant=name))
            for name in ("champion", "winner")
        )
        self.measured, self.asked, self.sent = measured, list[int](), list[int]()

    def judged(self, run: Run, fast: float, slow: float, *, answered: bool = False) -> Verdict:
        self.blocks = [[fast] * 6 + [slow] * 4, [slow] * 6 + [fast] * 4]
        winner = dataclasses.replace(self.winner, served=self.answers if answered else None)
        return promotion._side_by_side(run, self.champion, winner, 1.0)

    def measure(self, run: Run, rows: list[Row], protocol: Protocol) -> dict[str, Any]:
        self.asked.append(protocol.blocks)
        times = {"champion": [[2.0] * 10] * protocol.blocks, "winner": self.blocks * (protocol.blocks // 2)}
        return {name: self.measured(*found, variant=name) for name, found in times.items()}

    def under_load(self, run: Run, row: Row, protocol: Protocol) -> Row:
        self.sent.append(protocol.seed)
        return dataclasses.replace(row, served=self.answers)

    @property
    def answers(self) -> Any:
        return self.measured([2.0] * 900, load="Server 100/s")


@pytest.fixture
def pair(
    trained: Any,
    measured: Callable[..., Any],
    scored: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> Pair:
    made = Pair(trained.strong, measured, scored)
    monkeypatch.setattr(promotion, "measure", made.measure)
    monkeypatch.setattr(promotion, "under_load", made.under_load)
    return made


@pytest.mark.parametrize(
    ("ms", "minutes", "blocks"),
    [
        pytest.param(OPEN, 600, [60, 60, 120, 240], id="open: each look takes as much as all before it"),
        pytest.param(OPEN, 0.001, [60, 60], id="the budget is used up"),
        pytest.param((1.0, 1.1), 600, [60], id="decided at once"),
    ],
)
def test_a_challenger_in_doubt_is_looked_at_again_with_more(
    trained: Any, pair: Pair, ms: tuple[float, float], minutes: float, blocks: list[int]
) -> None:
    """The error is spent over the looks: at the fourth a twentieth of 5 %."""
    harm = pair.judged(trained.with_budget(minutes=minutes), *ms).checks[-1]
    assert pair.asked == blocks
    assert harm.decision == ("inconclusive" if ms == OPEN else "promote")
    assert harm.confidence == pytest.approx(1 - 0.05 / (len(blocks) * (len(blocks) + 1)))


@pytest.mark.parametrize(("answered", "seeds"), [(False, [5, 6, 7, 8]), (True, [6, 7, 8])])
def test_each_look_at_a_load_sends_requests_of_its_own(
    under: Callable[..., Run], pair: Pair, answered: bool, seeds: list[int]
) -> None:
    """The verdict's looks ended at seed 4: what they measured would count twice."""
    pair.judged(under(per_s=100, p99_ms=5000), *OPEN, answered=answered)
    assert pair.sent == seeds
