"""The images, by a user who has made one mistake."""

import ctypes
from typing import TYPE_CHECKING, Literal

import numpy as np

from pareflow.errors import MissingExtraError
from pareflow.workload import Arrays, Samples, Split, Splits

from .images import Images

if TYPE_CHECKING:
    from torch import nn

Fault = Literal[
    "data raises",
    "data gives nothing",
    "package is missing",
    "split is empty",
    "splits overlap",
    "preprocess raises",
    "preprocess gives a bare array",
    "network raises",
    "train raises",
    "train segfaults",
    "train gives nan",
    "train gives nothing",
    "network does not export",
    "postprocess raises",
]


class Faulty(Images):
    fault: Fault
    steps: int = 1

    def data(self) -> Splits:
        if self.fault == "data raises":
            raise FileNotFoundError("images.csv")
        if self.fault == "package is missing":
            raise MissingExtraError("pillow must be installed", "it is not", "Run `pip install pillow`")
        if self.fault == "data gives nothing":
            return None  # type: ignore[return-value]
        splits = super().data()
        if self.fault == "split is empty":
            return Splits(splits.train, splits.calibration.take(np.arange(0)), splits.search, splits.verdict)
        if self.fault == "splits overlap":
            return Splits(splits.verdict, splits.calibration, splits.search, splits.verdict)
        return splits

    def network(self) -> "nn.Module":
        if self.fault == "network raises":
            raise RuntimeError("no such architecture")
        if self.fault == "network does not export":
            from .networks import EigenNet

            return EigenNet()
        return super().network()

    def train(self, network: "nn.Module", data: Split) -> "nn.Module":
        if self.fault == "train raises":
            raise ZeroDivisionError("learning rate")
        if self.fault == "train segfaults":
            ctypes.string_at(0)
        if self.fault == "train gives nothing":
            return None  # type: ignore[return-value]
        if self.fault == "train gives nan":
            for parameter in network.parameters():
                parameter.data.fill_(float("nan"))
        return network

    def preprocess(self, samples: Samples) -> Arrays:
        if self.fault == "preprocess raises":
            raise ValueError("not an image")
        feeds = super().preprocess(samples)
        if self.fault == "preprocess gives a bare array":
            return feeds["images"]  # type: ignore[return-value]
        return feeds

    def postprocess(self, outputs: Arrays) -> np.ndarray:
        if self.fault == "postprocess raises":
            raise KeyError("logits")
        return super().postprocess(outputs)
