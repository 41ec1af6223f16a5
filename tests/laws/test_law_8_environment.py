"""Law 8: a measurement and a verdict belong to one environment."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pareflow.measurement import Environment, Measurement, speedup
from pareflow.measuring.environment import environment
from pareflow.sla import SLA, Evidence, judge

ANY = SLA.model_validate({"size": {"max_mib": 10}})


def test_verdict_names_the_environment_of_its_measurement(
    good: Evidence, measured: Callable[..., Measurement]
) -> None:
    here = environment().fingerprint
    verdict = judge(ANY, replace(good, measurement=measured([1.0], environment=here)))
    assert verdict.environment == here


def test_verdict_without_a_measurement_names_none(good: Evidence) -> None:
    assert judge(ANY, replace(good, measurement=None)).environment == "not measured"


def test_measurements_of_two_environments_are_never_compared(measured: Callable[..., Measurement]) -> None:
    baseline, candidate = measured([2.0]), measured([1.0], environment="elsewhere")
    with pytest.raises(ValueError, match=r"`environment` must be equal.*here != elsewhere"):
        speedup(baseline, candidate)


def test_this_environment_is_named_completely() -> None:
    here = environment()
    assert here.processor
    assert here.cores >= 1
    assert here.memory_mib > 0
    assert {"numpy", "onnxruntime", "torch"} <= here.runtimes.keys()
    assert environment().fingerprint == here.fingerprint


@pytest.mark.parametrize("name", Environment.__dataclass_fields__)
def test_every_part_of_the_environment_counts(name: str) -> None:
    here = environment()
    changed: dict[str, Any] = {"flags": ("none",), "runtimes": {}}
    assert replace(here, **{name: changed.get(name, "other")}).fingerprint != here.fingerprint
