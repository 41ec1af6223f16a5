"""The modules of a network for images: residual blocks, inverted residuals, squeeze-and-excitation."""

import torch
from torch import nn

from pareflow.model.architecture.image_space import Family, ImageArchitecture, Stage

ACTIVATIONS: dict[Family, type[nn.Module]] = {
    "resnet": nn.ReLU,
    "mobilenet": nn.ReLU6,
    "efficientnet": nn.SiLU,
}


def convolution(
    channels_in: int, channels_out: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution that keeps the size, but for its stride, and its batch norm."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels_out),
    )


class ResidualBlock(nn.Module):
    """Two convolutions beside a shortcut.

    Source: He et al., 2015, arXiv:1512.03385, section 3.3.
    """

    def __init__(self, channels_in: int, stage: Stage, stride: int, first: bool) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            convolution(channels_in, stage.width, stage.kernel, stride),
            nn.ReLU(),
            convolution(stage.width, stage.width, stage.kernel),
        )
        self.shortcut = convolution(channels_in, stage.width, 1, stride) if first else nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.residual(images) + self.shortcut(images))


class SqueezeExcite(nn.Module):
    """Each channel is scaled by what all channels are on average.

    Source: Hu et al., 2017, arXiv:1709.01507, section 3; in these blocks: Tan and Le, 2019,
    arXiv:1905.11946, section 4.
    """

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
    """Widen, convolve each channel alone, narrow; the shortcut joins the narrow ends.

    Source: Sandler et al., 2018, arXiv:1801.04381, section 3.3.
    """

    def __init__(self, channels_in: int, stage: Stage, stride: int, first: bool, family: Family) -> None:
        super().__init__()
        wide, activation = channels_in * stage.expansion, ACTIVATIONS[family]
        self.expand = nn.Sequential(convolution(channels_in, wide), activation())
        self.depthwise = nn.Sequential(convolution(wide, wide, stage.kernel, stride, wide), activation())
        squeezed = max(8, channels_in // 4)
        self.excite = SqueezeExcite(wide, squeezed) if family == "efficientnet" else nn.Identity()
        self.project = convolution(wide, stage.width)
        self.first = first

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        narrow: torch.Tensor = self.project(self.excite(self.depthwise(self.expand(images))))
        return narrow if self.first else images + narrow


class Subnet(nn.Module):
    """An architecture as a network: images (batch, channels, height, width) to logits (batch, classes)."""

    def __init__(self, architecture: ImageArchitecture) -> None:
        super().__init__()
        self.architecture, family = architecture, architecture.family
        channels = architecture.stages[0].width
        self.shrink = nn.AvgPool2d(architecture.shrink) if architecture.shrink > 1 else nn.Identity()
        self.stem = nn.Sequential(convolution(architecture.channels, channels, 3), ACTIVATIONS[family]())
        self.stages = nn.ModuleList()
        for position, stage in enumerate(architecture.stages):
            blocks = nn.Sequential()
            for block in range(stage.depth):
                stride = 2 if position and not block else 1
                if family == "resnet":
                    blocks.append(ResidualBlock(channels, stage, stride, not block))
                else:
                    blocks.append(InvertedResidual(channels, stage, stride, not block, family))
                channels = stage.width
            self.stages.append(blocks)
        self.head = nn.Linear(channels, architecture.classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.stem(self.shrink(images))
        for blocks in self.stages:
            hidden = blocks(hidden)
        logits: torch.Tensor = self.head(hidden.mean((2, 3)))
        return logits
