"""ONNX Runtime on the CPU: the strong baseline, and the backend of most variants."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from pareflow import network
from pareflow.compiler import packed_onnx
from pareflow.compiler.backend import Backend
from pareflow.measurement import Ran
from pareflow.workload import Arrays

GraphLevel = Literal["none", "basic", "extended", "layout", "all"]
_LEVELS: dict[GraphLevel, str] = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "layout": "ORT_ENABLE_LAYOUT",
    "all": "ORT_ENABLE_ALL",
}


class OnnxRuntime(Backend):
    """Run the ONNX graph, optimized at load to `graph_level`.

    Threads never spin between requests: spinning burns a second core and slows neighbours (measured,
    facts/serving: 28 ms of processor time per 4.5 ms request). Packed, the file is as small as the entropy of
    its weights lets it be, and takes longer to load; what runs is the same, bit for bit.
    """

    name: ClassVar[str] = "onnxruntime"
    form: ClassVar[network.Form] = "onnx"
    requires: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    graph_level: GraphLevel = Field(default="all", description="how far the graph is optimized")
    packed: bool = Field(default=False, description="weights entropy-coded on disk, and decoded at load")

    def compile(self, source: Path, into: Path) -> None:
        if self.packed:
            packed_onnx.write(source / network.FILES["onnx"], into / packed_onnx.FILE)
        else:
            for file in source.glob("model.onnx*"):
                os.link(file, into / file.name)
        (into / "precision").write_text(_precision(source / network.FILES["onnx"]))

    def load(self, artifact: Path) -> "OnnxRuntimeSession":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(
            onnxruntime.GraphOptimizationLevel, _LEVELS[self.graph_level]
        )
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        graph: Path | bytes = artifact / network.FILES["onnx"]
        values: list[Any] = []  # the runtime copies them when the session is made: till then they must live
        if self.packed:
            graph, arrays = packed_onnx.read(artifact / packed_onnx.FILE)
            values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
            options.add_external_initializers(list(arrays), values)
        session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return OnnxRuntimeSession(session, self.threads, (artifact / "precision").read_text())


class OnnxRuntimeSession:
    """An `InferenceSession`; inputs that the graph does not take are left out."""

    def __init__(self, session: Any, threads: int, precision: str) -> None:
        self._session, self._threads, self._precision = session, threads, precision
        self._inputs = frozenset(node.name for node in session.get_inputs())
        self._outputs = [node.name for node in session.get_outputs()]

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        given = {name: array for name, array in feeds.items() if name in self._inputs}
        return dict(zip(self._outputs, self._session.run(self._outputs, given), strict=True))

    def ran(self) -> Ran:
        import onnxruntime

        provider = self._session.get_providers()[0]
        return Ran(
            "onnxruntime",
            onnxruntime.__version__,
            self._precision,
            provider.removesuffix("ExecutionProvider"),
            self._threads,
        )


def _precision(path: Path) -> str:
    """The narrowest number type that the graph computes with, from its operators and weights.

    Weights of four bits, of bf16 and of fp8 are unpacked: what computes is fp32, or int8 where that is asked.
    """
    import onnx

    graph = onnx.load_model(path, load_external_data=False).graph
    weights = {initializer.data_type for initializer in graph.initializer}
    if onnx.TensorProto.FLOAT8E4M3FN in weights:
        return "float32"
    operators = {node.op_type for node in graph.node}
    if operators & {"QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"}:
        return "int8"
    if any(a.name == "accuracy_level" and a.i == 4 for node in graph.node for a in node.attribute):
        return "int8"
    return "float16" if onnx.TensorProto.FLOAT16 in weights else "float32"
