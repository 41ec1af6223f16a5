"""A workload's torch module as the store keeps it: whole in a pickle, on the CPU, inputs by position."""

import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from pareflow.comparison import first_line
from pareflow.errors import WorkloadError


class ByName(nn.Module):
    """A network that is given its inputs by name; takes them by position, in the order of `takes`."""

    def __init__(self, network: nn.Module, takes: Sequence[str]) -> None:
        super().__init__()
        self.network, self.takes = network, tuple(takes)

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.network(**dict(zip(self.takes, inputs, strict=True)))


def check(network: nn.Module, inputs: Sequence[str]) -> None:
    """Raises: WorkloadError where it could not be stored: asked before it is trained.

    Whether one with parametrizations pickles shows once they are off: they cannot be taken off a copy.
    """
    if not any(map(parametrize.is_parametrized, network.modules())):
        _check_pickles(network)
    _in_order(network, inputs)


def _check_pickles(network: nn.Module) -> None:
    """Raises: WorkloadError."""
    try:
        with Path(os.devnull).open("wb") as nowhere:
            torch.save(network, nowhere)
    except Exception as error:
        raise WorkloadError(
            "`network()` must give a network that can be pickled whole: other processes open it",
            f"torch.save raised {type(error).__name__}: {first_line(error)}",
            "Define its classes and functions at the top of a module, without lambdas; export TorchScript to "
            "ONNX, and take the workload `onnx`",
        ) from error


def as_stored(network: nn.Module, inputs: Sequence[str]) -> nn.Module:
    """The network in evaluation mode, changed in place, that takes `inputs` by position.

    Parametrizations (weight norm, spectral norm), which torch does not pickle, leave the weights that they
    give. Where `forward` has a parameter of the name of each input, in another order, they are given by name.
    Raises: WorkloadError where it has some of these names, and others lie at their places.
    """
    made = _plain(network.eval().cpu())
    return made if _in_order(made, inputs) else ByName(made, inputs)


def as_tensor(array: np.ndarray, device: str | torch.device = "cpu") -> torch.Tensor:
    """An array as a tensor with memory of its own: a network may change its inputs in place."""
    return torch.tensor(array, device=device)


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """A tensor as numpy holds it: of its own kind, but float32 where that is a half precision."""
    narrow = tensor.is_floating_point() and tensor.itemsize < 4
    array: np.ndarray = (tensor.float() if narrow else tensor).cpu().numpy()
    return array


def _plain(network: nn.Module) -> nn.Module:
    """The network with the weights that its parametrizations give in their place."""
    for module in [*network.modules()]:
        if parametrize.is_parametrized(module):
            assert isinstance(module.parametrizations, nn.ModuleDict)  # as it is made
            for name in [*module.parametrizations]:
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
            module._load_state_dict_pre_hooks.clear()  # weight norm's, for older files, which no pickle holds
    return network


def _in_order(network: nn.Module, inputs: Sequence[str]) -> bool:
    """Whether every input that `forward` has a parameter for lies at its place. Raises: WorkloadError."""
    parameters = inspect.signature(network.forward).parameters.values()
    places = {
        parameter.name: place if parameter.kind is parameter.POSITIONAL_OR_KEYWORD else None
        for place, parameter in enumerate(parameters)
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    if all(places.get(name, place) == place for place, name in enumerate(inputs)):
        return True
    if not all(name in places for name in inputs):
        raise WorkloadError(
            "`preprocess()` must give its arrays in the order of `forward`, or each by a parameter's name",
            f"it gives {', '.join(inputs)}, and `forward` takes {', '.join(places)}",
            "Reorder them, or name all of them as `forward` does",
        )
    return False
