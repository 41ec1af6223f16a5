"""Which operators the time of inference goes to, and what happened when: one runtime's own profiler each."""

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pareflow import network
from pareflow.measuring.work import work
from pareflow.workload import Arrays

REQUESTS = 20
TOP = 12

Event = dict[str, Any]
"""A complete event of Chrome's trace format: name, ts and dur in µs, tid, args."""


def profiled(runtime: str, folder: Path, feeds: Arrays, threads: int) -> dict[str, Any]:
    """`operators`, slowest first, and `events`, from `REQUESTS` requests after one that is not counted.

    `folder` holds the network in the form that the runtime reads: a torch module, else an ONNX graph.
    """
    return PROFILERS[runtime](folder, feeds, threads)


def _torch(folder: Path, feeds: Arrays, threads: int) -> dict[str, Any]:
    import torch
    from torch.profiler import ProfilerActivity, profile

    loaded = network.load("torch", folder)
    torch.set_num_threads(threads)
    network.run_torch(loaded, feeds)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(REQUESTS):
            network.run_torch(loaded, feeds)
    times = {row.key: (row.self_cpu_time_total / 1000, row.count) for row in profiler.key_averages()}
    return {"operators": ranked(times), "events": _torch_events(profiler)}


def _torch_events(profiler: Any) -> list[Event]:
    """The profiler's calls with a start and an end; what it adds around them has no numbered process."""
    with tempfile.TemporaryDirectory(prefix="pareflow-") as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return [event for event in events if event["ph"] == "X" and isinstance(event["pid"], int)]


def _onnxruntime(folder: Path, feeds: Arrays, threads: int) -> dict[str, Any]:
    events = _onnxruntime_events(folder, feeds, threads, REQUESTS)
    nodes = [event for event in events if _is_node(event)]
    done = work([e for e in _onnxruntime_events(folder, feeds, threads, 1, packed=False) if _is_node(e)])
    rows = ranked(_times((event["args"]["op_name"], event["dur"] / 1000) for event in nodes), top=None)
    rows = [{**row, **done.get(row["name"], {"flops": None, "bytes": None})} for row in rows]
    return {"operators": rows[:TOP], "events": events, "work": _totals(rows)}


def _onnxruntime_events(
    folder: Path, feeds: Arrays, threads: int, requests: int, *, packed: bool = True
) -> list[Event]:
    """The profile's events, without loading and the first request."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.disable_prepacking", "0" if packed else "1")
    options.log_severity_level = 3
    options.enable_profiling = True
    with tempfile.TemporaryDirectory(prefix="pareflow-") as scratch:
        options.profile_file_prefix = str(Path(scratch) / "profile")
        path = folder / network.FILES["onnx"]
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        inputs = {node.name for node in session.get_inputs()}
        for _ in range(1 + requests):
            session.run(None, {name: array for name, array in feeds.items() if name in inputs})
        events = json.loads(Path(session.end_profiling()).read_text())
    runs = sorted(event["ts"] for event in events if event["name"] == "model_run")
    return [event for event in events if event.get("ph") == "X" and event["ts"] >= runs[1]]


def _is_node(event: Mapping[str, Any]) -> bool:
    return event.get("cat") == "Node" and str(event["name"]).endswith("_kernel_time")


def _totals(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`flops` and `bytes` of a request, and the share of the operators' time whose flops are counted."""
    counted = [row for row in rows if row["flops"] is not None]
    moved = [row["bytes"] for row in rows if row["bytes"] is not None]
    return {
        "flops": sum(row["flops"] for row in counted) if counted else None,
        "bytes": sum(moved) if moved else None,
        "counted_share": sum(row["share"] for row in counted),
    }


def _openvino(folder: Path, feeds: Arrays, threads: int) -> dict[str, Any]:
    """Layers have no start and no duration of one request: their means are laid end to end in the last."""
    settings = {
        "PERF_COUNT": True,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # the default is bf16 where the processor has it
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    compiled = network.openvino_core().compile_model(folder / network.FILES["onnx"], "CPU", settings)
    request = compiled.create_infer_request()
    inputs = {name for port in compiled.inputs for name in port.names}
    given = {name: array for name, array in feeds.items() if name in inputs}
    request.infer(given)
    first = _mean_us(request)
    events: list[Event] = []
    for _ in range(REQUESTS):
        began = time.perf_counter_ns() / 1000
        request.infer(given)
        events.append(_event("infer", began, time.perf_counter_ns() / 1000 - began))
    layers = [layer for layer in request.get_profiling_info() if layer.status.name == "EXECUTED"]
    took = [_without_first(_us(layer), first.get(layer.node_name, 0)) for layer in layers]
    calls = [(layer.node_type, us / 1000) for layer, us in zip(layers, took, strict=True)]
    return {
        "operators": ranked(_times(calls * REQUESTS)),
        "events": events + _end_to_end(layers, took, events[-1]["ts"]),
    }


def _mean_us(request: Any) -> dict[str, float]:
    return {layer.node_name: _us(layer) for layer in request.get_profiling_info()}


def _us(layer: Any) -> float:
    return float(layer.real_time.total_seconds() * 1e6)


def _without_first(mean: float, first: float) -> float:
    """The mean of the last `REQUESTS`: OpenVINO's counter is the mean of all since compilation, in whole µs.

    The first request is several times slower, and would weigh on every mean that holds it.
    """
    return max(0.0, ((REQUESTS + 1) * mean - first) / REQUESTS)


def _end_to_end(layers: Sequence[Any], took: Sequence[float], start: float) -> list[Event]:
    told = {"start": "not measured", "dur": f"mean of {REQUESTS} requests"}
    events = []
    for layer, us in zip(layers, took, strict=True):
        events.append(
            _event(layer.node_name, start, us, layer.node_type, {"kernel": layer.exec_type, **told})
        )
        start += us
    return events


def _event(
    name: str, start: float, took: float, kind: str = "request", told: Mapping[str, str] | None = None
) -> Event:
    return {
        "ph": "X",
        "name": name,
        "cat": kind,
        "ts": start,
        "dur": took,
        "tid": 1,
        "args": dict(told or {}),
    }


PROFILERS: dict[str, Callable[[Path, Arrays, int], dict[str, Any]]] = {
    "onnxruntime": _onnxruntime,
    "torch": _torch,
    "openvino": _openvino,
}


def _times(calls: Any) -> dict[str, tuple[float, int]]:
    """Name -> ms of all its calls, and their number."""
    times: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for name, ms in calls:
        total, count = times[name]
        times[name] = (total + ms, count + 1)
    return times


def ranked(times: Mapping[str, tuple[float, int]], top: int | None = TOP) -> list[dict[str, Any]]:
    """Name, ms and calls per request, and share of all; the first `top`."""
    total = sum(ms for ms, _ in times.values()) or 1.0
    order = sorted(times.items(), key=lambda item: -item[1][0])
    return [
        {"name": name, "ms": ms / REQUESTS, "share": ms / total, "calls": round(calls / REQUESTS)}
        for name, (ms, calls) in order[:top]
    ]
