"""One set of weights for every architecture of a space: what a search asks of it, and how it is trained."""

from abc import ABC, abstractmethod
from typing import Generic

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from pareflow.errors import UnsuitableError
from pareflow.model.architecture.space import A, Space
from pareflow.model.training import Batch
from pareflow.workload import LoadedWorkload

RECALIBRATED = 5
"""Batches of 64 training samples that a subnet's batch norms are measured on."""


class Supernet(nn.Module, ABC, Generic[A]):
    """The largest network of a space; called with an architecture, the part of it that this one uses."""

    space: Space[A]

    @abstractmethod
    def forward(self, *inputs: torch.Tensor, architecture: A | None = None) -> torch.Tensor:
        """Logits (batch, classes)."""

    @abstractmethod
    def subnet(self, architecture: A) -> nn.Module:
        """The architecture as a network of its own, with copies of its weights, in evaluation mode."""


class Sandwich(Generic[A]):
    """The loss of one step: the largest network learns the labels, the smallest and a random one from it.

    Source: Yu and Huang, 2019, arXiv:1903.05134, sections 3.2 and 3.3 (sandwich rule, inplace distillation).
    """

    def __init__(self, workload: LoadedWorkload, space: Space[A]) -> None:
        self._task, self._space = workload.definition.loss, space

    def __call__(self, module: nn.Module, batch: Batch) -> torch.Tensor:
        assert batch.targets is not None  # the search asks for labels first
        inputs = list(batch.inputs.values())
        logits = module(*inputs)
        found: torch.Tensor = self._task(logits, batch.targets)
        if batch.split == "calibration":
            return found
        taught = logits.detach().softmax(-1)
        for architecture in (self._space.smallest, self._random):
            found = found + cross_entropy(module(*inputs, architecture=architecture), taught)
        return found

    @property
    def _random(self) -> A:
        """Drawn by torch's generator, which a checkpoint keeps."""
        return self._space.choose(lambda _, options: options[int(torch.randint(len(options), ()))])


def recalibrated(network: nn.Module, workload: LoadedWorkload) -> nn.Module:
    """Its batch norms, if there are any, hold the mean over a few training batches; changed in place.

    Source: Yu and Huang, 2019, arXiv:1903.05134, section 3.4 (post-statistics of batch normalization).
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return network.eval()
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


def count_classes(network: nn.Module, workload: LoadedWorkload) -> int:
    """How many classes it tells apart. Raises: UnsuitableError unless subnets can learn from its logits."""
    targets = workload.split("train").labels()
    with torch.no_grad():
        given = network(*map(torch.from_numpy, workload.example(2).values()))
    logits = isinstance(given, torch.Tensor) and given.dim() == 2
    if not logits or not np.issubdtype(targets.dtype, np.integer):
        shape = tuple(given.shape) if isinstance(given, torch.Tensor) else ""
        raise UnsuitableError(
            "the network must give one tensor of logits (samples, classes), and targets must be integers",
            f"it gives {type(given).__name__} {shape}".rstrip() + f", and targets are {targets.dtype}",
            "Leave the technique out",
        )
    return int(given.shape[1])
