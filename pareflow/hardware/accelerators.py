"""What a CUDA device can be asked for, as typed settings, and what each of them needs."""

from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator

from pareflow.hardware import probe

Capability = tuple[int, int]
Precision = Literal["float32", "tf32", "float16", "bfloat16", "float8", "int8"]

TENSOR_CORES: dict[Precision, Capability] = {
    "float16": (7, 0),
    "int8": (7, 2),
    "tf32": (8, 0),
    "bfloat16": (8, 0),
    "float8": (8, 9),
}
"""The first compute capability whose tensor cores multiply in a precision; all later ones do too.

Source: NVIDIA, "TensorRT support matrix", Hardware and Precision; "CUDA C++ programming guide", Compute
Capabilities. The GTX 16 series says 7.5 and has none.
"""

NO_DEVICE = "there is no CUDA device"


@dataclass(frozen=True, slots=True)
class Device:
    """A CUDA device: its name, its compute capability, and its memory in MiB."""

    name: str
    capability: Capability
    memory_mib: int

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What its tensor cores multiply in."""
        return precisions(self.capability)


def device(index: int = 0) -> Device | None:
    """The CUDA device that torch sees at `index`, or None."""
    import torch

    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        return None
    found = torch.cuda.get_device_properties(index)
    return Device(found.name, (found.major, found.minor), found.total_memory // 2**20)


def precisions(capability: Capability) -> tuple[Precision, ...]:
    """What tensor cores of this compute capability multiply in, the widest number first."""
    order: tuple[Precision, ...] = ("tf32", "bfloat16", "float16", "float8", "int8")
    return tuple(precision for precision in order if capability >= TENSOR_CORES[precision])


def lacking(precision: Precision, capability: Capability | None) -> str | None:
    """Why products in this precision run on no tensor core here, or None; `float32` needs none."""
    if capability is None:
        return NO_DEVICE
    needed = TENSOR_CORES.get(precision, (0, 0))
    if capability >= needed:
        return None
    return (
        f"compute capability {_said(needed)} or later is needed for {precision}, "
        f"this device has {_said(capability)}"
    )


def _said(capability: Capability) -> str:
    return ".".join(map(str, capability))


class Accelerated(BaseModel):
    """Where and how torch computes. What needs a device says so, and is refused on a processor."""

    device: Literal["cpu", "cuda"] = Field(default="cpu", description="whose kernels run")
    precision: Literal["float32", "tf32", "float16", "bfloat16"] = Field(
        default="float32",
        description="of products and convolutions; tf32: fp32 numbers of which 10 bits count",
    )
    cuda_graphs: bool = Field(default=False, description="all kernels of a request launched at once; on CUDA")
    streams: int = Field(default=1, ge=1, description="parts of a batch that run side by side; on CUDA")
    memory_pool: Literal["caching", "expandable", "none"] = Field(
        default="caching",
        description="expandable: one segment that grows; none: asked of the driver each time; on CUDA",
    )

    @model_validator(mode="after")
    def _graphs_or_streams(self) -> Self:
        if self.cuda_graphs and self.streams > 1:
            raise ValueError("`cuda_graphs` must go with one stream: a graph replays as it was captured")
        if self.cuda_graphs and self.memory_pool == "none":
            raise ValueError("`cuda_graphs` must go with a memory pool: a graph keeps its addresses")
        return self

    def device_unfit(self) -> str | None:
        """Why these settings cannot be had here, or None."""
        if self.device == "cuda":
            found = device()
            return lacking(self.precision, found.capability if found else None)
        asked = {
            "cuda_graphs": self.cuda_graphs,
            "streams": self.streams > 1,
            "memory_pool": self.memory_pool != "caching",
            "precision: tf32": self.precision == "tf32",
        }
        wanting = next((setting for setting, given in asked.items() if given), None)
        return f"`{wanting}` needs `device: cuda`" if wanting else _processor_unfit(self.precision)


def _processor_unfit(precision: Precision) -> str | None:
    if precision == "float16":
        return "fp16 products on a processor are far slower than fp32"
    if precision == "bfloat16" and not probe.has_bf16():
        return "this processor has no bf16 instructions"
    return None
