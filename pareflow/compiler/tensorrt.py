"""TensorRT, through ONNX Runtime's provider of it. Not measured: no such library or device was at hand."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from pareflow import network
from pareflow.compiler.backend import Backend, place
from pareflow.compiler.onnxruntime import precision_of
from pareflow.compiler.onnxruntime_session import OnnxRuntimeSession
from pareflow.errors import EnvironmentUnfitError, UnsuitableError
from pareflow.hardware import accelerators
from pareflow.measurement import Ran

if TYPE_CHECKING:
    import onnx

PROVIDER = "TensorrtExecutionProvider"
FACTS = "compiled.json"
"""Beside the graph: what building the engine cost, and the axes it was built for."""


class TensorRt(Backend):
    """Run the engines that TensorRT builds of the graph when it is compiled; CUDA runs what it cannot.

    An engine belongs to its device and to TensorRT's version: elsewhere it is built anew at the first load.
    int8 is that of graphs with Q/DQ nodes: their scales are taken, and none is calibrated. Below that fp32
    numbers are multiplied as TF32 where tensor cores can. Not measured: no such device was at hand.
    Source: ONNX Runtime, "TensorRT execution provider", Configuration options, and Shape inference of
    TensorRT subgraphs; "Explicit shape range for dynamic shape input".
    """

    name: ClassVar[str] = "tensorrt"
    form: ClassVar[network.Form] = "onnx"
    requires: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    precision: Literal["float32", "float16", "bfloat16", "int8"] = Field(
        default="float32", description="the narrowest that layers may compute in"
    )
    batch_size: int = Field(default=1, ge=1, description="the batch that the engine is tuned for")
    largest_batch: int = Field(default=64, ge=1, description="the largest batch that the engine takes")
    length: int = Field(default=128, ge=1, description="the largest size of every other axis that varies")
    workspace_mib: int = Field(
        default=1024, ge=1, description="memory that one layer may use beside its data"
    )
    level: int = Field(default=3, ge=0, le=5, description="how long kernels are searched for")
    cuda_graphs: bool = Field(default=False, description="all kernels of a request launched at once")

    def gpus(self) -> int:
        return 1

    @classmethod
    def unavailable(cls) -> str | None:
        absent = super().unavailable()
        if absent:
            return absent
        import onnxruntime

        missing = PROVIDER not in onnxruntime.get_available_providers()
        return f"this onnxruntime has no {PROVIDER}" if missing else None

    def unfit(self) -> str | None:
        found = accelerators.device()
        return accelerators.lacking(self.precision, found.capability if found else None)

    def compile(self, source: Path, into: Path) -> None:
        for file in source.glob("model.onnx*"):
            place(file, into)
        graph = into / network.FILES["onnx"]
        if self.precision == "int8" and precision_of(graph) != "int8":
            raise UnsuitableError(
                "int8 in TensorRT needs a graph with Q/DQ nodes",
                f"{graph.name} has none",
                "Put static_int8 in front of it, or take float16",
            )
        axes = self.profile(_inputs(graph))
        began = time.monotonic()
        self._session(into, axes)
        (into / FACTS).write_text(json.dumps({"compile_s": time.monotonic() - began, "axes": axes}))

    def load(self, artifact: Path) -> "TensorRtSession":
        facts = json.loads((artifact / FACTS).read_text())
        session = self._session(artifact, facts["axes"])
        return TensorRtSession(
            session, self.threads, self._computed(), f"compiled in {facts['compile_s']:.1f} s"
        )

    def provider_options(self, artifact: Path, axes: Mapping[str, str]) -> dict[str, str]:
        """The provider's options: engine and timings are kept in the artifact."""
        switches = {
            "trt_fp16_enable": self.precision in ("float16", "int8"),
            "trt_bf16_enable": self.precision == "bfloat16",
            "trt_int8_enable": self.precision == "int8",
            "trt_engine_cache_enable": True,
            "trt_timing_cache_enable": True,
            "trt_cuda_graph_enable": self.cuda_graphs,
        }
        return {
            **{name: str(given) for name, given in switches.items()},
            "trt_engine_cache_path": str(artifact),
            "trt_timing_cache_path": str(artifact),
            "trt_max_workspace_size": str(self.workspace_mib * 2**20),
            "trt_builder_optimization_level": str(self.level),
            **axes,
        }

    def profile(self, inputs: Mapping[str, list[int | None]]) -> dict[str, str]:
        """The least, the usual and the largest shape of every input, where any axis varies."""
        if all(size is not None for shape in inputs.values() for size in shape):
            return {}
        sizes = {
            "min": (1, 1),
            "opt": (self.batch_size, self.length),
            "max": (self.largest_batch, self.length),
        }
        return {
            f"trt_profile_{which}_shapes": ",".join(
                f"{name}:{_filled(shape, *varying)}" for name, shape in inputs.items()
            )
            for which, varying in sizes.items()
        }

    def _session(self, artifact: Path, axes: Mapping[str, str]) -> Any:
        """A session, by which engines are built where the artifact has none.

        Without its libraries ONNX Runtime lists the provider all the same, and goes on with another.
        Raises: EnvironmentUnfitError where TensorRT is not the first that runs.
        """
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            artifact / network.FILES["onnx"],
            options,
            providers=[
                (PROVIDER, self.provider_options(artifact, axes)),
                "CUDAExecutionProvider",
                "CPUExecutionProvider",
            ],
            enable_fallback=0,
        )
        if session.get_providers()[0] != PROVIDER:
            raise EnvironmentUnfitError(
                f"`tensorrt` must run on ONNX Runtime's {PROVIDER}",
                f"it could not be loaded, and {', '.join(session.get_providers())} would run",
                "Install the TensorRT (libnvinfer) and CUDA that this onnxruntime was built for",
            )
        return session

    def _computed(self) -> str:
        """TensorRT multiplies fp32 as TF32 where it can, and ONNX Runtime has no switch for that."""
        found = accelerators.device()
        tf32 = found is not None and "tf32" in found.precisions
        return "tf32" if tf32 and self.precision == "float32" else self.precision


class TensorRtSession(OnnxRuntimeSession):
    """As ONNX Runtime's; which provider is the first is read back."""

    def ran(self) -> Ran:
        import onnxruntime

        first = self._session.get_providers()[0]
        device = "cuda:0" if first in (PROVIDER, "CUDAExecutionProvider") else "cpu"
        return Ran(first, onnxruntime.__version__, self._precision, device, self._threads, self._notes)


def _inputs(path: Path) -> dict[str, list[int | None]]:
    """The shape of each input, None where an axis varies."""
    import onnx

    graph = onnx.load_model(path, load_external_data=False).graph
    weights = {weight.name for weight in graph.initializer}
    return {
        node.name: [*map(_size, node.type.tensor_type.shape.dim)]
        for node in graph.input
        if node.name not in weights
    }


def _size(axis: "onnx.TensorShapeProto.Dimension") -> int | None:
    return axis.dim_value if axis.HasField("dim_value") else None


def _filled(shape: list[int | None], batch: int, length: int) -> str:
    sizes = [batch if place == 0 else length for place in range(len(shape))]
    return "x".join(
        str(varying if size is None else size) for size, varying in zip(shape, sizes, strict=True)
    )
