"""A given transformer as its own largest network: a subnet takes the best heads, neurons and layers."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pareflow.model.architecture.supernet import Supernet, count_classes
from pareflow.model.architecture.transformer_parts import transformer_space
from pareflow.model.architecture.transformer_space import TransformerArchitecture, TransformerSpace
from pareflow.model.pruning.attention import attentions
from pareflow.model.pruning.dependencies import check_runs
from pareflow.workload import LoadedWorkload


class Narrowed(nn.Module):
    """Some outputs of some inputs of a linear layer, whose weights it uses; None stands for all.

    Takes (..., inputs that stay), gives (..., outputs that stay).
    """

    def __init__(self, layer: nn.Linear, outputs: list[int] | None, inputs: list[int] | None) -> None:
        super().__init__()
        self.layer = layer
        device = layer.weight.device
        self._outputs = None if outputs is None else torch.tensor(outputs, device=device)
        self._inputs = None if inputs is None else torch.tensor(inputs, device=device)

    @property
    def weight(self) -> torch.Tensor:
        rows = self.layer.weight if self._outputs is None else self.layer.weight[self._outputs]
        return rows if self._inputs is None else rows[:, self._inputs]

    @property
    def bias(self) -> torch.Tensor | None:
        whole = self.layer.bias
        return whole if whole is None or self._outputs is None else whole[self._outputs]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(states, self.weight, self.bias)

    def alone(self) -> nn.Linear:
        """A linear layer with copies of these weights."""
        size_out, size_in = self.weight.shape
        made = nn.Linear(size_in, size_out, bias=self.bias is not None, device="meta").train(self.training)
        made.weight = _copied(self.weight, self.layer.weight)
        if self.bias is not None:
            made.bias = _copied(self.bias, self.layer.bias)
        return made


def _copied(part: torch.Tensor, whole: torch.Tensor) -> nn.Parameter:
    return nn.Parameter(part.detach().clone(), whole.requires_grad)


class TransformerSupernet(Supernet[TransformerArchitecture]):
    """A trained transformer; called with an architecture, the part of it that this one uses.

    Source: Hou et al., 2020, arXiv:2004.04037, section 2.2. Departures: widths and depths are elastic at
    once; each layer has its own; the largest network keeps learning the labels, and teaches the others.
    """

    def __init__(self, network: nn.Module, space: TransformerSpace) -> None:
        super().__init__()
        self.space, self.whole = space, copy.deepcopy(network)

    def forward(
        self, *inputs: torch.Tensor, architecture: TransformerArchitecture | None = None
    ) -> torch.Tensor:
        network = self.whole if architecture is None else self.part(architecture)
        logits: torch.Tensor = network(*inputs)
        return logits

    def part(self, architecture: TransformerArchitecture) -> nn.Module:
        """What is left of the network, with the same parameters: modules are copied, and they are not."""
        shared: dict[int, Any] = {id(parameter): parameter for parameter in self.whole.parameters()}
        part = copy.deepcopy(self.whole, shared)
        heads = {attention.name: attention for attention in attentions(part)}
        outputs, inputs = dict[str, list[int]](), dict[str, list[int]]()
        for elastic, count in architecture.kept:
            if count < len(elastic.ranked):
                outputs |= dict.fromkeys(elastic.givers, elastic.stay(count))
                inputs |= dict.fromkeys(elastic.takers, elastic.stay(count))
                if elastic.heads:
                    heads[elastic.name].say(count)
        layers: dict[str, Any] = {name: part.get_submodule(name) for name in (outputs | inputs)}
        put(part, {la: Narrowed(la, outputs.get(name), inputs.get(name)) for name, la in layers.items()})
        for block in reversed(architecture.gone):
            block.drop(part)
        return part

    def subnet(self, architecture: TransformerArchitecture) -> nn.Module:
        made = self.part(architecture)
        put(made, {layer: layer.alone() for layer in made.modules() if isinstance(layer, Narrowed)})
        return copy.deepcopy(made).eval()


def put(network: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """These modules in the places of those, wherever they occur."""
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):
            if child is not None and child in new:
                parent.add_module(name, new[child])


def transformer_supernet(network: nn.Module, workload: LoadedWorkload) -> TransformerSupernet:
    """Raises: UnsuitableError unless it is a transformer that gives logits of classes, and parts may go."""
    count_classes(network, workload)
    made = TransformerSupernet(network, transformer_space(network, workload))
    check_runs(made.subnet(made.space.smallest), network, workload)
    return made
