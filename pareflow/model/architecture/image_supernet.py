"""Networks for images, made of one family's blocks: a subnet takes the first channels of each layer."""

import torch
from torch import nn
from torch.func import functional_call

from pareflow.errors import UnsuitableError
from pareflow.model.architecture.image_space import Family, ImageArchitecture, ImageSpace
from pareflow.model.architecture.image_subnet import Subnet
from pareflow.model.architecture.supernet import Supernet, count_classes
from pareflow.workload import LoadedWorkload


class ImageSupernet(Supernet[ImageArchitecture]):
    """The largest network of a family, untrained at first; takes images (batch, channels, height, width).

    Source: Cai et al., 2020, arXiv:1908.09791, section 3.3; Yu and Huang, 2019, arXiv:1903.05134 (first
    channels). Departures: small kernels are the middles of large ones, without a learned transformation; all
    choices are open from the first step.
    """

    def __init__(self, space: ImageSpace) -> None:
        super().__init__()
        self.space, self.whole = space, Subnet(space.largest)

    def forward(self, *inputs: torch.Tensor, architecture: ImageArchitecture | None = None) -> torch.Tensor:
        if architecture is None:
            logits: torch.Tensor = self.whole(*inputs)
            return logits
        with torch.device("meta"):
            frame = Subnet(architecture).train(self.training)
        shared: torch.Tensor = functional_call(frame, self.part(frame), inputs)
        return shared

    def part(self, frame: Subnet) -> dict[str, torch.Tensor]:
        """What of each parameter a subnet uses, and copies of its buffers."""
        whole = dict(self.whole.named_parameters()) | dict(self.whole.named_buffers())
        named = [*frame.named_parameters(), *frame.named_buffers()]
        found = {name: cut(whole[name], own.shape) for name, own in named}
        buffers = {name for name, _ in frame.named_buffers()}
        return {name: tensor.clone() if name in buffers else tensor for name, tensor in found.items()}

    def subnet(self, architecture: ImageArchitecture) -> Subnet:
        made = Subnet(architecture)
        made.load_state_dict({name: tensor.detach() for name, tensor in self.part(made).items()})
        return made.eval()


def cut(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The first channels, and of kernels the middle."""
    for axis, size in enumerate(shape):
        start = (tensor.shape[axis] - size) // 2 if axis > 1 else 0
        tensor = tensor.narrow(axis, start, size)
    return tensor


def image_supernet(
    network: nn.Module, workload: LoadedWorkload, family: Family, width: int | None
) -> ImageSupernet:
    """For the images and classes of a network, and as wide as its first layer, or as `width` says.

    Raises: UnsuitableError unless it takes one batch of images and gives logits of classes.
    """
    shapes = {name: array.shape for name, array in workload.example(2).items()}
    images = [shape for shape in shapes.values() if len(shape) == 4]
    if len(shapes) != 1 or not images:
        raise UnsuitableError(
            "the network must take one batch of images (samples, channels, height, width), or be a "
            "transformer, whose attention has a number of heads, to be searched itself",
            f"`{type(network).__name__}` takes {shapes}, and `blocks` of images are asked for, or it has no "
            "such attention",
            "Take `blocks: transformer` for a transformer, else leave the technique out",
        )
    _, channels, *pixels = images[0]
    first = next((layer.out_channels for layer in network.modules() if isinstance(layer, nn.Conv2d)), 32)
    classes = count_classes(network, workload)
    return ImageSupernet(ImageSpace(family, channels, min(pixels), classes, width or first))
