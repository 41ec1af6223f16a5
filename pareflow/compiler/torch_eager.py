"""PyTorch as it is: the null member of the family, and the control."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from pareflow import network
from pareflow.compiler.backend import Backend
from pareflow.compiler.on_torch import HALVES, called, from_torch, prepare, to_torch
from pareflow.hardware.accelerators import Accelerated
from pareflow.measurement import Ran
from pareflow.workload import Arrays

if TYPE_CHECKING:
    import torch

    from pareflow.compiler.on_torch import Tensors


class TorchEager(Accelerated, Backend):
    """Run the torch module itself, operator by operator.

    In a half precision its weights and float inputs are cast as they are loaded.
    On CUDA, an H200: all settings computed what the processor does; CUDA graphs gave 5.6 times on a small
    network of batch 1, two streams half of one's speed (measured, `bench/gpu.py`).
    """

    name: ClassVar[str] = "torch_eager"
    form: ClassVar[network.Form] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch",)

    channels_last: bool = Field(
        default=False, description="channels lie innermost, as convolutions like them"
    )

    def unfit(self) -> str | None:
        return self.device_unfit()

    def compile(self, source: Path, into: Path) -> None:
        shutil.copy2(source / network.FILES["torch"], into)

    def load(self, artifact: Path) -> "TorchSession":
        prepare(self, self.threads)
        return TorchSession(artifact, self)


class TorchSession:
    """A module in eval mode under `torch.inference_mode`."""

    def __init__(self, artifact: Path, settings: TorchEager) -> None:
        import torch

        self._module, self._settings = network.load("torch", artifact).to(settings.device), settings
        self._dtype = getattr(torch, settings.precision) if settings.precision in HALVES else None
        if self._dtype:
            self._module.to(self._dtype)
        if settings.channels_last:
            self._module.to(memory_format=torch.channels_last)
        self.call = called(self._forward, settings)

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        import torch

        with torch.inference_mode():
            return from_torch(self.call(to_torch(feeds, self._settings.device)))

    def _forward(self, feeds: "Tensors") -> "Tensors":
        given = self._module(*map(self._laid, feeds.values()))
        named: Any = network.name_outputs(given, lambda tensor: tensor)  # tensors, as they are
        return named  # type: ignore[no-any-return]

    def _laid(self, tensor: "torch.Tensor") -> "torch.Tensor":
        """An input in the module's precision and layout."""
        import torch

        if self._dtype and tensor.is_floating_point():
            tensor = tensor.to(self._dtype)
        if self._settings.channels_last and tensor.dim() == 4:
            tensor = tensor.contiguous(memory_format=torch.channels_last)
        return tensor

    def ran(self) -> Ran:
        import torch

        parameter = next(self._module.parameters(), torch.empty(0))
        return Ran(
            "torch",
            torch.__version__,
            "tf32" if self._settings.precision == "tf32" else str(parameter.dtype).removeprefix("torch."),
            str(parameter.device),
            torch.get_num_threads(),
        )
