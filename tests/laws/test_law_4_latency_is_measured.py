"""Law 4: latency is measured in the runtime that will serve; size, bits and operations prove nothing."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pareflow.gate import Evidence, judge
from pareflow.measurement import Measurement
from pareflow.sla import SLA
from pareflow.stages import optimization, screening
from pareflow.stages.run import Row
from pareflow.variant import Recipe, Step


@pytest.mark.usefixtures("rogues")
def test_what_pauses_is_slower_though_nothing_on_disk_tells(trained: Any, good: Evidence) -> None:
    """The same file as torch eager's, run by a backend that sleeps."""
    eager = next(row for row in trained.rows if row.role == "original")
    built = optimization.make(trained.run, Row(Recipe((), Step("sluggish"))))
    row = optimization.time(trained.run, built, trained.rows)
    assert row.size_mib == eager.size_mib
    assert row.quality is not None
    assert row.quality.value == eager.quality.value
    assert row.measurement is not None
    assert row.measurement.quantile_ms(0) >= 5  # it sleeps that long, on any machine
    assert row.speedup is not None
    assert row.speedup.high is not None
    assert row.speedup.high < 1
    strong = trained.strong.measurement
    evidence = replace(good, measurement=row.measurement, baseline=replace(strong, variant="baseline"))
    assert judge(SLA.model_validate({"size": {"max_mib": 10}}), evidence).decision == "reject"


def test_every_number_of_a_verdict_comes_from_the_samples(
    good: Evidence, measured: Callable[..., Measurement]
) -> None:
    """Another file size changes the size check alone; other samples change the others."""
    sla = SLA.model_validate(
        {"latency": {"p50_ms": 5}, "throughput": {"min_per_s": 1}, "size": {"max_mib": 9}}
    )
    small = judge(sla, replace(good, measurement=measured(*[[1.0] * 20] * 20, size_mib=1.0)))
    large = judge(sla, replace(good, measurement=measured(*[[1.0] * 20] * 20, size_mib=2.0)))
    slow = judge(sla, replace(good, measurement=measured(*[[3.0] * 20] * 20, size_mib=1.0)))
    assert [check.estimate for check in small.checks[:3]] == pytest.approx([1.0, 1000.0, 1.0])
    assert [check.estimate for check in large.checks[:3]] == pytest.approx([1.0, 1000.0, 2.0])
    assert [check.estimate for check in slow.checks[:3]] == [3.0, pytest.approx(1000 / 3), 1.0]


def test_objective_ranks_by_what_was_measured(measured: Callable[..., Measurement]) -> None:
    """The smaller of the two takes longer, and is no better for whoever asks for speed."""
    small, large = (
        Row(Recipe((), Step(name)), size_mib=size, measurement=measured([ms] * 20, size_mib=size))
        for name, ms, size in (("small", 3.0, 1.0), ("large", 1.0, 2.0))
    )
    assert screening.objective_value("latency_p50", large) < screening.objective_value("latency_p50", small)
    assert screening.objective_value("size", small) < screening.objective_value("size", large)
