"""Texts in which `a` or `b` prevails: two classes, two inputs, and a metric that is no mean of scores."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pareflow.workload import Arrays, Samples, Split, Splits, Workload

if TYPE_CHECKING:
    from torch import nn

LENGTH = 12


class Texts(Workload):
    """Whether a text has more `a` than `b`; the tiny transformer learns it in 60 steps."""

    metric: ClassVar[str] = "f1_macro"

    def data(self) -> Splits:
        generator = np.random.default_rng(self.seed)
        letters = generator.choice(list("abcdef"), (2000, LENGTH))
        lengths = generator.integers(6, LENGTH + 1, 2000)
        words = ("".join(row[:length]) for row, length in zip(letters, lengths, strict=True))
        texts = [text for text in dict.fromkeys(words) if text.count("a") != text.count("b")][:800]
        targets = np.asarray([int(text.count("a") > text.count("b")) for text in texts])
        return Splits.cut(Split(texts, targets), calibration=40, search=100, verdict=300, seed=self.seed)

    def network(self) -> "nn.Module":
        import torch

        from .networks import TinyTransformer

        torch.manual_seed(self.seed)
        return TinyTransformer()

    def students(self) -> "dict[str, Callable[[], nn.Module]]":
        from .networks import TinyTransformer

        return {"narrow": lambda: TinyTransformer(8)}

    def train(self, network: "nn.Module", data: Split) -> "nn.Module":
        import torch
        from torch.nn.functional import cross_entropy

        torch.manual_seed(self.seed)
        inputs = [torch.from_numpy(array) for array in self.preprocess(data.samples).values()]
        optimizer = torch.optim.Adam(network.parameters(), lr=2e-2)
        for _ in range(60):
            loss = cross_entropy(network(*inputs), torch.from_numpy(data.labels()))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        return network

    def preprocess(self, samples: Samples) -> Arrays:
        """Letters count from 1; 0 fills up."""
        ids = np.zeros((len(samples), LENGTH), dtype=np.int64)
        for row, text in zip(ids, samples, strict=True):
            row[: len(text)] = [ord(letter) - ord("a") + 1 for letter in text]
        return {"ids": ids, "mask": (ids > 0).astype(np.int64)}

    def postprocess(self, outputs: Arrays) -> np.ndarray:
        predictions: np.ndarray = outputs["output"].argmax(axis=1)
        return predictions

    def class_names(self) -> tuple[str, ...]:
        return ("b prevails", "a prevails")

    def given(self) -> dict[str, Path]:
        return {path.stem.partition("-")[0]: path for path in self.folder.glob("simple-texts.onnx")}
