"""The networks for images that a search may choose from."""

import math
from dataclasses import asdict, dataclass
from typing import Literal

from pareflow.model.architecture.space import Pick, Space

Family = Literal["resnet", "mobilenet", "efficientnet"]

WIDTHS, DEPTHS, SHRINKS = (0.25, 0.5, 0.75, 1.0), (1, 2, 3), (2, 1)
KERNELS: dict[Family, tuple[int, ...]] = {"resnet": (3,), "mobilenet": (3, 5), "efficientnet": (3, 5)}
EXPANSIONS: dict[Family, tuple[int, ...]] = {"resnet": (1,), "mobilenet": (2, 4), "efficientnet": (2, 4)}


@dataclass(frozen=True)
class Stage:
    """Blocks at one resolution: output channels, blocks, kernel size, channels within a block per channel."""

    width: int
    depth: int
    kernel: int
    expansion: int


@dataclass(frozen=True)
class ImageArchitecture:
    """A network for images: what it takes and gives, how much smaller it makes them first, its stages."""

    family: Family
    channels: int
    classes: int
    shrink: int
    stages: tuple[Stage, ...]

    @property
    def label(self) -> str:
        """Its choices in one line."""
        stages = (":".join(map(str, asdict(stage).values())) for stage in self.stages)
        return f"{self.family} /{self.shrink} {' '.join(stages)}"


@dataclass(frozen=True)
class ImageSpace(Space[ImageArchitecture]):
    """All networks of a family for images of this size: width, depth, kernel and expansion per stage.

    Stages double the channels and halve the image, down to about four pixels. Channels are multiples of 8.
    """

    family: Family
    channels: int
    pixels: int
    classes: int
    width: int

    def choose(self, pick: Pick) -> ImageArchitecture:
        count = 1 + max(0, math.floor(math.log2(self.pixels / 4)))
        shrink = pick("shrink", SHRINKS)
        return ImageArchitecture(
            self.family,
            self.channels,
            self.classes,
            shrink,
            tuple(self._stage(i, pick) for i in range(count)),
        )

    def _stage(self, position: int, pick: Pick) -> Stage:
        share = pick(f"width_{position}", WIDTHS)
        return Stage(
            width=max(8, round(share * self.width * 2**position / 8) * 8),
            depth=pick(f"depth_{position}", DEPTHS),
            kernel=pick(f"kernel_{position}", KERNELS[self.family]),
            expansion=pick(f"expansion_{position}", EXPANSIONS[self.family]),
        )
