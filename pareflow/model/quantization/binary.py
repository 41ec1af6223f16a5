"""One bit per weight."""

import copy
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pareflow.errors import UnsuitableError
from pareflow.model.training import TrainedTechnique, fit, task_loss
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    from torch import nn


class Binary(TrainedTechnique):
    """Give each weight one of two values, ±a, with one learned `a` per output channel.

    Activations stay float, and so do the first and the last layer. Runtimes compute with the weights as the
    floats they are: a thirty-second of the size once they are packed, and no time.
    Source: Rastegari et al., 2016, arXiv:1603.05279, section 3.1 (the scale that fits best, from which
    training starts; gradients straight through the sign where the weight is within ±1). Departure: the
    scale is then trained with the weights, as in Esser et al., 2020, arXiv:1902.08153.
    """

    name: ClassVar[str] = "binary"
    form: ClassVar[Form] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "accelerate")

    epochs: int = Field(default=10, ge=0, description="passes over the training split")

    def apply(self, network: "nn.Module", workload: LoadedWorkload) -> "nn.Module":
        from torch.nn.utils import parametrize

        from pareflow.model.quantization.binary_weight import BinaryWeight

        changed = copy.deepcopy(network)
        inner = _inner_layers(changed, workload)
        for layer in inner:
            weight = layer.get_parameter("weight")
            parametrize.register_parametrization(layer, "weight", BinaryWeight(weight))
        fit(changed, workload, self, loss=task_loss(workload), stage=self.name)
        for layer in inner:
            parametrize.remove_parametrizations(layer, "weight")
        return changed


def _inner_layers(network: "nn.Module", workload: LoadedWorkload) -> "list[nn.Module]":
    """The layers between the first and the last that a request meets. Raises: UnsuitableError."""
    import torch
    from torch import nn

    met: dict[nn.Module, None] = {}
    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
    layers = [module for module in network.modules() if isinstance(module, kinds)]
    hooks = [layer.register_forward_pre_hook(lambda layer, _: met.setdefault(layer)) for layer in layers]
    with torch.no_grad():
        network.eval()(*map(torch.from_numpy, workload.example(1).values()))
    for hook in hooks:
        hook.remove()
    if len(met) < 3:
        raise UnsuitableError(
            "the network must have a layer between its first and its last, which stay float",
            f"a request meets {len(met)} convolutions and linear layers",
            "Drop the candidate, or take a deeper network",
        )
    return list(met)[1:-1]
