"""PyTorch as it is: the null member of the family, and the control."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from pareflow import network
from pareflow.compiler.backend import Backend
from pareflow.measurement import Ran
from pareflow.workload import Arrays


class TorchEager(Backend):
    """Run the torch module itself, operator by operator."""

    name: ClassVar[str] = "torch_eager"
    form: ClassVar[network.Form] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch",)

    device: Literal["cpu", "cuda"] = Field(default="cpu", description="where the module lies")

    def unfit(self) -> str | None:
        if self.device == "cpu":
            return None
        import torch

        return None if torch.cuda.is_available() else "there is no CUDA device"

    def compile(self, source: Path, into: Path) -> None:
        shutil.copy2(source / network.FILES["torch"], into)

    def load(self, artifact: Path) -> "TorchSession":
        import torch

        torch.set_num_threads(self.threads)
        return TorchSession(artifact, self.threads, self.device)


class TorchSession:
    """A module in eval mode under `torch.inference_mode`."""

    def __init__(self, artifact: Path, threads: int, device: str = "cpu") -> None:
        self._network = network.load("torch", artifact).to(device)
        self._threads = threads

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        return network.run_torch(self._network, dict(feeds))

    def ran(self) -> Ran:
        import torch

        parameter = next(self._network.parameters(), torch.empty(0))
        return Ran(
            "torch",
            torch.__version__,
            str(parameter.dtype).removeprefix("torch."),
            str(parameter.device),
            torch.get_num_threads(),
        )
