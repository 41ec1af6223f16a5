"""Noise of 8×8 pixels from 0 to 255, told apart by a network that was never trained."""

from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from pareflow.workload import Arrays, Samples, Split, Splits, Workload

from .images import Images

if TYPE_CHECKING:
    from torch import nn

NAMES = np.array(["north", "east", "south", "west"])


class WholeImages(Workload):
    """Predictions are the names of classes, the scores of every other one, or positions in a list."""

    answers: Literal["names", "scores", "list"] = Field(default="names", description="what a prediction is")

    def data(self) -> Splits:
        generator = np.random.default_rng(self.seed)
        data = Split(generator.integers(0, 256, (200, 8, 8), dtype=np.uint8), np.arange(200) % 4)
        return Splits.cut(data, calibration=40, search=40, verdict=40, seed=self.seed)

    def network(self) -> "nn.Module":
        return Images(seed=self.seed).network()

    def train(self, network: "nn.Module", data: Split) -> "nn.Module":
        return network

    def preprocess(self, samples: Samples) -> Arrays:
        return {"images": np.asarray(samples, dtype=np.float32)[:, None] / 255}

    def postprocess(self, outputs: Arrays) -> np.ndarray:
        scores = outputs["output"]
        if self.answers == "list":
            return scores.argmax(axis=1).tolist()  # type: ignore[no-any-return]
        return scores[:, ::2] if self.answers == "scores" else NAMES[scores.argmax(axis=1)]
