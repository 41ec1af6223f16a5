"""A transformers model as a plain torch module: positional tensors in, logits out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class Classifier(nn.Module):
    """Tensors in the order of `inputs` to logits of shape (batch, classes)."""

    def __init__(self, model: nn.Module, inputs: Sequence[str]) -> None:
        super().__init__()
        self.model: Any = model
        self.inputs = tuple(inputs)

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(**dict(zip(self.inputs, tensors, strict=True))).logits
        return logits
