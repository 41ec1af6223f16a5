"""Core ML, for Apple's devices, in a worker environment."""

import sys
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from pareflow import network
from pareflow.compiler.worker import WorkerBackend, WorkerSession
from pareflow.errors import EnvironmentUnfitError

ONLY = "Core ML predicts only on macOS; elsewhere networks are converted and their packages checked"


class CoreMl(WorkerBackend):
    """Convert the network to a Core ML package (mlprogram), which macOS and iOS run.

    Converting and checking work on Linux too: the package is read back, its inputs and outputs must be called
    as the network's, and its weights must have the size that `precision` makes of them. Shapes are fixed at
    those of the workload's example. Prediction: not measured, no macOS was at hand.

    Source: coremltools 9, "Convert PyTorch", "Typed Execution", and "Optimizing Weights".
    """

    name: ClassVar[str] = "coreml"
    form: ClassVar[network.Form] = "exported"
    runtime: ClassVar[tuple[str, ...]] = ("coremltools",)

    precision: Literal["float32", "float16", "int8_weights"] = Field(
        default="float16", description="of weights and products; int8_weights: products in float16"
    )
    batch_size: int = Field(default=1, ge=1, description="samples that the executable takes at once")

    @classmethod
    def unavailable(cls) -> str | None:
        return super().unavailable() if sys.platform == "darwin" else ONLY

    def load(self, artifact: Path) -> WorkerSession:
        """As of every backend. Raises: EnvironmentUnfitError off macOS."""
        if sys.platform != "darwin":
            raise EnvironmentUnfitError(
                "Core ML predictions must be asked for on macOS",
                f"this is {sys.platform}",
                f"Take {artifact} to a Mac or an iPhone",
            )
        return super().load(artifact)
