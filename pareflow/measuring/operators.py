"""Which operators the time of inference goes to, and the Chrome traces that show it."""

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pareflow import network
from pareflow.workload import Arrays

REQUESTS = 20
TOP = 12


def torch_operators(module: Path, feeds: Arrays, trace: Path) -> list[dict[str, Any]]:
    """The operators of a torch module by their own time, slowest first; writes a Chrome trace."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    loaded = network.load("torch", module)
    network.run_torch(loaded, feeds)
    torch.set_num_threads(1)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(REQUESTS):
            network.run_torch(loaded, feeds)
    profiler.export_chrome_trace(str(trace))
    times = {row.key: (row.self_cpu_time_total / 1000, row.count) for row in profiler.key_averages()}
    return _ranked(times)


def onnxruntime_operators(artifact: Path, feeds: Arrays, trace: Path) -> list[dict[str, Any]]:
    """The operators of an ONNX graph at full optimization, slowest first; writes a Chrome trace."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(trace.with_suffix(""))
    session = onnxruntime.InferenceSession(
        artifact / network.FILES["onnx"], options, providers=["CPUExecutionProvider"]
    )
    inputs = {node.name for node in session.get_inputs()}
    for _ in range(REQUESTS):
        session.run(None, {name: array for name, array in feeds.items() if name in inputs})
    shutil.move(session.end_profiling(), trace)
    times: dict[str, tuple[float, int]] = defaultdict(lambda: (0.0, 0))
    for event in json.loads(trace.read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            total, count = times[event["args"]["op_name"]]
            times[event["args"]["op_name"]] = (total + event["dur"] / 1000, count + 1)
    return _ranked(times)


def _ranked(times: Mapping[str, tuple[float, int]]) -> list[dict[str, Any]]:
    """Name, ms and calls per request, and share of all; the first `TOP`."""
    total = sum(ms for ms, _ in times.values()) or 1.0
    ranked = sorted(times.items(), key=lambda item: -item[1][0])
    return [
        {"name": name, "ms": ms / REQUESTS, "share": ms / total, "calls": round(calls / REQUESTS)}
        for name, (ms, calls) in ranked[:TOP]
    ]
