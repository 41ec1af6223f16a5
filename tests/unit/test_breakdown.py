"""Where a request's time goes, in stages and in operators."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from pareflow.compiler import OnnxRuntime
from pareflow.measuring.breakdown import REQUESTS, bottleneck, breakdown
from pareflow.measuring.operators import TOP, onnxruntime_operators, torch_operators
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

Load = Callable[[str], LoadedWorkload]
Forms = Callable[[str], Mapping[Form, Path]]


@pytest.mark.parametrize("name", ["images", "texts"])
def test_stages_of_a_request_make_up_the_whole(
    name: str, tmp_path: Path, forms: Forms, load_tiny: Load
) -> None:
    OnnxRuntime().compile(forms(name)["onnx"], tmp_path)
    stages = breakdown(OnnxRuntime().load(tmp_path), load_tiny(name), batch_size=3)
    assert [stage["name"] for stage in stages] == [
        "load",
        "preprocess",
        "inference",
        "postprocess",
        "serialise",
    ]
    assert sum(stage["share"] for stage in stages) == pytest.approx(1)
    assert all(0 < stage["p50_ms"] <= stage["p99_ms"] for stage in stages)
    assert REQUESTS >= 100  # fewer would make p99 the maximum


def test_bottleneck_is_bounded_by_amdahls_law() -> None:
    stages = [{"name": "inference", "share": 0.75}, {"name": "load", "share": 0.25}]
    assert bottleneck(stages, [{"name": "Conv", "share": 0.6}]) == (
        "inference takes 75% of a request; making it free would make the request 4.0 times faster at most."
        " Within inference, Conv takes 60%."
    )
    assert bottleneck([{"name": "load", "share": 1.0}], []) == "load takes 100% of a request."


def test_operators_of_onnx_runtime_are_ranked_and_traced(
    tmp_path: Path, forms: Forms, load_tiny: Load
) -> None:
    trace = tmp_path / "trace.json"
    found = onnxruntime_operators(forms("images")["onnx"], load_tiny("images").example(1), trace)
    check_operators(found, json.loads(trace.read_text()))
    assert any("Conv" in row["name"] for row in found)
    assert [path.name for path in tmp_path.iterdir()] == ["trace.json"]


@pytest.mark.filterwarnings("ignore:Profiler clears events:UserWarning")
def test_operators_of_torch_are_ranked_and_traced(tmp_path: Path, forms: Forms, load_tiny: Load) -> None:
    trace = tmp_path / "trace.json"
    found = torch_operators(forms("images")["torch"], load_tiny("images").example(1), trace)
    check_operators(found, json.loads(trace.read_text())["traceEvents"])
    assert any("conv" in row["name"] for row in found)


def check_operators(found: list[dict[str, float]], events: list[Mapping[str, object]]) -> None:
    """Slowest first, whole calls per request, shares of one whole; and the trace has events to show."""
    times = [row["ms"] for row in found]
    assert times == sorted(times, reverse=True)
    assert 0 < len(found) <= TOP
    assert 0 < sum(row["share"] for row in found) <= 1 + 1e-9
    assert all(row["calls"] >= 1 for row in found)
    assert any(event.get("dur") for event in events)
