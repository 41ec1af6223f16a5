"""A small residual network for 32×32 grey images, about 0.6 M parameters."""

import torch
from torch import nn


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut; halves the image where `stride` is 2.

    Source: He et al., 2015, arXiv:1512.03385, section 3.3.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.residual(images) + self.shortcut(images))


class DigitsNet(nn.Module):
    """Images of shape (batch, 1, 32, 32) to logits of shape (batch, 10); `width` channels at first."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        last = width * 9 // 2
        self.layers = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            ResidualBlock(width, width, stride=1),
            ResidualBlock(width, 2 * width, stride=2),
            ResidualBlock(2 * width, 3 * width, stride=2),
            ResidualBlock(3 * width, last, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(last, 10),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(images)
        return logits
