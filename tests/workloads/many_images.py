"""The tiny images with enough held-out samples to calibrate thresholds on, and a network that may guess."""

from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from pareflow.workload import Arrays, Samples, Split, Splits, Workload

from .images import Images

if TYPE_CHECKING:
    from torch import nn


class ManyImages(Workload):
    """`Images`, of which 1200 samples calibrate and steer; `faint` ones are hard to tell."""

    steps: int = Field(default=40, ge=1, description="training steps")

    def data(self) -> Splits:
        generator = np.random.default_rng(self.seed)
        quadrants = np.arange(1800) % 4
        images = generator.random((1800, 8, 8), dtype=np.float32)
        for image, quadrant in zip(images, quadrants, strict=True):
            row, column = divmod(int(quadrant), 2)
            image[4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += generator.uniform(0.05, 0.6)
        data = Split(images, quadrants)
        return Splits.cut(data, calibration=400, search=800, verdict=100, seed=self.seed)

    def network(self) -> "nn.Module":
        return Images(seed=self.seed).network()

    def train(self, network: "nn.Module", data: Split) -> "nn.Module":
        return Images(seed=self.seed, steps=self.steps).train(network, data)

    def preprocess(self, samples: Samples) -> Arrays:
        return Images().preprocess(samples)

    def postprocess(self, outputs: Arrays) -> np.ndarray:
        return Images().postprocess(outputs)
