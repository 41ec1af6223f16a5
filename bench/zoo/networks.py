"""Three convolutional networks as published. Their weights are random: speed does not depend on them."""

import torch
from torch import nn


def convolution(
    channels_in: int,
    channels_out: int,
    size: int,
    stride: int = 1,
    *,
    groups: int = 1,
    activation: nn.Module | None,
) -> nn.Sequential:
    """Convolution, batch norm and, unless None, activation."""
    parts: list[nn.Module] = [
        nn.Conv2d(channels_in, channels_out, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels_out),
    ]
    return nn.Sequential(*parts, *([activation] if activation else []))


class BasicBlock(nn.Module):
    """Source: He et al., 2015, arXiv:1512.03385, figure 5, left."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            convolution(channels_in, channels_out, 3, stride, activation=nn.ReLU()),
            convolution(channels_out, channels_out, 3, activation=None),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = convolution(channels_in, channels_out, 1, stride, activation=None)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(images) + self.shortcut(images))


class SqueezeExcite(nn.Module):
    """Scale each channel by what a small network says of all means. Source: arXiv:1709.01507, section 3.1."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.scale = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.SiLU(),
            nn.Conv2d(squeezed, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = images * self.scale(images)
        return scaled


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow. Source: Sandler et al., 2018, arXiv:1801.04381, section 3.3."""

    def __init__(
        self, channels_in: int, channels_out: int, expansion: int, size: int, stride: int, *, excite: bool
    ) -> None:
        super().__init__()
        wide, activation = channels_in * expansion, nn.SiLU if excite else nn.ReLU6
        parts: list[nn.Module] = []
        if expansion > 1:
            parts.append(convolution(channels_in, wide, 1, activation=activation()))
        parts.append(convolution(wide, wide, size, stride, groups=wide, activation=activation()))
        if excite:
            parts.append(SqueezeExcite(wide, max(1, channels_in // 4)))
        self.body = nn.Sequential(*parts, convolution(wide, channels_out, 1, activation=None))
        self.added = stride == 1 and channels_in == channels_out

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.body(images)
        return found + images if self.added else found


def _head(channels: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def resnet18(classes: int = 1000) -> nn.Sequential:
    """11.7 M parameters. Source: He et al., 2015, arXiv:1512.03385, table 1."""
    parts: list[nn.Module] = [convolution(3, 64, 7, 2, activation=nn.ReLU()), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage in range(4):
        for block in range(2):
            parts.append(BasicBlock(channels, 64 << stage, 2 if stage and not block else 1))
            channels = 64 << stage
    return nn.Sequential(*parts, *_head(channels, classes))


def mobilenet_v2(classes: int = 1000) -> nn.Sequential:
    """3.5 M parameters. Source: Sandler et al., 2018, arXiv:1801.04381, table 2."""
    rows = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ]
    parts: list[nn.Module] = [convolution(3, 32, 3, 2, activation=nn.ReLU6())]
    channels = 32
    for expansion, wide, count, stride in rows:
        for block in range(count):
            step = 1 if block else stride
            parts.append(InvertedResidual(channels, wide, expansion, 3, step, excite=False))
            channels = wide
    parts.append(convolution(channels, 1280, 1, activation=nn.ReLU6()))
    return nn.Sequential(*parts, *_head(1280, classes))


def efficientnet_b0(classes: int = 1000) -> nn.Sequential:
    """5.3 M parameters. Source: Tan and Le, 2019, arXiv:1905.11946, table 1."""
    rows = [
        (1, 16, 1, 1, 3),
        (6, 24, 2, 2, 3),
        (6, 40, 2, 2, 5),
        (6, 80, 3, 2, 3),
        (6, 112, 3, 1, 5),
        (6, 192, 4, 2, 5),
        (6, 320, 1, 1, 3),
    ]
    parts: list[nn.Module] = [convolution(3, 32, 3, 2, activation=nn.SiLU())]
    channels = 32
    for expansion, wide, count, stride, size in rows:
        for block in range(count):
            step = 1 if block else stride
            parts.append(InvertedResidual(channels, wide, expansion, size, step, excite=True))
            channels = wide
    parts.append(convolution(channels, 1280, 1, activation=nn.SiLU()))
    return nn.Sequential(*parts, *_head(1280, classes))


NETWORKS = {"resnet18": resnet18, "mobilenet_v2": mobilenet_v2, "efficientnet_b0": efficientnet_b0}
