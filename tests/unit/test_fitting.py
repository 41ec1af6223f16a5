"""A run for another device: what is tried, what fits, what nearest does, and what the gate makes of it."""

import dataclasses
import re
from typing import Any

import pytest

from pareflow.errors import CrashedError, DoesNotFitError
from pareflow.gate import Evidence, judge
from pareflow.hardware.budget import Fit, Need, NetworkFacts, fits
from pareflow.hardware.device import INTERRUPTED
from pareflow.hardware.device_profile import DeviceProfile
from pareflow.reporting import wording
from pareflow.sla import SLA
from pareflow.stages import explaining, fitting, optimization, outcome, searching, validation
from pareflow.stages.run import Row, Run
from pareflow.variant import Recipe, Step

ROOMY = DeviceProfile.model_validate(
    {
        "name": "roomy",
        "memory_mib": 4096,
        "storage_mib": 64,
        "cores": 1,
        "memory_gb_per_s": 10,
        "power_w": 5,
        "units": [
            {
                "name": "core",
                "gops": {"float32": 10, "int8": 40},
                "backends": {"onnxruntime": "itself", "litert": "TensorFlow Lite Micro"},
            }
        ],
        "sources": ["made up"],
    }
)
TINY = ROOMY.model_copy(update={"name": "tiny", "storage_mib": 0.001})
BASIC = Recipe((), Step("onnxruntime", {"graph_level": "basic"}))


def on(run: Run, profile: DeviceProfile) -> Run:
    target = run.spec.target.model_copy(update={"profile": profile})
    return dataclasses.replace(run, spec=run.spec.model_copy(update={"target": target}))


def made(run: Run, row: Row) -> Any:
    return optimization.make(run, row)


def confined(run: Run, row: Row) -> Any:
    """What the row did within the device's bounds."""
    fit = fitting.confine(run, row).fit
    return fit and fit.confined


def test_what_the_device_does_not_run_is_not_tried(trained: Any) -> None:
    row = made(on(trained.run, ROOMY), Row(Recipe((), Step("openvino"))))
    assert row.status == "unavailable"
    assert row.reason == "the device does not run it: roomy runs onnxruntime, litert"
    threads = made(on(trained.run, ROOMY), Row(Recipe((), Step("onnxruntime", {"threads": 2}))))
    assert threads.reason == "the device does not run it: roomy has 1 cores for 2 threads"
    assert optimization.unrunnable(trained.run, Recipe((), Step("onnxruntime", {"threads": 2}))) is None


def test_the_devices_other_runtimes_join_the_built_in_list(trained: Any) -> None:
    spec = trained.run.spec.model_copy(update={"candidates": None})
    here = dataclasses.replace(trained.run, spec=spec)
    rows = searching.first_rows(on(here, ROOMY))
    litert = [row.label for row in rows if row.recipe.backend.name == "litert"]
    assert litert == ["litert", "litert(precision=static_int8)"]
    backends = {row.recipe.backend.name for row in searching.first_rows(here)}
    assert backends == {"onnxruntime", "openvino"}


def test_a_variant_that_fits_says_by_what_it_would_run_and_what_is_estimated(trained: Any) -> None:
    run = on(trained.run, ROOMY)
    row = made(run, Row(BASIC))
    assert (row.status, row.fit.decision, row.fit.runs_by) == ("ok", "fits", "core: itself")
    assert {need.name: need.estimated for need in row.fit.needs} == {
        "runtime": False,
        "storage": False,
        "memory": True,
        "least_ms": True,
        "power": True,
        "energy": True,
    }
    assert row.fit.needed("storage") == row.size_mib
    held = row.fit.confined
    assert held is None  # only finalists are run in the device's bounds
    bounded = confined(run, row)
    assert (bounded["reason"], bounded["cores"], bounded["memory_mib"]) == (None, 1, 4096)
    assert bounded["held_mib"] >= 0
    assert bounded["p50_ms"] > 0


def test_without_a_profile_nothing_is_judged_by_one(trained: Any) -> None:
    row = made(trained.run, Row(BASIC))
    assert row.fit is None
    assert fitting.confine(trained.run, row) is row
    assert not fitting.nothing_fits(trained.run, [])
    assert outcome.target(trained.run, [row]) is None


def test_a_run_that_gets_too_little_memory_says_so_and_what_it_takes_here(trained: Any) -> None:
    narrow = ROOMY.model_copy(update={"memory_mib": 0.01})
    row = made(on(trained.run, ROOMY), Row(BASIC))
    assert row.reason is None
    told = confined(on(trained.run, narrow), row)
    assert re.match("(OutOfMemory|Crashed|Killed|StepFailed)Error: ", told["reason"])
    assert told["held_mib"] > 0.01
    assert told["p50_ms"] > 0


def test_a_run_that_was_interrupted_is_not_kept_as_one_that_failed(trained: Any) -> None:
    run = on(trained.run, ROOMY.model_copy(update={"memory_mib": 2048}))  # of which nothing is in the store
    row = made(run, Row(BASIC))
    INTERRUPTED.set()
    try:
        with pytest.raises(CrashedError, match="SIGKILL"):
            confined(run, row)
    finally:
        INTERRUPTED.clear()
    assert confined(run, row)["reason"] is None


def test_a_model_over_the_storage_is_a_failed_row_that_names_size_limit_and_the_nearest(trained: Any) -> None:
    row = made(on(trained.run, TINY), Row(BASIC))
    assert row.status == "failed"
    assert row.reason == f"DoesNotFitError: a variant must fit tiny, but {row.fit.excess}"
    assert f"its files take {row.size_mib:.3g} MiB of the device's 0.001 MiB of storage" in row.fit.excess
    with pytest.raises(DoesNotFitError, match=r"a variant must fit tiny, but .* Take a smaller network"):
        fitting.check(row)
    small = dataclasses.replace(
        row, recipe=Recipe((), Step("onnxruntime")), status="ok", reason=None, size_mib=0.0005
    )
    small = dataclasses.replace(small, fit=fits(0.0005, NetworkFacts(1, 1, {}, ()), TINY, "onnxruntime"))
    said, kept = fitting.with_nearest([row, small])
    assert said.reason == f"{row.reason}; the nearest that fits is onnxruntime (0.0005 MiB)"
    assert kept is small
    assert fitting.with_nearest([row])[0].reason == f"{row.reason}; none that was made fits"


def test_students_and_few_bits_join_when_nothing_fits(trained: Any) -> None:
    run = on(trained.run, TINY)
    row = made(run, Row(BASIC))
    assert fitting.nothing_fits(run, [row])
    labels = [Row(recipe).label for recipe in searching.last_resort(run)]
    assert labels[0] == "distillation(student=narrow) → static_int8 → onnxruntime"
    assert "kmeans_sharing → static_int8 → onnxruntime(packed=True)" in labels
    assert "int4 → onnxruntime" in labels
    assert len(set(labels)) == len(labels)
    fine = made(on(trained.run, ROOMY), Row(BASIC))
    assert not fitting.nothing_fits(on(trained.run, ROOMY), [row, fine])


def test_facts_of_a_network_that_left_the_graph_are_counted_as_bytes(trained: Any) -> None:
    """OpenVINO chooses its precision, so a quarter of the activations is the least that it can need."""
    everywhere = ROOMY.units[0].model_copy(
        update={"backends": {"onnxruntime": "itself", "openvino": "itself", "torch_eager": "itself"}}
    )
    run = on(trained.run, ROOMY.model_copy(update={"units": (everywhere,)}))
    plain = made(run, Row(BASIC)).fit
    chosen = made(run, Row(Recipe((), Step("openvino")))).fit
    assert chosen.needed("least_ms") < plain.needed("least_ms")
    assert chosen.needed("memory") < plain.needed("memory")


def test_the_winner_fits_the_device(judged: Any) -> None:
    best = validation.winner(judged.run, judged.finalists)
    assert best is not None
    unfit = Fit("tiny", "", (Need("storage", "MiB", 2, 1, False, "2 of 1"),))
    doubt = Fit("tiny", "", (Need("memory", "MiB", None, 1, True, "unknown"),))
    for fit in (unfit, doubt):
        rows = [dataclasses.replace(row, fit=fit) for row in judged.finalists]
        assert validation.winner(judged.run, rows) is None


@pytest.mark.parametrize(
    ("needs", "decision", "said"),
    [
        (Need("storage", "MiB", 2, 1, False, "2 of 1"), "reject", "tiny: 2 of 1"),
        (
            Need("memory", "MiB", None, 1, True, "unknown"),
            "inconclusive",
            "tiny: what it needs there is not known",
        ),
    ],
    ids=["too large", "unknown"],
)
def test_what_met_the_sla_and_does_not_fit_is_not_published_as_promoted(
    judged: Any, needs: Need, decision: str, said: str
) -> None:
    rows = [dataclasses.replace(row, fit=Fit("tiny", "", (needs,))) for row in judged.finalists]
    told = outcome.document(judged.run, rows, rows, None, None, None)
    passing = next(row for row in rows if row.id == told["verdict"]["variant"])
    assert passing.verdict.decision == "promote"
    assert told["verdict"]["decision"] == decision
    reason = f"nothing that met the SLA fits the device; closest is {passing.label}: {said}"
    assert told["verdict"]["reason"] == reason
    assert wording.headline(told).sentence == f"No candidate can be promoted: {reason}"
    promoted = dataclasses.replace(rows[-1].verdict, decision="promote")
    candidate = dataclasses.replace(rows[-1], verdict=promoted)
    assert explaining.explanation(judged.run, candidate, rows, None) == (
        f"It meets every clause, but does not win: {said}."
    )


def test_the_document_says_whose_verdict_it_is(trained: Any) -> None:
    run = on(trained.run, ROOMY)
    row = made(run, Row(BASIC))
    told = outcome.target(run, [row])
    assert told is not None
    assert told["fitting"] == ["onnxruntime(graph_level=basic)"]
    assert "the verdict is this environment's" in told["words"]
    assert "its latency there is not measured" in told["words"]
    assert outcome.variant(row)["fit"]["needs"][2]["estimated"] is True


def checks(sla: dict[str, Any], evidence: Evidence) -> dict[str, Any]:
    return {check.clause: check for check in judge(SLA.model_validate(sla), evidence).checks}


FIT = fits(1.0, NetworkFacts(2**20, 2**20, {"float32": 20_000_000}, ()), ROOMY, "onnxruntime")
"""2 MiB, 2 ms at 10 GFLOP/s, 10 mJ at 5 W."""


@pytest.mark.parametrize(("limit", "decision"), [(1.9, "reject"), (20.0, "inconclusive"), (50.0, "promote")])
def test_memory_lies_between_the_estimate_and_the_peak_here(
    good: Evidence, limit: float, decision: str
) -> None:
    """The plan needs 2 MiB at least; the process here held 50."""
    found = checks({"memory": {"max_mib": limit}}, dataclasses.replace(good, fit=FIT))["memory.max_mib"]
    assert (found.decision, found.estimate) == (decision, 2.0)
    assert "estimated" in found.reason
    assert found.reason.endswith("not measured on roomy")


@pytest.mark.parametrize("limit", [0.001, 0.011, 1.0])
def test_energy_that_is_only_estimated_never_passes(good: Evidence, limit: float) -> None:
    """Not even where this machine measured its own."""
    measured = dataclasses.replace(good.measurement, energy_j=1e-6)  # type: ignore[type-var]
    evidence = dataclasses.replace(good, measurement=measured, fit=FIT)
    found = checks({"energy": {"max_j": limit}}, evidence)["energy.max_j"]
    assert (found.decision, found.estimate) == ("inconclusive", 0.01)
    assert "about 0.01, and no bound on it; estimated, not measured on roomy" in found.reason


@pytest.mark.parametrize(("limit", "decision"), [(4.9, "inconclusive"), (5.0, "promote")])
def test_power_is_bounded_by_what_the_device_can_draw(good: Evidence, limit: float, decision: str) -> None:
    found = checks({"energy": {"max_w": limit}}, dataclasses.replace(good, fit=FIT))["energy.max_w"]
    assert (found.decision, found.estimate) == (decision, 5.0)
    assert "estimated, not measured on roomy" in found.reason


def test_latency_here_is_told_as_such_and_rejected_where_the_device_cannot(good: Evidence) -> None:
    """Every request took 1 ms here; roomy needs 2 ms at its peak rate."""
    evidence = dataclasses.replace(good, fit=FIT)
    met = checks({"latency": {"p50_ms": 3}}, evidence)["latency.p50_ms"]
    assert met.decision == "promote"
    assert met.reason.endswith("measured on this machine, not on roomy")
    missed = checks({"latency": {"p50_ms": 1.5}}, evidence)["latency.p50_ms"]
    assert missed.decision == "reject"
    assert missed.reason == "roomy takes at least 2 ms (estimated from its peak rates), more than 1.5"
    assert checks({"latency": {"p50_ms": 1.5}}, good)["latency.p50_ms"].decision == "promote"


@pytest.mark.parametrize(
    ("batch_size", "min_per_s", "decision"),
    [(1, 499, "promote"), (1, 501, "reject"), (4, 1999, "promote"), (4, 2001, "reject")],
)
def test_throughput_here_is_rejected_where_the_device_cannot(
    good: Evidence, batch_size: int, min_per_s: float, decision: str
) -> None:
    """Requests of 1 ms here, which take roomy 2 ms at its peak rate: at most 500 in a second."""
    assert good.measurement is not None
    assert good.baseline is not None
    ours, theirs = (
        dataclasses.replace(one, batch_size=batch_size) for one in (good.measurement, good.baseline)
    )
    evidence = dataclasses.replace(good, measurement=ours, baseline=theirs, fit=FIT)
    sla = {"throughput": {"min_per_s": min_per_s}, "latency": {"p50_ms": 9, "batch_size": batch_size}}
    found = checks(sla, evidence)["throughput.min_per_s"]
    assert found.decision == decision
    most = "roomy takes at least 2 ms (estimated from its peak rates), so that it answers 500 per second"
    if (batch_size, decision) == (1, "reject"):
        assert found.reason == f"{most} at most, not 501"


@pytest.mark.parametrize(
    ("units", "per_s", "decision"),
    [(1, 499, "promote"), (1, 501, "reject"), (2, 501, "promote"), (2, 1001, "reject")],
)
def test_a_load_is_rejected_where_the_device_falls_behind_it(
    good: Evidence, units: int, per_s: float, decision: str
) -> None:
    """Of requests that take 2 ms one unit answers 500 in a second, and two units 1000."""
    fit = dataclasses.replace(FIT, units=units)
    evidence = dataclasses.replace(good, served=good.measurement, fit=fit)
    found = checks({"load": {"per_s": per_s, "p99_ms": 9}}, evidence)["load.p99_ms"]
    assert found.decision == decision


def test_all_units_that_run_a_variant_are_counted() -> None:
    slower = ROOMY.units[0].model_copy(update={"backends": {"onnxruntime": "itself"}})
    pair = ROOMY.model_copy(update={"units": (*ROOMY.units, slower)})
    assert {name: fits(1.0, None, pair, name).units for name in ("onnxruntime", "litert")} == {
        "onnxruntime": 2,
        "litert": 1,
    }
