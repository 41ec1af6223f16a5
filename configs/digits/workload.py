"""scikit-learn's handwritten digits, scaled to 32×32, and a small residual network trained on them.

Copy this file for a model of your own: data, network, training, preprocessing, postprocessing. torch is
imported inside the methods that need it, so that the registered model can run the last two without it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from pareflow.workload import Arrays, Samples, Split, Splits, Workload

if TYPE_CHECKING:
    import torch
    from torch import nn


class Digits(Workload):
    """1,797 grey images of 8×8 pixels, values 0 to 16, in ten classes."""

    metric: ClassVar[str] = "accuracy"

    epochs: int = Field(default=8, ge=1, description="passes over the training split")
    verdict_samples: int = Field(default=700, ge=1, description="images kept for the verdict")

    def data(self) -> Splits:
        """700 images decide, 200 steer the search, 100 calibrate, the other 797 train."""
        from sklearn.datasets import load_digits

        images, digits = load_digits(return_X_y=True)
        data = Split(images.reshape(-1, 8, 8).astype(np.float32), digits.astype(np.int64))
        return Splits.cut(data, calibration=100, search=200, verdict=self.verdict_samples, seed=self.seed)

    def network(self) -> "nn.Module":
        import torch

        from .network import DigitsNet

        torch.manual_seed(self.seed)
        return DigitsNet()

    def students(self) -> "dict[str, Callable[[], nn.Module]]":
        """Half and a quarter as wide."""
        from .network import DigitsNet

        return {"half": lambda: DigitsNet(16), "quarter": lambda: DigitsNet(8)}

    def train(self, network: "nn.Module", data: Split) -> "nn.Module":
        """Adam with a one-cycle rate and small shifts of the images."""
        import torch
        from torch.nn.functional import cross_entropy

        torch.manual_seed(self.seed)
        images = torch.from_numpy(self.preprocess(data.samples)["images"])
        digits = torch.from_numpy(data.labels())
        batch_size = 50
        steps = self.epochs * (len(data) // batch_size)
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=steps)
        network.train()
        for _ in range(self.epochs):
            order = torch.randperm(len(data))[: len(data) // batch_size * batch_size]
            for batch in order.view(-1, batch_size):
                shifted = self.augment({"images": images[batch]})["images"]
                loss = cross_entropy(network(shifted), digits[batch])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        return network.eval()

    def augment(self, inputs: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
        """The batch is shifted by at most 3 pixels."""
        import torch

        shift = torch.randint(-3, 4, (2,)).tolist()
        return {"images": inputs["images"].roll(shift, dims=(2, 3))}

    def preprocess(self, samples: Samples) -> Arrays:
        """Images (n, 8, 8) to (n, 1, 32, 32), each pixel four times as wide and high, values 0 to 1."""
        images = np.asarray(samples, dtype=np.float32) / 16
        return {"images": images.repeat(4, axis=1).repeat(4, axis=2)[:, None]}

    def postprocess(self, outputs: Arrays) -> np.ndarray:
        """The digit with the highest logit, shape (n,)."""
        predictions: np.ndarray = outputs["output"].argmax(axis=1)
        return predictions
