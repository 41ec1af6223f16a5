"""One set of weights for every architecture of a space: a subnet takes the first channels of each layer."""

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from pareflow.model.architecture.space import Architecture, Space
from pareflow.model.architecture.subnet import Subnet
from pareflow.model.training import Batch
from pareflow.workload import LoadedWorkload

RECALIBRATED = 5
"""Batches of 64 training samples that a subnet's batch norms are measured on."""


class Supernet(nn.Module):
    """The largest network of a space; called with an architecture, the part of it that this one uses.

    Source: Cai et al., 2020, arXiv:1908.09791, section 3.3; Yu and Huang, 2019, arXiv:1903.05134 (first
    channels). Departures: small kernels are the middles of large ones, without a learned transformation; all
    choices are open from the first step.
    """

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space, self.whole = space, Subnet(space.largest)

    def forward(self, images: torch.Tensor, architecture: Architecture | None = None) -> torch.Tensor:
        if architecture is None:
            logits: torch.Tensor = self.whole(images)
            return logits
        with torch.device("meta"):
            frame = Subnet(architecture).train(self.training)
        shared: torch.Tensor = functional_call(frame, self.part(frame), images)
        return shared

    def part(self, frame: Subnet) -> dict[str, torch.Tensor]:
        """What of each parameter a subnet uses, and copies of its buffers."""
        whole = dict(self.whole.named_parameters()) | dict(self.whole.named_buffers())
        named = [*frame.named_parameters(), *frame.named_buffers()]
        found = {name: cut(whole[name], own.shape) for name, own in named}
        buffers = {name for name, _ in frame.named_buffers()}
        return {name: tensor.clone() if name in buffers else tensor for name, tensor in found.items()}

    def subnet(self, architecture: Architecture, workload: LoadedWorkload) -> Subnet:
        """The architecture as a network of its own, its batch norms measured anew."""
        made = Subnet(architecture)
        made.load_state_dict({name: tensor.detach().clone() for name, tensor in self.part(made).items()})
        return recalibrated(made, workload)


def cut(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The first channels, and of kernels the middle."""
    for axis, size in enumerate(shape):
        start = (tensor.shape[axis] - size) // 2 if axis > 1 else 0
        tensor = tensor.narrow(axis, start, size)
    return tensor


def recalibrated(network: Subnet, workload: LoadedWorkload) -> Subnet:
    """Its batch norms hold the mean over a few training batches.

    Source: Yu and Huang, 2019, arXiv:1903.05134, section 3.4 (post-statistics of batch normalization).
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
    network.train()
    with torch.no_grad():
        for feeds in workload.feeds("train", 64, 64 * RECALIBRATED):
            network(*map(torch.from_numpy, feeds.values()))
    for norm in norms:
        norm.momentum = 0.1
    return network.eval()


class Sandwich:
    """The loss of one step: the largest network learns the labels, the smallest and a random one from it.

    Source: Yu and Huang, 2019, arXiv:1903.05134, sections 3.2 and 3.3 (sandwich rule, inplace distillation).
    """

    def __init__(self, workload: LoadedWorkload, space: Space) -> None:
        self._task, self._space = workload.definition.loss, space

    def __call__(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        assert batch.targets is not None  # the search asks for labels first
        (images,) = batch.inputs.values()
        logits = module(images)
        found: torch.Tensor = self._task(logits, batch.targets)
        if batch.split == "calibration":
            return found
        taught = logits.detach().softmax(-1)
        for architecture in (self._space.smallest, self._random):
            found = found + cross_entropy(module(images, architecture), taught)
        return found

    @property
    def _random(self) -> Architecture:
        """Drawn by torch's generator, which a checkpoint keeps."""
        return self._space.choose(lambda _, options: options[int(torch.randint(len(options), ()))])
