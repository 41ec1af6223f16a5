"""A weight that is ±a, as a parametrization. Imported where training begins: it needs torch."""

import torch
from torch import nn


class BinaryWeight(nn.Module):
    """A float weight to `scale` · its sign; gradients pass the sign where the weight is within ±1.

    `scale` has one number per output channel, first the mean magnitude of the channel's weights.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        across = tuple(range(1, weight.dim()))
        self.scale = nn.Parameter(weight.detach().abs().mean(across, keepdim=True))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        sign = torch.where(weight >= 0, 1.0, -1.0)
        passed = weight.clamp(-1, 1)
        binary: torch.Tensor = self.scale * (sign + (passed - passed.detach()))
        return binary
