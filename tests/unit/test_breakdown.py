"""Where a request's time goes, in stages and in operators."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pareflow.compiler import OnnxRuntime
from pareflow.measuring import breakdown as instrument
from pareflow.measuring import marks
from pareflow.measuring.breakdown import REQUESTS, STAGES, WARM_UP, breakdown
from pareflow.measuring.chrome_trace import merged
from pareflow.measuring.operators import REQUESTS as TRACED
from pareflow.measuring.operators import TOP, _without_first, profiled
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

Load = Callable[[str], LoadedWorkload]
Forms = Callable[[str], Mapping[Form, Path]]
FORM: Mapping[str, Form] = {"torch": "torch", "onnxruntime": "onnx", "openvino": "onnx"}


@pytest.mark.parametrize("name", ["images", "texts"])
def test_stages_of_a_request_make_up_the_whole(
    name: str, tmp_path: Path, forms: Forms, load_tiny: Load
) -> None:
    OnnxRuntime().compile(forms(name)["onnx"], tmp_path)
    stages = breakdown(OnnxRuntime().load(tmp_path), load_tiny(name), batch_size=3)
    assert [stage["name"] for stage in stages] == list(STAGES)
    assert list(STAGES) == ["load", "preprocess", "inference", "postprocess", "serialise"]
    assert sum(stage["share"] for stage in stages) == pytest.approx(1)
    assert all(0 < stage["p50_ms"] <= stage["p99_ms"] for stage in stages)
    assert REQUESTS >= 100  # fewer would make p99 the maximum


def test_predictions_may_be_a_list(
    tmp_path: Path, forms: Forms, load_tiny: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = load_tiny("images")
    kind = type(workload.definition)
    monkeypatch.setattr(kind, "postprocess", lambda _, outputs: outputs["output"].argmax(1).tolist())
    OnnxRuntime().compile(forms("images")["onnx"], tmp_path)
    assert [stage["name"] for stage in breakdown(OnnxRuntime().load(tmp_path), workload, 2)] == list(STAGES)


def test_every_stage_of_every_request_is_marked(
    tmp_path: Path, forms: Forms, load_tiny: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    @contextmanager
    def mark(name: str) -> Iterator[None]:
        seen.append(name)
        yield

    monkeypatch.setattr(instrument, "marker", lambda: mark)
    OnnxRuntime().compile(forms("images")["onnx"], tmp_path)
    breakdown(OnnxRuntime().load(tmp_path), load_tiny("images"), batch_size=1)
    assert seen == list(STAGES) * (WARM_UP + REQUESTS)


def test_one_input_is_timed_without_its_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: the first ten calls take 5 ms each, all others 2."""
    asked: list[Any] = []
    clock = [0]

    class Warming:
        def run(self, feeds: Any) -> Any:
            asked.append(feeds)
            clock[0] += 5_000_000 if len(asked) <= WARM_UP else 2_000_000

    monkeypatch.setattr(instrument, "time", SimpleNamespace(perf_counter_ns=lambda: clock[0]))
    feeds = {"x": np.zeros(1)}
    assert instrument.inference_ms(Warming(), feeds) == 2.0  # type: ignore[arg-type]
    assert asked == [feeds] * (WARM_UP + REQUESTS)


def test_ranges_are_nvtxs_where_there_is_cuda_and_else_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    ranges: list[str] = []

    @contextmanager
    def noted(name: str) -> Iterator[None]:
        ranges.append(name)
        yield

    monkeypatch.setattr(torch.cuda, "nvtx", SimpleNamespace(range=noted))
    for here in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda here=here: here)
        with marks.marker()("inference"):
            pass
    assert ranges == ["pareflow: inference"]


@pytest.fixture(scope="module", params=sorted(FORM))
def told(request: Any, forms: Forms, load_tiny: Load) -> tuple[str, dict[str, Any]]:
    """A runtime, and what its profiler says of the tiny images."""
    import warnings

    runtime = request.param
    if runtime == "openvino":
        pytest.importorskip("openvino")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Profiler clears events", UserWarning)
        return runtime, profiled(runtime, forms("images")[FORM[runtime]], load_tiny("images").example(1), 1)


def test_operators_are_ranked_with_whole_calls_and_shares_of_one_whole(told: Any) -> None:
    _, found = told
    rows = found["operators"]
    times = [row["ms"] for row in rows]
    assert times == sorted(times, reverse=True)
    assert 0 < len(rows) <= TOP
    assert 0 < sum(row["share"] for row in rows) <= 1 + 1e-9
    assert all(row["calls"] >= 1 for row in rows)
    assert any("conv" in row["name"].lower() for row in rows)


def test_events_tell_name_start_and_duration_of_every_request(told: Any) -> None:
    runtime, found = told
    assert all(
        {"name", "ts", "dur", "tid"} <= event.keys() and event["ph"] == "X" for event in found["events"]
    )
    whole = {"onnxruntime": "model_run", "openvino": "infer", "torch": "aten::linear"}[runtime]
    assert sum(event["name"] == whole for event in found["events"]) % TRACED == 0
    assert any(event["name"] == whole for event in found["events"])


def test_layers_of_openvino_do_not_overlap(told: Any) -> None:
    runtime, found = told
    if runtime != "openvino":
        return
    layers = [event for event in found["events"] if event["cat"] != "request"]
    ends = [event["ts"] + event["dur"] for event in layers]
    assert all(after["ts"] >= end - 1 for end, after in zip(ends, layers[1:], strict=False))


def test_the_first_slow_request_does_not_weigh_on_openvinos_layers() -> None:
    """21 requests, the first of 100 µs and the others of 16: the counter says (100 + 20 · 16) / 21 = 20."""
    assert TRACED == 20
    assert _without_first(20, 100) == 16
    assert _without_first(0, 15) == 0


def test_one_trace_holds_a_process_row_per_runtime_all_starting_at_zero() -> None:
    trace = merged(
        {
            "onnxruntime": [event("run", 700, 5), event("Conv", 702, 2)],
            "torch": [event("aten::add", 1e9 + 3, 2), event("aten::conv2d", 1e9, 9)],
            "idle": [],
        }
    )
    rows = [
        (e["args"]["name"], e["pid"])
        for e in json.loads(json.dumps(trace))["traceEvents"]
        if e["name"] == "process_name"
    ]
    assert rows == [("ONNX Runtime", 1), ("PyTorch eager", 2), ("idle", 3)]
    placed = [(e["pid"], e["name"], e["ts"]) for e in trace["traceEvents"] if e["ph"] == "X"]
    assert placed == [(1, "run", 0), (1, "Conv", 2), (2, "aten::add", 3), (2, "aten::conv2d", 0)]


def event(name: str, start: float, took: float) -> dict[str, Any]:
    return {"ph": "X", "name": name, "ts": start, "dur": took, "pid": 77, "tid": 1, "args": {}}


def ragged() -> np.ndarray:
    found = np.empty(2, dtype=object)
    found[0], found[1] = np.ones(2, np.float32), np.zeros(3, np.float32)
    return found


@pytest.mark.parametrize(
    "samples",
    [
        np.arange(6, dtype=np.uint8).reshape(2, 3),
        ["a", "bc"],
        np.array([(1.5, [1, 2]), (2.5, [3, 4])], dtype=[("a", "<f4"), ("b", "<i8", (2,))]),
        ragged(),
        list(ragged()),
    ],
    ids=["numbers", "texts", "records", "arrays of several lengths", "a list of them"],
)
def test_a_request_is_decoded_into_samples_as_the_workload_has_them(samples: Any) -> None:
    found = instrument._decoded(json.dumps(instrument._plain(samples)), samples)
    assert repr(found) == repr(samples)  # with their types
