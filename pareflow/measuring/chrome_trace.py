"""One Chrome trace of all runtimes, which opens in ui.perfetto.dev and chrome://tracing."""

from collections.abc import Mapping, Sequence
from typing import Any

TITLES = {"torch": "PyTorch eager", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


def merged(runtimes: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """`{"traceEvents": […]}`: a process row per runtime, in the order given, all starting at 0 µs.

    The runtimes ran one after the other; only times within a row are comparable to the microsecond.
    Source: Google, "Trace Event Format", complete (X) and metadata (M) events.
    """
    found: list[dict[str, Any]] = []
    for process, (name, events) in enumerate(runtimes.items(), start=1):
        start = min((event["ts"] for event in events), default=0)
        found += [
            _named("process_name", process, name=TITLES.get(name, name)),
            _named("process_sort_index", process, sort_index=process),
            *({**event, "pid": process, "ts": event["ts"] - start} for event in events),
        ]
    return {"traceEvents": found, "displayTimeUnit": "ms"}


def _named(kind: str, process: int, **told: Any) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": 0, "args": told}
