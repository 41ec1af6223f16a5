"""LiteRT (once TensorFlow Lite) with XNNPACK, in a worker environment."""

from typing import ClassVar, Literal

from pydantic import Field

from pareflow import network
from pareflow.compiler.worker import WorkerBackend


class LiteRt(WorkerBackend):
    """Run the network as a LiteRT flatbuffer, through XNNPACK where it has the operator.

    A flatbuffer's shapes are fixed: this one's are those of the workload's example, and its batch is
    `batch_size`. Larger batches are answered piece by piece, a last short piece filled up by repetition.
    (Left open, axes fail in litert-torch 0.10 at the first reshape.) Integer inputs become int32.

    Source: LiteRT, "Convert PyTorch models to LiteRT", and ai-edge-quantizer, recipes `dynamic_wi8_afp32`
    and `static_wi8_ai8`.
    """

    name: ClassVar[str] = "litert"
    form: ClassVar[network.Form] = "exported"
    runtime: ClassVar[tuple[str, ...]] = ("ai-edge-litert",)

    precision: Literal["float32", "dynamic_int8", "static_int8"] = Field(
        default="float32",
        description="of weights and products; dynamic: scales of activations anew for each request; static: "
        "scales from calibration samples",
    )
    batch_size: int = Field(default=1, ge=1, description="samples that the executable takes at once")
