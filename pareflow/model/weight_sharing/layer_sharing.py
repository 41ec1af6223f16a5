"""Repeated blocks with one set of weights."""

import copy
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from pareflow.errors import UnsuitableError
from pareflow.model.folding import fold_batch_norms
from pareflow.model.training import TrainedTechnique, fit, task_loss
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    from torch import nn


class LayerSharing(TrainedTechnique):
    """Let the repeated blocks of a network use the same weights, and repair it by training.

    As fast as before, and smaller by the number of blocks that share.
    Source: Lan et al., 2020, arXiv:1909.11942, section 3.1 (cross-layer parameter sharing). Departures: a
    trained network is shared, not one trained so from the start; norms and biases of norms stay each block's
    own, since they are small, and batch statistics differ from block to block. So does all that is no weight,
    such as a shift of windows.
    """

    name: ClassVar[str] = "layer_sharing"
    form: ClassVar[Form] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "accelerate")

    groups: int = Field(default=1, ge=1, description="how many different blocks are left of each sequence")
    take: Literal["average", "first"] = Field(
        default="average", description="which weights the blocks of a group start from"
    )

    def apply(self, network: "nn.Module", workload: LoadedWorkload) -> "nn.Module":
        network = copy.deepcopy(network)
        fold_batch_norms(network, workload)
        sequences = [blocks for blocks in _sequences(network) if len(blocks) > self.groups]
        if not sequences:
            raise UnsuitableError(
                f"a sequence of more than groups={self.groups} blocks of one structure must exist",
                f"`{type(network).__name__}` has none in its ModuleLists and Sequentials",
                "Leave the technique out, or lower `groups`",
            )
        for blocks in sequences:
            for group in np.array_split(np.arange(len(blocks)), self.groups):
                _tie([blocks[i] for i in group], self.take)
        return fit(network, workload, self, loss=task_loss(workload))


def _sequences(network: "nn.Module") -> "Iterator[list[nn.Module]]":
    """Neighbours of one structure within a ModuleList or a Sequential, two or more."""
    from torch import nn

    for module in network.modules():
        if isinstance(module, nn.ModuleList | nn.Sequential):
            for _, same in groupby(module, key=_structure):
                blocks = list(same)
                if len(blocks) > 1 and _layers(blocks[0]):
                    yield blocks


def _structure(block: "nn.Module") -> tuple[str, list[tuple[str, tuple[int, ...]]]]:
    """Equal where two blocks compute the same, up to their weights."""
    return repr(block), [(name, tuple(p.shape)) for name, p in block.named_parameters()]


def _layers(block: "nn.Module") -> "dict[str, nn.Module]":
    """The layers of a block that hold a matrix, by each of their paths: norms do not."""
    return {
        path: layer
        for path, layer in block.named_modules(remove_duplicate=False)
        if path and any(p.dim() > 1 for p in layer.parameters(recurse=False))
    }


def _tie(blocks: "list[nn.Module]", take: str) -> None:
    """Let the others use the first block's matrices, in place.

    Of torch's own layers all blocks get one object, which techniques that follow take for one layer. Any
    other module stays each block's own, and only its parameters are shared.
    """
    layers = _layers(blocks[0])
    parameters = [
        f"{path}.{name}"
        for path, layer in layers.items()
        for name, _ in layer.named_parameters(recurse=_whole(layer), remove_duplicate=False)
    ]
    if take == "average":
        _average(blocks, parameters)
    for block in blocks[1:]:
        for name in parameters:
            path, _, own = name.rpartition(".")
            setattr(block.get_submodule(path), own, blocks[0].get_parameter(name))
        for path, layer in layers.items():
            if _whole(layer):
                block.set_submodule(path, layer)


def _whole(layer: "nn.Module") -> bool:
    """Whether two such layers compute the same where they look the same, or are a weight's parametrization.

    `repr` does not tell all of others: a shift, a number of heads.
    """
    from torch.nn.utils.parametrize import ParametrizationList

    plain = type(layer).__module__.startswith("torch.nn.") and not list(layer.children())
    return plain or isinstance(layer, ParametrizationList)


def _average(blocks: "list[nn.Module]", parameters: list[str]) -> None:
    """Write the means over all blocks into the first: all are taken first, since two names may be of one."""
    import torch

    with torch.no_grad():
        means = [torch.stack([block.get_parameter(name) for block in blocks]).mean(0) for name in parameters]
        for name, mean in zip(parameters, means, strict=True):
            blocks[0].get_parameter(name).copy_(mean)
