"""Noise of 8×8 pixels in which one quadrant is brighter: four classes."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from pareflow.workload import Arrays, Samples, Split, Splits, Workload

if TYPE_CHECKING:
    from torch import nn


class Images(Workload):
    """Which quadrant is brighter; the tiny convolutional network learns it in 40 steps."""

    metric: ClassVar[str] = "accuracy"

    steps: int = Field(default=40, ge=1, description="training steps, each on the whole training split")

    def data(self) -> Splits:
        generator = np.random.default_rng(self.seed)
        quadrants = np.arange(1000) % 4
        images = generator.random((1000, 8, 8), dtype=np.float32)
        for image, quadrant in zip(images, quadrants, strict=True):
            row, column = divmod(int(quadrant), 2)
            image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 0.4
        return Splits.cut(Split(images, quadrants), calibration=40, search=100, verdict=400, seed=self.seed)

    def network(self) -> "nn.Module":
        import torch

        from .networks import TinyCnn

        torch.manual_seed(self.seed)
        return TinyCnn()

    def students(self) -> "dict[str, Callable[[], nn.Module]]":
        from .networks import TinyCnn

        return {"narrow": lambda: TinyCnn(2)}

    def train(self, network: "nn.Module", data: Split) -> "nn.Module":
        import torch
        from torch.nn.functional import cross_entropy

        torch.manual_seed(self.seed)
        images = torch.from_numpy(self.preprocess(data.samples)["images"])
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
        for _ in range(self.steps):
            loss = cross_entropy(network(images), torch.from_numpy(data.labels()))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return network

    def preprocess(self, samples: Samples) -> Arrays:
        return {"images": np.asarray(samples, dtype=np.float32)[:, None]}

    def postprocess(self, outputs: Arrays) -> np.ndarray:
        predictions: np.ndarray = outputs["output"].argmax(axis=1)
        return predictions

    def given(self) -> dict[str, Path]:
        return {path.stem.partition("-")[0]: path for path in self.folder.glob("simple-images.onnx")}
