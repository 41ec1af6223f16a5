"""Published convolutional networks with random weights on real images: speed only, quality is agreement.

Labels are the network's own answers, so that a variant's accuracy is how often it agrees with its original.
"""

import gzip
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from pareflow.workload import Arrays, LoadedWorkload, Samples, Split, Splits, Workload

if TYPE_CHECKING:
    from torch import nn


class Zoo(Workload):
    """Fashion-MNIST's test images, enlarged to `side` pixels and three channels."""

    metric: ClassVar[str] = "accuracy"

    architecture: Literal["resnet18", "mobilenet_v2", "efficientnet_b0"]
    images: Path = Field(description="an `images-idx3-ubyte.gz` file, relative to the YAML")
    side: int = Field(default=160, ge=32, description="pixels")

    def data(self) -> Splits:
        """8 images train nothing, 32 calibrate, 32 steer the search, 64 decide."""
        raw = gzip.decompress((self.folder / self.images).read_bytes())
        chosen = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)[:136]
        return Splits.cut(
            Split(chosen, self._answers(chosen)), calibration=32, search=32, verdict=64, seed=self.seed
        )

    def network(self) -> "nn.Module":
        return self._network

    def preprocess(self, samples: Samples) -> Arrays:
        """Pixels repeated to `side`, in three equal channels: (n, 3, side, side)."""
        at = np.arange(self.side) * 28 // self.side
        grey = (np.asarray(samples)[:, at][:, :, at].astype(np.float32) - 73) / 90
        return {"images": np.repeat(grey[:, None], 3, axis=1)}

    def postprocess(self, outputs: Arrays) -> np.ndarray:
        classes: np.ndarray = outputs["output"].argmax(axis=1)
        return classes

    def export(self, network: "nn.Module", workload: LoadedWorkload, path: Path) -> None:
        """As exporters do that leave the work to the compiler: nothing is folded, nothing fused."""
        import torch

        example = torch.from_numpy(workload.example(2)["images"])
        kept: Any = torch.onnx.TrainingMode.PRESERVE
        torch.onnx.export(
            network.eval(),
            (example,),
            str(path),
            input_names=["images"],
            output_names=["output"],
            dynamic_axes={"images": {0: "batch"}, "output": {0: "batch"}},
            opset_version=17,
            do_constant_folding=False,
            training=kept,
            dynamo=False,
        )

    @cached_property
    def _network(self) -> "nn.Module":
        """Weights by the seed; the norms' statistics are those of 32 images."""
        import torch

        from .networks import NETWORKS

        torch.manual_seed(self.seed)
        network = NETWORKS[self.architecture]().train()
        raw = gzip.decompress((self.folder / self.images).read_bytes())
        seen = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)[-32:]
        for norm in (m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.momentum = None  # the plain mean
        with torch.no_grad():
            network(torch.from_numpy(self.preprocess(seen)["images"]))
        return network.eval()

    def _answers(self, images: np.ndarray) -> np.ndarray:
        import torch

        with torch.no_grad():
            logits = [
                self._network(torch.from_numpy(self.preprocess(part)["images"]))
                for part in np.array_split(images, 8)
            ]
        return torch.cat(logits).argmax(1).numpy()
