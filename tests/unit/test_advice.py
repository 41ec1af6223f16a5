"""What a profile amounts to: the bottleneck in words, and each family's bound by Amdahl's law."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pareflow.measuring.advice import REACH, advice, at_most
from pareflow.measuring.breakdown import STAGES


def stages(*shares: float) -> list[dict[str, Any]]:
    return [{"name": name, "share": share} for name, share in zip(STAGES, shares, strict=True)]


def family(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(row for row in found["families"] if row["family"] == name)


def test_bottleneck_is_bounded_by_amdahls_law() -> None:
    found = advice(stages(0.25, 0, 0.75, 0, 0), [{"name": "Conv", "share": 0.6}])
    assert (found["bottleneck"], found["share"], found["at_most"]) == ("inference", 0.75, 4)
    assert found["words"] == (
        "inference takes 75% of a request; making it free would make the request 4.0 times faster at most."
        " Within inference, Conv takes 60%."
    )


def test_where_preprocessing_dominates_quantization_cannot_help() -> None:
    found = advice(stages(0.05, 0.7, 0.2, 0.03, 0.02), [{"name": "MatMul", "share": 0.9}], counted_share=0.5)
    assert found["bottleneck"] == "preprocess"
    assert family(found, "quantization")["share"] == pytest.approx(0.1)
    assert family(found, "quantization")["at_most"] == pytest.approx(1 / 0.9)
    assert family(found, "distillation")["at_most"] == pytest.approx(1.25)
    assert family(found, "caching")["share"] == pytest.approx(0.93)
    assert family(found, "pipelining")["at_most"] == pytest.approx(1 / 0.7)
    assert family(found, "request code")["share"] == pytest.approx(0.8)
    assert found["families"][0]["family"] == "caching"
    assert found["words"].endswith("Quantization reaches 10% of it: 1.1 times faster at most.")


@pytest.mark.parametrize(("bound", "said"), [("overhead", True), ("compute", False), (None, False)])
def test_inference_near_no_ceiling_is_warned_of(bound: str | None, said: bool) -> None:
    found = advice(stages(0.25, 0, 0.75, 0, 0), bound=bound)
    assert found["bound"] == bound
    assert ("near no ceiling" in found["words"]) == said
    assert "near no ceiling" not in advice(stages(0.75, 0, 0.25, 0, 0), bound=bound)["words"]


def test_what_is_the_whole_request_has_no_bound() -> None:
    found = advice(stages(0, 0, 1.0, 0, 0))
    assert found["at_most"] is None
    assert found["words"] == "inference takes 100% of a request."
    assert family(found, "quantization")["at_most"] is None
    assert family(found, "pipelining")["at_most"] == 1


@given(st.lists(st.floats(0, 1e3), min_size=5, max_size=5).filter(lambda t: sum(t) > 0), st.floats(0, 1))
def test_no_family_touches_more_than_the_request_nor_promises_more_than_its_share(
    times: list[float], matrix: float
) -> None:
    found = advice(stages(*(ms / sum(times) for ms in times)), counted_share=matrix)
    assert {row["family"] for row in found["families"]} == set(REACH)
    for row in found["families"]:
        assert 0 <= row["share"] <= 1
        assert row["at_most"] is None or row["at_most"] == pytest.approx(1 / (1 - row["share"]))
    assert family(found, "quantization")["share"] <= family(found, "compiler")["share"]
    shares = [row["share"] for row in found["families"]]
    assert shares == sorted(shares, reverse=True)


@given(st.floats(0, 0.999), st.floats(1, 1e6))
def test_amdahls_bound_is_never_passed(share: float, faster: float) -> None:
    whole = 1 / (1 - share + share / faster)
    limit = at_most(share)
    assert limit is not None
    assert whole <= limit * (1 + 1e-12)
