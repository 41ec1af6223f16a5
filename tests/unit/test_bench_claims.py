"""`bench/claims.py`: whether a claim is met is said by its bounds, and doubt is no yes (law 3)."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console


@pytest.fixture
def claims(bench: Callable[[str], Any]) -> Any:
    return bench("claims")


@pytest.mark.parametrize(
    ("side", "measured", "low", "high", "met"),
    [
        ("at least", 1.51, 1.40, 1.60, None),
        ("at least", 1.49, 1.40, 1.60, None),
        ("at least", 1.60, 1.50, 1.70, True),
        ("at least", 1.40, 1.30, 1.49, False),
        ("at most", 1.49, 1.40, 1.60, None),
        ("at most", 1.40, 1.30, 1.50, True),
        ("at most", 1.60, 1.51, 1.70, False),
        ("at least", 1.51, None, None, True),
        ("at least", 1.49, None, None, False),
        ("at most", 1.40, None, 1.60, None),
        ("at least", None, 1.60, 1.70, None),
    ],
)
def test_a_claim_is_met_by_its_bounds_and_in_doubt_between_them(
    side: str, measured: float | None, low: float | None, high: float | None, met: bool | None, claims: Any
) -> None:
    claim = claims.Claim("faster", 1.5, measured, "×", 5, side, low, high)
    assert claim.met is met
    assert claim.to_json()["met"] is met


def test_a_table_tells_doubt_from_what_was_not_measured(claims: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(claims, "Console", lambda width: Console(file=shown, width=width))
    rows = [claims.Claim("faster", 1.5, 1.51, "×", 5, "at least", 1.4, 1.6)]
    claims.show("doubt", [*rows, claims.Claim("smaller", 1.5, None, "×", 0, "at least")])
    faster, smaller = (line for line in shown.getvalue().splitlines() if "at least" in line)
    assert "in doubt" in faster
    assert "not measured" in smaller


def test_few_turns_say_that_their_bounds_are_the_least_and_the_largest(claims: Any) -> None:
    claim = claims.of_turns("faster", 1.5, [1.6, 1.4, 1.8], "×", "at least", "theirs 3/s")
    assert (claim.low, claim.measured, claim.high, claim.samples, claim.met) == (1.4, 1.6, 1.8, 3, None)
    assert claim.note == "theirs 3/s; low and high: the least and the largest turn"


def test_many_turns_bound_their_median_and_one_odd_turn_leaves_no_doubt(claims: Any) -> None:
    """Of nine the second and the eighth: 10 of 512 draws have fewer than two on one side of the median."""
    turns = [1.4, 1.6, 1.61, 1.62, 1.63, 1.64, 1.65, 1.66, 2.0]
    claim = claims.of_turns("faster", 1.5, turns, "×", "at least")
    assert (claim.low, claim.measured, claim.high, claim.met) == (1.6, 1.63, 1.66, True)
    assert claim.note == "low and high bound the median"
