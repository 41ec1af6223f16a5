"""Weights that a hash draws from a few."""

import copy
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pareflow.errors import UnsuitableError
from pareflow.model.training import TrainedTechnique, fit, task_loss
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    from torch import nn

LEAST = 128
"""Layers with fewer weights stay as they are."""


class HashedSharing(TrainedTechnique):
    """Draw the weights of every large layer from a few trained ones, by a hash of their position.

    The file holds the few weights and three integers per layer; a runtime draws the others when it loads
    the graph. The network is trained anew in this form, so give it as many epochs as its training took.
    Source: Chen et al., 2015, arXiv:1504.04788, sections 4.1 to 4.3. Departures: one hash gives position and
    sign; convolutions and embeddings are hashed too, but for the row of `padding_idx`; it starts at the mean
    of the given weights.
    """

    name: ClassVar[str] = "hashed_sharing"
    form: ClassVar[Form] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "accelerate")

    compression: float = Field(default=8, gt=1, description="weights of a layer per weight that is stored")

    def apply(self, network: "nn.Module", workload: LoadedWorkload) -> "nn.Module":
        from pareflow.model.weight_sharing.hashed import hash_layers

        network = copy.deepcopy(network)
        if not hash_layers(network, self.compression, LEAST, self.seed_of(workload)):
            raise UnsuitableError(
                f"some linear layer, convolution or embedding must have at least {LEAST} weights",
                f"`{type(network).__name__}` has none",
                "Leave the technique out",
            )
        return fit(network, workload, self, loss=task_loss(workload))
