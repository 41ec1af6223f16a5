"""What a device that is not at hand offers: the files of `configs/devices/`."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Precision = Literal["float32", "float16", "bfloat16", "int8"]

Backend = Literal[
    "coreml",
    "executorch",
    "litert",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "torch_compile",
    "torch_eager",
    "tvm",
]
"""Names of the catalog's runtimes. A literal, since hardware lies below the catalog."""

Positive = Annotated[float, Field(gt=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Unit(_Part):
    """One thing that computes: the cores, a graphics processor, a neural engine."""

    name: str = Field(min_length=1)
    gops: dict[Precision, Positive] = Field(
        min_length=1,
        description="10⁹ multiplications and additions per second at most, dense, of all its cores",
    )
    backends: dict[Backend, str] = Field(
        min_length=1,
        description="whose executables run on it, and by what there",
    )


class DeviceProfile(_Part):
    """One kind of device. What its maker does not publish is left out: unknown is None, never 0."""

    name: str = Field(min_length=1)
    memory_mib: Positive = Field(description="memory of the device")
    storage_mib: Positive = Field(description="where files lie")
    cores: int = Field(ge=1, description="of the processor")
    memory_gb_per_s: Positive = Field(description="10⁹ bytes per second from memory at most")
    power_w: Positive | None = Field(default=None, description="what it draws at most, or is capped at")
    units: tuple[Unit, ...] = Field(min_length=1, description="what computes, the strongest first")
    operators: tuple[str, ...] | None = Field(
        default=None, description="the ONNX operators that it runs, where they are limited"
    )
    weights_in_storage: bool = Field(
        default=False, description="whether weights are read where they are stored, and need no memory"
    )
    sources: tuple[str, ...] = Field(min_length=1, description="where each number comes from")

    @property
    def backends(self) -> tuple[str, ...]:
        """The catalog's names of all whose executables run on it, each once, in the order of its units."""
        return tuple(dict.fromkeys(name for unit in self.units for name in unit.backends))

    def units_of(self, backend: str) -> tuple[Unit, ...]:
        """The units that run this backend's executables."""
        return tuple(unit for unit in self.units if backend in unit.backends)
