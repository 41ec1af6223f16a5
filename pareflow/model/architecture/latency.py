"""How long a module takes next to another, in the runtime that will serve it."""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from pareflow.network import export_onnx
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    from torch import nn

FILE = "latencies.json"
ROUNDS = 25


class Latencies:
    """Shares of a reference's latency, each measured once: kept in the scratch folder, where there is one.

    With the same file a search goes the same way: what was measured is the one thing that it cannot repeat.
    """

    def __init__(self, reference: "nn.Module", workload: LoadedWorkload, threads: int) -> None:
        self._workload, self._threads = workload, threads
        self._file = None if workload.scratch is None else workload.scratch / FILE
        known = self._file is not None and self._file.exists()
        self.known: dict[str, float] = json.loads(self._file.read_text()) if known and self._file else {}
        self._reference = self._request(reference)

    def share(self, label: str, module: "nn.Module") -> float:
        """A module's median time per the reference's, over single requests in turn."""
        if label not in self.known:
            candidate = self._request(module)
            times = [(_time_s(candidate), _time_s(self._reference)) for _ in range(ROUNDS)]
            ours, theirs = map(median, zip(*times, strict=True))
            self.known[label] = round(ours / theirs, 4)
            self._keep()
        return self.known[label]

    def _keep(self) -> None:
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            making = self._file.with_suffix(".making")
            making.write_text(json.dumps(self.known))
            making.replace(self._file)

    def _request(self, module: "nn.Module") -> Callable[[], Any]:
        """One request of one sample, warmed up; exported as what will serve is."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self._threads, 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            export = getattr(self._workload.definition, "export", export_onnx)
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
