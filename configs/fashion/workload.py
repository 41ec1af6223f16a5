"""Fashion-MNIST, and a residual network of CIFAR's kind trained on it.

Source: Xiao et al., 2017, arXiv:1708.07747.
"""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from pydantic import Field

from pareflow.errors import WorkloadError
from pareflow.workload import Arrays, Samples, Split, Splits, Workload

if TYPE_CHECKING:
    import torch
    from torch import nn

MEAN, DEVIATION = 0.2860, 0.3530
"""Of the training images' pixels, scaled to 0 to 1."""


class Fashion(Workload):
    """70,000 grey images of 28×28 pixels in ten kinds of clothing."""

    metric: ClassVar[str] = "accuracy"

    files: Path = Field(description="folder of the four `*-ubyte.gz` files, relative to the YAML")
    epochs: int = Field(default=8, ge=1, description="passes over the training split")
    depth: int = Field(default=3, ge=1, description="blocks per stage; 6 · depth + 2 layers")
    width: int = Field(default=16, ge=1, description="channels of the first stage")

    def data(self) -> Splits:
        """The published test images decide; of the others 2,000 steer the search and 500 calibrate."""
        rest, test = self._read("train"), self._read("t10k")
        seen = set(test.sample_digests())
        fresh = [i for i, name in enumerate(rest.sample_digests()) if not (name in seen or seen.add(name))]  # type: ignore[func-returns-value]
        cut = Splits.cut(
            rest.take(np.asarray(fresh)), calibration=500, search=2000, verdict=0, seed=self.seed
        )
        _, first = np.unique(test.sample_digests(), return_index=True)
        return Splits(cut.train, cut.calibration, cut.search, test.take(np.sort(first)))

    def _read(self, part: str) -> Split:
        """Images (n, 28, 28) and labels (n,), both u8, from IDX files. Raises: WorkloadError."""
        folder = self.folder / self.files
        arrays = []
        for kind, header in (("images-idx3", 16), ("labels-idx1", 8)):
            path = folder / f"{part}-{kind}-ubyte.gz"
            try:
                content = gzip.decompress(path.read_bytes())
            except OSError as error:
                raise WorkloadError(
                    "Fashion-MNIST's four files must lie in `files`",
                    f"{path} cannot be read: {error}",
                    "Fetch them from zalandoresearch/fashion-mnist",
                ) from error
            arrays.append(np.frombuffer(content, np.uint8, offset=header))
        return Split(arrays[0].reshape(-1, 28, 28), arrays[1].astype(np.int64))

    def network(self) -> "nn.Module":
        import torch

        from .network import ResNet

        torch.manual_seed(self.seed)
        return ResNet(self.depth, self.width)

    def students(self) -> "dict[str, Callable[[], nn.Module]]":
        """Half as wide, a block per stage, or both."""
        from .network import ResNet

        half = max(1, self.width // 2)
        return {
            "narrow": lambda: ResNet(self.depth, half),
            "shallow": lambda: ResNet(1, self.width),
            "small": lambda: ResNet(1, half),
        }

    def train(self, network: "nn.Module", data: Split) -> "nn.Module":
        """SGD with Nesterov momentum, a one-cycle rate, and augmented images."""
        import torch
        from torch.nn.functional import cross_entropy

        torch.manual_seed(self.seed)
        batch_size = 128
        steps = self.epochs * (len(data) // batch_size)
        optimizer = torch.optim.SGD(
            network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.2, total_steps=steps)
        network.train()
        for _ in range(self.epochs):
            order = torch.randperm(len(data))[: len(data) // batch_size * batch_size]
            for batch in order.view(-1, batch_size).numpy():
                part = data.take(batch)
                images = torch.from_numpy(self.preprocess(part.samples)["images"])
                logits = network(self.augment({"images": images})["images"])
                loss = cross_entropy(logits, torch.from_numpy(part.labels()))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        return network.eval()

    def augment(self, inputs: "dict[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
        """Each half of the batch is mirrored or not; all are shifted by at most 2 pixels."""
        import torch

        images = inputs["images"]
        mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
        images = torch.where(mirrored, images.flip(3), images)
        shift = torch.randint(-2, 3, (2,)).tolist()
        return {"images": images.roll(shift, dims=(2, 3))}

    def preprocess(self, samples: Samples) -> Arrays:
        """Images (n, 28, 28) to (n, 1, 28, 28) of mean 0 and deviation 1."""
        images = np.asarray(samples, dtype=np.float32) / 255
        return {"images": ((images - MEAN) / DEVIATION)[:, None]}

    def postprocess(self, outputs: Arrays) -> np.ndarray:
        """The class with the highest logit, shape (n,)."""
        predictions: np.ndarray = outputs["output"].argmax(axis=1)
        return predictions
