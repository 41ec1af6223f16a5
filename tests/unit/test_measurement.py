"""Intervals of quantiles, ratios of two measurements, and records that come back from JSON."""

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pareflow.measurement import Environment, Interval, Measurement, Quality, quantile_interval, speedup

Build = Callable[..., Measurement]
HERE = Environment("a processor", ("avx2", "fma"), 2, 4096, "Linux", "3.11", {"onnxruntime": "1.0"})


@pytest.mark.parametrize(
    ("samples", "quantile", "low", "high"),
    [
        pytest.param(299, 0.99, 293, 299, id="p99 of 299: bounded by the largest"),
        pytest.param(298, 0.99, 292, None, id="p99 of 298: no upper bound"),
        pytest.param(12, 0.5, 3, 10, id="median of 12"),
        pytest.param(5, 0.5, 1, 5, id="median of 5: the extremes"),
        pytest.param(4, 0.5, None, None, id="median of 4: no bounds"),
    ],
)
def test_quantile_is_bounded_by_order_statistics(
    samples: int, quantile: float, low: int | None, high: int | None
) -> None:
    """Sample k is k itself, so that a bound is its own rank; ranks from tables of the binomial."""
    shuffled = np.random.default_rng(0).permutation(np.arange(1, samples + 1))
    found = quantile_interval(shuffled, quantile)
    assert (found.low, found.high, found.samples) == (low, high, samples)


def test_quantile_interval_covers_as_often_as_it_says() -> None:
    """In 2000 draws of 60 exponential samples each bound on the 0.9-quantile, 2.3026, holds in 95 %."""
    draws = np.random.default_rng(0).exponential(size=(2000, 60))
    intervals = [quantile_interval(draw, 0.9) for draw in draws]
    held = np.mean(
        [[i.low is None or i.low <= 2.302585, i.high is None or i.high >= 2.302585] for i in intervals], 0
    )
    assert (held >= 0.95 - 0.015).all()
    assert (held <= 0.995).all()


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=400), st.floats(0.01, 0.99))
def test_bounds_enclose_the_middle_and_grow_with_confidence(samples: list[float], quantile: float) -> None:
    narrow, wide = quantile_interval(samples, quantile, 0.8), quantile_interval(samples, quantile, 0.99)
    if wide.low is not None:
        assert narrow.low is not None
        assert wide.low <= narrow.low
    if wide.high is not None:
        assert narrow.high is not None
        assert narrow.high <= wide.high


def test_no_samples_give_no_estimate_and_no_bound() -> None:
    found = quantile_interval([], 0.5)
    assert np.isnan(found.estimate)
    assert (found.low, found.high, found.samples) == (None, None, 0)


def test_speedup_is_the_median_ratio_of_neighbouring_blocks(measured: Build) -> None:
    """The machine slows down threefold half-way: both feel it, and the ratio stays 2, once 4."""
    baseline = measured([2, 2], [2, 2], [6, 6], [6, 6], [8, 8])
    candidate = measured([1, 1], [1, 1], [3, 3], [3, 3], [2, 2])
    assert speedup(baseline, candidate) == Interval(2.0, 2.0, 4.0, samples=5)


def test_speedup_takes_another_quantile(measured: Build) -> None:
    baseline, candidate = measured(*[[1, 1, 9]] * 5), measured(*[[1, 1, 3]] * 5)
    assert speedup(baseline, candidate).estimate == 1.0
    assert speedup(baseline, candidate, quantile=1).estimate == 3.0


@pytest.mark.parametrize(
    "changes", [{"environment": "elsewhere"}, {"batch_size": 8}], ids=["environment", "batch size"]
)
def test_speedup_refuses_what_was_not_measured_alike(measured: Build, changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be equal to compare two measurements"):
        speedup(measured([1.0]), measured([1.0], **changes))


def test_speedup_refuses_blocks_that_have_no_partner(measured: Build) -> None:
    with pytest.raises(ValueError, match="2 and 1 blocks"):
        speedup(measured([1], [1]), measured([1]))


def test_measurement_knows_quantiles_and_throughput(measured: Build) -> None:
    found = measured([1, 2], [3], [4, 5], batch_size=6)
    assert found.samples_ms.tolist() == [1, 2, 3, 4, 5]
    assert found.quantile_ms(0.5) == 3
    assert found.throughput_per_s == 6 * 1000 / 3


def test_extended_measurement_keeps_all_blocks_in_order(measured: Build) -> None:
    longer = measured([1], [2]).extended(measured([3]))
    assert longer == measured([1], [2], [3])


def test_measurement_comes_back_from_json(measured: Build) -> None:
    found = measured([1, 2], [3], load_s=None, peak_memory_mib=None)
    assert Measurement.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize("scores", [(1, 0), None], ids=["scores", "replicates"])
def test_quality_comes_back_from_json(scores: tuple[int, ...] | None) -> None:
    quality = Quality("v", "accuracy", "search", "digest", 0.5, scores, () if scores else (0.4, 0.6))
    assert Quality.from_json(json.loads(json.dumps(quality.to_json()))) == quality


def test_environment_comes_back_from_json_with_its_fingerprint() -> None:
    found = Environment.from_json(json.loads(json.dumps(HERE.to_json())))
    assert (found, found.fingerprint) == (HERE, HERE.fingerprint)


@pytest.mark.parametrize(
    "other",
    [
        replace(HERE, processor="another"),
        replace(HERE, flags=("avx2", "fma", "avx512_vnni")),
        replace(HERE, runtimes={"onnxruntime": "1.1"}),
        replace(HERE, driver="580"),
        replace(HERE, cores=4),
    ],
    ids=["processor", "flags", "runtime", "driver", "cores"],
)
def test_environments_that_differ_have_different_fingerprints(other: Environment) -> None:
    assert other.fingerprint != HERE.fingerprint
