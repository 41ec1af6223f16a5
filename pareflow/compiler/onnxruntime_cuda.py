"""ONNX Runtime's CUDA execution provider: its settings as it takes them."""

import contextlib
import platform
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, Field

from pareflow.errors import UnsuitableError
from pareflow.hardware import accelerators

_X86_64 = ("x86_64", "AMD64")
ROUNDED = "rounded"
"""The precision of a graph that is rounded to int8 and whose operators take floats all the same."""
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class CudaProvider(BaseModel):
    """Where ONNX Runtime computes, and how on a CUDA device.

    Source: ONNX Runtime, "CUDA execution provider", Configuration options.
    """

    device: Literal["cpu", "cuda"] = Field(default="cpu", description="whose kernels run")
    tf32: bool = Field(default=False, description="fp32 products on tensor cores, 10 bits counting; on CUDA")
    conv_search: Literal["exhaustive", "heuristic", "default"] = Field(
        default="exhaustive", description="how cuDNN chooses a convolution when a shape is new; on CUDA"
    )
    memory_limit_mib: int | None = Field(default=None, ge=1, description="of the memory pool; on CUDA")
    cuda_graphs: bool = Field(
        default=False, description="all kernels of a request launched at once; on CUDA, all operators there"
    )

    def providers(self) -> list[Any]:
        """As `InferenceSession` takes them."""
        cpu = PROVIDERS["cpu"]
        return [cpu] if self.device == "cpu" else [(PROVIDERS["cuda"], self.provider_options()), cpu]

    def provider_options(self) -> dict[str, str]:
        """The CUDA provider's options. It takes TF32 unless it is told not to; here fp32 is fp32."""
        options = {
            "use_tf32": str(int(self.tf32)),
            "cudnn_conv_algo_search": self.conv_search.upper(),
            "enable_cuda_graph": str(int(self.cuda_graphs)),
        }
        limit = self.memory_limit_mib
        return options if limit is None else {**options, "gpu_mem_limit": str(limit * 2**20)}

    @contextlib.contextmanager
    def captured(self) -> Iterator[None]:
        """Around the making of a session. Raises: UnsuitableError for a graph that cannot be captured."""
        from onnxruntime.capi.onnxruntime_pybind11_state import Fail

        try:
            yield
        except Fail as error:
            if not self.cuda_graphs or "graph capture" not in str(error):
                raise
            raise UnsuitableError(
                "`cuda_graphs` must have every operator on the device",
                "ONNX Runtime leaves some of this graph to the processor",
                "Switch `cuda_graphs` off, or take torch_eager, which captures all that torch launches",
            ) from error

    def computed(self, precision: str) -> tuple[str, str]:
        """What a graph of this precision computes in, and a note where it is not what the graph says.

        Of fp16 the CPU provider has no products on x86-64: its profile shows fp32 kernels between casts.
        Source: ONNX Runtime, "Quantize ONNX models", Quantization on GPU: int8 needs TensorRT.
        """
        if self.device == "cpu":
            if precision == ROUNDED:
                return "float32", (
                    "rounded to int8, computed in fp32: Q/DQ pairs become integer operators from "
                    "`graph_level: extended` on"
                )
            if precision == "float16" and platform.machine() in _X86_64:
                return "float32", "an fp16 graph; the CPU provider computes it in fp32"
            return precision, ""
        fp32 = "tf32" if self.tf32 else "float32"
        if precision in ("int8", ROUNDED):
            return fp32, "rounded to int8, computed in fp32: the CUDA provider has no int8 products"
        return (fp32 if precision == "float32" else precision), ""

    def provider_unfit(self) -> str | None:
        """Why these settings cannot be had here, or None."""
        if self.device == "cuda":
            found = accelerators.device()
            if found is None:  # torch may be built without CUDA where ONNX Runtime is not
                return None
            return accelerators.lacking("tf32" if self.tf32 else "float32", found.capability)
        plain = CudaProvider()
        changed = [name for name in CudaProvider.model_fields if getattr(self, name) != getattr(plain, name)]
        return f"`{changed[0]}` needs `device: cuda`" if changed else None
