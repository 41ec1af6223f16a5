"""The images, by a user who has made one mistake."""

import ctypes
import os
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from pareflow.errors import MissingExtraError
from pareflow.workload import Arrays, Samples, Split, Splits, Workload

from .images import Images

if TYPE_CHECKING:
    from torch import nn

Fault = Literal[
    "data raises",
    "data gives nothing",
    "package is missing",
    "split is empty",
    "splits overlap",
    "data is drawn anew",
    "data follows the threads",
    "targets are values",
    "verdict target is missing",
    "verdict sample is missing",
    "samples are bytes",
    "preprocess gives objects",
    "preprocess raises",
    "preprocess gives a bare array",
    "at_length raises",
    "check raises",
    "students raises",
    "network raises",
    "train raises",
    "train segfaults",
    "train gives nan",
    "train gives nothing",
    "network does not export",
    "network does not pickle",
    "postprocess raises",
]


THREADS = 3
"""That training takes where the data follow them."""


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
        if self.fault == "data is drawn anew":
            return self._disturbed(splits, np.random.default_rng())
        if self.fault == "data follows the threads":
            return self._disturbed(splits, np.random.default_rng(int(os.environ["OMP_NUM_THREADS"])))
        if self.fault == "targets are values":
            return replace(splits, search=Split(splits.search.samples, splits.search.labels() + 0.5))
        if self.fault == "verdict target is missing":
            targets = np.where(np.arange(len(splits.verdict)) < 3, np.nan, splits.verdict.labels())
            return replace(splits, verdict=Split(splits.verdict.samples, targets))
        if self.fault == "verdict sample is missing":
            samples = np.array(splits.verdict.samples)
            samples[0] = np.nan
            return replace(splits, verdict=Split(samples, splits.verdict.labels()))
        if self.fault == "samples are bytes":
            return replace(splits, calibration=Split([b"one", b"two"]))  # type: ignore[list-item]
        if self.fault == "split is empty":
            return Splits(splits.train, splits.calibration.take(np.arange(0)), splits.search, splits.verdict)
        if self.fault == "splits overlap":
            return Splits(splits.verdict, splits.calibration, splits.search, splits.verdict)
        return splits

    def _disturbed(self, splits: Splits, generator: np.random.Generator) -> Splits:
        samples = np.asarray(splits.train.samples)
        noise = generator.random(samples.shape, dtype=np.float32) / 1e6
        return replace(splits, train=Split(samples + noise, splits.train.labels()))

    def network(self) -> "nn.Module":
        if self.fault == "network raises":
            raise RuntimeError("no such architecture")
        if self.fault == "network does not export":
            from .networks import EigenNet

            return EigenNet()
        made = super().network()
        if self.fault == "network does not pickle":
            made.register_forward_hook(lambda *given: None)
        return made

    def train(self, network: "nn.Module", data: Split) -> "nn.Module":
        import torch

        if self.fault in ("train raises", "network does not pickle"):
            raise ZeroDivisionError("learning rate")
        if self.fault == "train segfaults":
            ctypes.string_at(0)
        if self.fault == "data follows the threads" and torch.get_num_threads() != THREADS:
            raise RuntimeError(f"on {torch.get_num_threads()} threads")
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
        if self.fault == "preprocess gives objects":
            return {"images": feeds["images"].astype(object)}
        return feeds

    def at_length(self, length: int) -> Workload:
        if self.fault == "at_length raises":
            raise IndexError("no such axis")
        return super().at_length(length)

    def check(self, example: Arrays) -> None:
        if self.fault == "check raises":
            raise KeyError("pixels")
        super().check(example)

    def students(self) -> "dict[str, Callable[[], nn.Module]]":
        if self.fault == "students raises":
            raise NameError("name 'Small' is not defined")
        return super().students()

    def postprocess(self, outputs: Arrays) -> np.ndarray:
        if self.fault == "postprocess raises":
            raise KeyError("logits")
        return super().postprocess(outputs)
