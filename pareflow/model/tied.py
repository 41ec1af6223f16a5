"""Layers that hold one parameter together, such as an embedding and the classifier that is its transpose."""

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def tied_layers(network: "nn.Module") -> "set[nn.Module]":
    """The modules that hold a parameter which another module holds too."""
    held = {module: [id(p) for p in module.parameters(recurse=False)] for module in network.modules()}
    holders = Counter(parameter for own in held.values() for parameter in own)
    return {module for module, own in held.items() if any(holders[parameter] > 1 for parameter in own)}
