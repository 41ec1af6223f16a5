"""ONNX Runtime: on processors the strong baseline, and the backend of most variants."""

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pareflow import graph_file, network
from pareflow.compiler import packed_onnx
from pareflow.compiler.backend import Backend, place
from pareflow.compiler.graph_passes import Pass, switched_off
from pareflow.compiler.onnxruntime_cuda import PROVIDERS, ROUNDED, CudaProvider
from pareflow.compiler.onnxruntime_session import BoundSession, FixedSession, OnnxRuntimeSession
from pareflow.compiler.paged import Paged
from pareflow.errors import EnvironmentUnfitError

GraphLevel = Literal["none", "basic", "extended", "layout", "all"]
_LEVELS: dict[GraphLevel, str] = {
    "none": "ORT_DISABLE_ALL",
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "layout": "ORT_ENABLE_LAYOUT",
    "all": "ORT_ENABLE_ALL",
}
_WEIGHTS = "session.optimized_model_external_initializers_file_name"
"""ONNX Runtime's key for the file of a saved graph's weights, beside it."""


class OnnxRuntime(CudaProvider, Paged, Backend):
    """Run the ONNX graph, optimized to `graph_level`.

    Threads do not spin between requests unless asked to: spinning burns a second core and slows neighbours.
    Packed, the file is as small as the entropy of its weights lets it be, and takes longer to load; what runs
    is the same, bit for bit. Saved, the graph is optimized when it is compiled, for this processor, and not
    at each load.
    On CUDA, an H200: of resnet18's 64 images TF32 gives 1.49 times fp32's speed, copies from and to the host
    counted; CUDA graphs give 2.5 times on a small network of batch 1 (measured, `bench/gpu.py`).
    """

    name: ClassVar[str] = "onnxruntime"
    form: ClassVar[network.Form] = "onnx"
    requires: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    graph_level: GraphLevel = Field(default="all", description="how far the graph is optimized")
    without: tuple[Pass, ...] = Field(default=(), description="optimizations that are switched off")
    inter_threads: int = Field(default=1, ge=1, description="operators that run at a time")
    io_binding: bool = Field(default=False, description="bind inputs and outputs, rather than pass them")
    arena: bool = Field(default=True, description="keep memory from one request to the next")
    spinning: bool = Field(default=False, description="threads wait for work in a loop")
    saved: bool = Field(default=False, description="optimized when compiled, not when loaded")
    packed: bool = Field(default=False, description="weights entropy-coded on disk, and decoded at load")

    @model_validator(mode="after")
    def _one_form_on_disk(self) -> Self:
        if self.saved and self.packed:
            raise ValueError("one of `saved` and `packed` must be false: a packed graph is optimized at load")
        return self

    @property
    def prepares_shapes(self) -> bool:
        """On CUDA: the algorithms of convolutions are tried out for each, and graphs captured."""
        return self.device != "cpu"

    def unfit(self) -> str | None:
        import onnxruntime

        missing = PROVIDERS[self.device] not in onnxruntime.get_available_providers()
        absent = f"this onnxruntime has no {PROVIDERS[self.device]}" if missing else None
        return absent or self.provider_unfit() or self.pages_unfit()

    def compile(self, source: Path, into: Path) -> None:
        graph = source / network.FILES["onnx"]
        if self.packed:
            packed_onnx.write(graph, into / packed_onnx.FILE)
        elif self.saved:
            options = self._options()
            options.optimized_model_filepath = str(into / graph.name)
            if graph_file.external_files(graph):  # else the saved graph would look for them beside itself
                options.add_session_config_entry(_WEIGHTS, f"{graph.name}.data")
            self._session(graph, options)
        else:
            for file in source.glob("model.onnx*"):
                place(file, into)
        (into / "precision").write_text(self._precision(graph))

    def _precision(self, graph: Path) -> str:
        """That of the graph, or `ROUNDED` where this level leaves its Q/DQ pairs around float operators."""
        precision = precision_of(graph)
        left = self.graph_level in ("none", "basic") and graph_file.only_rounds(graph)
        return ROUNDED if precision == "int8" and left else precision

    def load(self, artifact: Path) -> "OnnxRuntimeSession":
        import onnxruntime

        options = self._options()
        if self.saved:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        graph: Path | bytes = artifact / network.FILES["onnx"]
        values: list[Any] = []  # the runtime copies them when the session is made: till then they must live
        if self.packed:
            graph, arrays = packed_onnx.read(artifact / packed_onnx.FILE)
            values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
            options.add_external_initializers(list(arrays), values)
        session = self._session(graph, options)
        precision, notes = self.computed((artifact / "precision").read_text())
        notes = "; ".join(filter(None, (notes, self.paged())))
        if self.cuda_graphs:
            return FixedSession(session, self.threads, precision, notes)
        kind = BoundSession if self.io_binding else OnnxRuntimeSession
        return kind(session, self.threads, precision, notes)

    def _options(self) -> Any:
        """`SessionOptions` as the settings say."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(
            onnxruntime.GraphOptimizationLevel, _LEVELS[self.graph_level]
        )
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = self.inter_threads
        if self.inter_threads > 1:
            options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
        options.enable_cpu_mem_arena = self.arena
        options.enable_mem_pattern = options.enable_mem_reuse = "planning" not in self.without
        for pool in ("intra", "inter"):
            options.add_session_config_entry(f"session.{pool}_op.allow_spinning", str(int(self.spinning)))
        options.log_severity_level = 3
        return options

    def _session(self, graph: Path | bytes, options: Any) -> Any:
        """Raises: EnvironmentUnfitError where it would have run on the processor instead; UnsuitableError."""
        import onnxruntime

        with self.captured():
            session = onnxruntime.InferenceSession(
                graph,
                options,
                providers=self.providers(),
                disabled_optimizers=switched_off(self.without),
                enable_fallback=0,  # a failure of the device would become the processor's answer
            )
        if PROVIDERS[self.device] not in session.get_providers():
            raise EnvironmentUnfitError(
                f"`device: {self.device}` must run on ONNX Runtime's {PROVIDERS[self.device]}",
                f"it could not be loaded, and {', '.join(session.get_providers())} would run",
                "Install the CUDA and cuDNN that this onnxruntime was built for, or take `device: cpu`",
            )
        return session


def precision_of(path: Path) -> str:
    """The narrowest number type that the graph computes with, from its operators and weights.

    Weights of four bits, of bf16 and of fp8 are unpacked: what computes is fp32, or int8 where that is asked.
    """
    import onnx

    graph = onnx.load_model(path, load_external_data=False).graph
    weights = {initializer.data_type for initializer in graph.initializer}
    if onnx.TensorProto.FLOAT8E4M3FN in weights:
        return "float32"
    if graph_file.quantized(graph) is not None:
        return "int8"
    if any(a.name == "accuracy_level" and a.i == 4 for node in graph.node for a in node.attribute):
        return "int8"
    return "float16" if onnx.TensorProto.FLOAT16 in weights else "float32"
