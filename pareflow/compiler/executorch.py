"""ExecuTorch, PyTorch's runtime for devices, with XNNPACK, in a worker environment."""

from typing import ClassVar, Literal

from pydantic import Field

from pareflow import network
from pareflow.compiler.worker import WorkerBackend


class ExecuTorch(WorkerBackend):
    """Run the network as an ExecuTorch program, through XNNPACK where it has the operator.

    Shapes are fixed at those of the workload's example, and the batch at `batch_size`: larger batches are
    answered piece by piece. What XNNPACK lacks runs in portable kernels, which are slow: how many operators
    it took is recorded in the notes of what ran.

    Source: ExecuTorch, "XNNPACK Backend", sections "Quantization" and "Partitioner".
    """

    name: ClassVar[str] = "executorch"
    form: ClassVar[network.Form] = "exported"
    runtime: ClassVar[tuple[str, ...]] = ("executorch", "torch")

    precision: Literal["float32", "dynamic_int8", "static_int8"] = Field(
        default="float32",
        description="of weights and products; dynamic: scales of activations anew for each request; static: "
        "scales from calibration samples",
    )
    batch_size: int = Field(default=1, ge=1, description="samples that the executable takes at once")

    @property
    def mixes_samples(self) -> bool:
        return self.precision == "dynamic_int8"  # of what XNNPACK does not take
