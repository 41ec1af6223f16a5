"""Law 2: every clause of the SLA is judged."""

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pareflow.gate import Evidence, judge
from pareflow.sla import SLA

positive = st.floats(1e-6, 1e6)
families = {
    "quality": {
        "max_drop": st.floats(0, 0.99),
        "worst_slice_max_drop": st.floats(0, 0.99),
        "min": positive,
        "max": positive,
    },
    "latency": {"p50_ms": positive, "p99_ms": positive, "p99_over_p50": st.floats(1, 10)},
    "load": {"p99_ms": positive},
    "throughput": {"min_per_s": positive},
    "size": {"max_mib": positive},
    "memory": {"max_mib": positive},
    "energy": {"max_j": positive, "max_w": positive},
}
names = [f"{family}.{clause}" for family, clauses in families.items() for clause in clauses]


@st.composite
def agreements(draw: st.DrawFn) -> dict[str, dict[str, float]]:
    """A document with any of the clauses there are."""
    document: dict[str, dict[str, float]] = {}
    for name in draw(st.lists(st.sampled_from(names), min_size=1, unique=True)):
        family, clause = name.split(".")
        document.setdefault(family, {})[clause] = draw(families[family][clause])
    if "load" in document:
        document["load"]["per_s"] = 100.0
    return document


def stated(document: dict[str, dict[str, float]]) -> dict[str, float]:
    return {
        f"{family}.{name}": limit
        for family, part in document.items()
        for name, limit in part.items()
        if name != "per_s"
    }


@given(agreements())
def test_each_clause_has_its_check_and_its_limit(good: Evidence, document: dict[str, Any]) -> None:
    verdict = judge(SLA.model_validate(document), good)
    harm = {"do_no_harm": 1.0} | ({} if "quality" in document else {"quality.harm": 0.0})
    assert {check.clause: check.limit for check in verdict.checks} == {**stated(document), **harm}
    assert len(verdict.checks) == len(stated(document)) + len(harm)


@given(agreements())
def test_promotion_needs_every_check(good: Evidence, document: dict[str, Any]) -> None:
    verdict = judge(SLA.model_validate(document), good)
    decisions = [check.decision for check in verdict.checks]
    assert (verdict.decision == "promote") == (set(decisions) == {"promote"})
    assert (verdict.decision == "reject") == ("reject" in decisions)


@given(agreements())
def test_another_clause_never_helps(good: Evidence, document: dict[str, Any]) -> None:
    order = ("promote", "inconclusive", "reject")
    before = judge(SLA.model_validate(document), good).decision
    after = judge(SLA.model_validate({**document, "energy": {"max_j": 1.0}}), good).decision
    assert order.index(after) >= order.index(before)
    assert after != "promote"  # nothing here can count joules


@given(agreements())
def test_every_clause_there_is_can_reject_or_stay_open(good: Evidence, document: dict[str, Any]) -> None:
    """Without any evidence no clause passes: none is judged by looking away."""
    nothing = replace(good, quality=None, original=None, measurement=None, baseline=None)
    verdict = judge(SLA.model_validate(document), nothing)
    assert {check.decision for check in verdict.checks} == {"inconclusive"}


def test_clauses_of_this_test_are_all_there_are() -> None:
    every = {family: dict.fromkeys(clauses, 1.5) for family, clauses in families.items()}
    every["load"]["per_s"] = 100.0
    limits = SLA.model_validate(every).clauses()
    fields = {
        f"{family}.{name}"
        for family, field in SLA.model_fields.items()
        for option in getattr(field.annotation, "__args__", ())
        if hasattr(option, "model_fields")
        for name in option.model_fields
    }
    assert set(limits) == set(names) == fields - {"quality.metric", "latency.batch_size", "load.per_s"}
