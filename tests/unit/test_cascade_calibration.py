"""Calibration: the budget is kept as surely as it says, and a record is for its own variants alone."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pareflow.errors import CalibrationError
from pareflow.runtime.calibration import (
    THRESHOLDS,
    Judged,
    ThresholdCalibration,
    calibrate_threshold,
    fewest_queries,
    fewest_samples,
    last_passed,
)
from pareflow.runtime.complexity import LENGTHS
from pareflow.runtime.endpoint import Endpoint
from pareflow.runtime.ranking_calibration import RankingCalibration, calibrate_ranking
from pareflow.workload import Arrays

VARIANTS = {"small": "small v1", "full": "full v1"}


def drawn(n: int, seed: int, large: float = 0.9) -> tuple[Judged, np.ndarray]:
    """A small tier that is right as often as it is sure, and a large one that is right in 9 of 10 cases."""
    chance = np.random.default_rng(seed)
    confidence = chance.beta(3, 1, n)
    return Judged(confidence, chance.random(n) < confidence), chance.random(n) < large


def true_loss(threshold: float, large: float = 0.9) -> float:
    """Of `drawn`, by integration: what is kept at c is right with probability c, its density is 3c²."""
    least = min(threshold, 1.0)
    return large * (1 - least**3) - 3 / 4 * (1 - least**4)


def test_the_lowest_threshold_in_front_of_the_first_that_loses_too_much() -> None:
    """By hand: sure of all above 0.7, where it is right; wrong of what it is less sure of."""
    confidence = np.repeat([0.8, 0.6], 500)
    small = Judged(confidence, confidence > 0.7)
    found = calibrate_threshold(VARIANTS, [small], np.ones(1000, bool), max_drop=0.01)
    assert found.threshold == min(t for t in THRESHOLDS if t > 0.6)
    assert (found.samples, found.drop, found.answered) == (1000, 0.0, {"small": 0.5})
    assert found.variants == VARIANTS


def test_a_sequence_ends_at_the_first_that_does_not_pass() -> None:
    assert last_passed("abcd", {"a": 0.01, "b": 0.05, "c": 0.06, "d": 0.0}.__getitem__, 0.95) == "b"
    assert last_passed("cd", {"c": 0.06, "d": 0.0}.__getitem__, 0.95) is None


@pytest.mark.parametrize(("max_drop", "needed"), [(0.01, 500), (0.001, 2995)])
def test_too_few_samples_are_told_how_many_it_takes(max_drop: float, needed: int) -> None:
    """By hand, without any loss: 0.999ⁿ ≤ 5 % from n = 2995 on, and a little more for an unknown gain."""
    small, full = drawn(needed - 1, 0)
    with pytest.raises(CalibrationError, match=r"at least \d+ samples, but there are") as raised:
        calibrate_threshold(VARIANTS, [small], full, max_drop=max_drop)
    told = int(str(raised.value).split("at least ")[1].split()[0])
    assert needed <= told <= 1.05 * needed
    assert fewest_samples(max_drop, 0.95) <= told


def test_tiers_that_lose_too_much_are_refused() -> None:
    sure_and_wrong = Judged(np.ones(600), np.zeros(600, bool))
    with pytest.raises(CalibrationError, match="even at 1 the tiers may lose more"):
        calibrate_threshold(VARIANTS, [sure_and_wrong], np.ones(600, bool), max_drop=0.01)


@given(seed=st.integers(0, 1000), budgets=st.tuples(st.floats(0.01, 0.2), st.floats(0.01, 0.2)))
def test_a_looser_budget_never_gives_a_stricter_threshold(seed: int, budgets: tuple[float, float]) -> None:
    small, full = drawn(600, seed)
    tight, loose = (
        calibrate_threshold(VARIANTS, [small], full, max_drop=budget).threshold for budget in sorted(budgets)
    )
    assert loose <= tight


@pytest.mark.parametrize("n", [500, 2000])
def test_the_budget_is_kept_in_95_of_100_calibrations(n: int) -> None:
    """And the plain choice, the lowest threshold that loses little enough on the samples, does not."""
    repeats, budget = 200, 0.02
    violated = naive = used = 0
    for seed in range(repeats):
        small, full = drawn(n, seed)
        found = calibrate_threshold(VARIANTS, [small], full, max_drop=budget)
        violated += true_loss(found.threshold) > budget
        used += found.threshold < 0.999
        kept = [
            t
            for t in THRESHOLDS
            if (full[small.confidence >= t].sum() - small.correct[small.confidence >= t].sum()) / n <= budget
        ]
        naive += true_loss(min(kept)) > budget
    assert violated <= 0.05 * repeats + 3 * math.sqrt(0.05 * 0.95 * repeats)
    assert naive > 0.1 * repeats
    assert used > 0.9 * repeats


def test_one_threshold_is_for_all_tiers_and_each_row_is_its_first() -> None:
    """By hand: the tiny tier is sure of a third, the small one of two thirds, and both are right there."""
    kind = np.repeat([0, 1, 2], 300)
    tiny = Judged(np.where(kind == 0, 0.9, 0.1), kind == 0)
    small = Judged(np.where(kind == 2, 0.1, 0.9), kind != 2)
    names = {"tiny": "t", "small": "s", "full": "f"}
    found = calibrate_threshold(names, [tiny, small], np.ones(900, bool), max_drop=0.01)
    assert found.answered == pytest.approx({"tiny": 1 / 3, "small": 1 / 3})
    assert found.tiers == ("tiny", "small")


def test_a_rule_is_calibrated_as_a_confidence_is() -> None:
    """By hand: texts of up to 8 tokens are answered rightly."""
    lengths = np.tile(np.arange(1, 17), 50)
    small = Judged(-lengths.astype(float), lengths <= 8)
    found = calibrate_threshold(VARIANTS, [small], np.ones(800, bool), max_drop=0.01, thresholds=LENGTHS)
    assert found.threshold == -8


async def nothing(feeds: "object") -> Arrays:
    return {}


@pytest.mark.parametrize(
    ("full", "tiers", "found"),
    [
        ("full v2", {"small": "small v1"}, "it is full v2"),
        ("full v1", {"small": "small v2"}, "it is small v2"),
        ("full v1", {}, "it is not there"),
    ],
)
def test_another_version_is_calibrated_anew(full: str, tiers: dict[str, str], found: str) -> None:
    record = calibrate_threshold(VARIANTS, [drawn(600, 0)[0]], drawn(600, 0)[1], max_drop=0.05)
    record.require(Endpoint(nothing, "full v1", tiers={"small": Endpoint(nothing, "small v1")}))
    below = Endpoint(nothing, full, tiers={name: Endpoint(nothing, v) for name, v in tiers.items()})
    with pytest.raises(CalibrationError, match=f"which this calibration is for, but {found}"):
        record.require(below)


def test_records_come_back_from_json() -> None:
    small, full = drawn(600, 0)
    record = calibrate_threshold(VARIANTS, [small], full, max_drop=0.05)
    assert ThresholdCalibration.model_validate_json(record.model_dump_json()) == record


def test_the_sharpest_ranking_before_the_first_that_loses_too_much() -> None:
    """By hand: no loss down to 20 candidates, a tenth of the metric at 10, and none again at 5."""
    losses = [({"filter": k}, np.full(400, 0.1 if k == 10 else 0.0)) for k in (50, 20, 10, 5)]
    found = calibrate_ranking({"filter": "bm25", "full": "f"}, losses, max_drop=0.05)
    assert (found.keep, found.drop, found.samples) == ({"filter": 20}, 0.0, 400)
    assert RankingCalibration.model_validate_json(found.model_dump_json()) == found


def test_too_few_queries_are_told_how_many_it_takes() -> None:
    needed = fewest_queries(0.05, 0.95)
    exact = [({"filter": 9}, np.zeros(needed))]
    assert calibrate_ranking({"filter": "b", "full": "f"}, exact, max_drop=0.05).samples == needed
    with pytest.raises(CalibrationError, match=f"at least {needed} samples, but there are {needed - 1}"):
        calibrate_ranking(
            {"filter": "b", "full": "f"}, [({"filter": 9}, np.zeros(needed - 1))], max_drop=0.05
        )


def test_the_ranking_budget_is_kept() -> None:
    """Losses grow as fewer go on; the true mean loss of setting k is 0.2/k, in rare and large losses."""
    chance, repeats, budget = np.random.default_rng(1), 200, 0.05
    settings = (64, 32, 16, 8, 5, 4, 3, 2)
    violated = sharpened = 0
    for _ in range(repeats):
        losses = [({"filter": k}, (chance.random(400) < 0.4 / k) * chance.random(400)) for k in settings]
        keep = calibrate_ranking({"filter": "b", "full": "f"}, losses, max_drop=budget).keep["filter"]
        violated += 0.2 / keep > budget
        sharpened += keep < 64
    assert violated <= 0.05 * repeats + 3 * math.sqrt(0.05 * 0.95 * repeats)
    assert sharpened > 0.9 * repeats
