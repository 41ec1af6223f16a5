"""How long a module takes next to another, in the runtime that will serve it."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from pareflow.model.timings import Timings
from pareflow.network import export
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    from torch import nn

ROUNDS = 25


class Latencies:
    """Shares of a reference's latency, each measured once."""

    def __init__(self, reference: "nn.Module", workload: LoadedWorkload, threads: int) -> None:
        self._workload, self._threads = workload, threads
        self._timings = Timings(workload)
        self._reference = self._request(reference)

    def share(self, label: str, module: "nn.Module") -> float:
        """A module's median time per the reference's, over single requests in turn."""
        return self._timings.of(label, lambda: self._measured(module))

    def _measured(self, module: "nn.Module") -> float:
        candidate = self._request(module)
        times = [(_time_s(candidate), _time_s(self._reference)) for _ in range(ROUNDS)]
        ours, theirs = map(median, zip(*times, strict=True))
        return float(round(ours / theirs, 4))

    def _request(self, module: "nn.Module") -> Callable[[], Any]:
        """One request of one sample, warmed up; exported as what will serve is."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            export(module, self._workload, path)
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        taken = {node.name for node in session.get_inputs()}
        feeds = {name: array for name, array in self._workload.example(1).items() if name in taken}
        for _ in range(3):
            session.run(None, feeds)
        return lambda: session.run(None, feeds)


def _time_s(request: Callable[[], Any]) -> float:
    started = time.perf_counter()
    request()
    return time.perf_counter() - started
