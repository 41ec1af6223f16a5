"""Records of what was measured: what they say, how they are joined, and that they come back from JSON."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from pareflow.measurement import Environment, Measurement, Quality

Build = Callable[..., Measurement]
HERE = Environment("a processor", ("avx2", "fma"), 2, 4096, "Linux", "3.11", {"onnxruntime": "1.0"})


def test_measurement_knows_quantiles_and_throughput(measured: Build) -> None:
    found = measured([1, 2], [3], [4, 5], batch_size=6)
    assert found.samples_ms.tolist() == [1, 2, 3, 4, 5]
    assert found.quantile_ms(0.5) == 3
    assert found.throughput_per_s == 6 * 1000 / 3


def test_extended_measurement_keeps_all_blocks_in_order(measured: Build) -> None:
    longer = measured([1], [2]).extended(measured([3]))
    assert longer == measured([1], [2], [3])


def test_extended_measurement_averages_what_is_per_request_and_keeps_the_peak(measured: Build) -> None:
    """Two requests of 3 ms processor time and one of 6: 4 ms each. Energy that one part lacks is unknown."""
    first = measured([1], [2], cpu_ms=3.0, energy_j=None, peak_memory_mib=40.0)
    longer = first.extended(measured([3], cpu_ms=6.0, energy_j=1.0, peak_memory_mib=30.0))
    assert (longer.cpu_ms, longer.energy_j, longer.peak_memory_mib) == (4.0, None, 40.0)


def test_extended_measurement_keeps_what_disturbed_either_look(measured: Build) -> None:
    calm, busy = measured([1]), measured([1], noise="others keep 1.0 of 2 cores busy")
    assert calm.extended(busy).noise == busy.extended(calm).noise == busy.extended(busy).noise == busy.noise


def test_utilisation_is_processor_time_over_the_threads_time(measured: Build) -> None:
    """Requests of 4 ms on one thread that take 3 ms of processor time: three quarters."""
    assert measured([4, 4], cpu_ms=3.0).utilisation == 0.75
    assert measured([4, 4]).utilisation is None


def test_measurement_comes_back_from_json(measured: Build) -> None:
    found = measured([1, 2], [3], load_s=None, peak_memory_mib=None)
    assert Measurement.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize("scores", [(1, 0), None], ids=["scores", "replicates"])
def test_quality_comes_back_from_json(scores: tuple[int, ...] | None) -> None:
    part = Quality("v", "accuracy", "search", "digest", 0.5, 2, scores, () if scores else (0.4, 0.6))
    quality = replace(part, slices={"class 0": part}, jackknife=(0.5, 0.5), higher_is_better=False)
    assert Quality.from_json(json.loads(json.dumps(quality.to_json()))) == quality


def test_environment_comes_back_from_json_with_its_fingerprint() -> None:
    found = Environment.from_json(json.loads(json.dumps(HERE.to_json())))
    assert (found, found.fingerprint) == (HERE, HERE.fingerprint)


def test_a_machine_without_bounds_of_a_container_is_named_as_it_always_was() -> None:
    """What was measured before there were such bounds is found again."""
    assert HERE.to_json().keys().isdisjoint({"cpu_quota", "memory_limit_mib"})
    bounded = replace(HERE, cpu_quota=1.5, memory_limit_mib=512)
    assert Environment.from_json(bounded.to_json()) == bounded


@pytest.mark.parametrize(
    "other",
    [
        replace(HERE, processor="another"),
        replace(HERE, flags=("avx2", "fma", "avx512_vnni")),
        replace(HERE, runtimes={"onnxruntime": "1.1"}),
        replace(HERE, driver="580"),
        replace(HERE, cores=4),
        replace(HERE, cpu_quota=1.5),
        replace(HERE, memory_limit_mib=512),
    ],
    ids=["processor", "flags", "runtime", "driver", "cores", "quota", "limit"],
)
def test_environments_that_differ_have_different_fingerprints(other: Environment) -> None:
    assert other.fingerprint != HERE.fingerprint
