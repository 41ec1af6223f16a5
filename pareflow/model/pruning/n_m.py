"""Zeros in a fixed pattern: so many weights of so many."""

import copy
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import Field, model_validator

from pareflow.errors import UnsuitableError
from pareflow.model.pruning.masks import (
    attach_masks,
    detach_masks,
    prunable,
    put_masks,
    weights_of,
    zero_masked,
)
from pareflow.model.pruning.saliency import PruningTechnique, repair, saliencies
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import torch
    from torch import nn


class NMPruning(PruningTechnique):
    """Keep n of every m weights along a layer's inputs, those that are worth most: 2:4 by default.

    GPUs from Ampere on multiply 2:4 weights at up to twice the rate; no runtime on a CPU does. Layers whose
    number of inputs is no multiple of m stay as they are, as do transposed convolutions.
    Source: Mishra et al., 2021, arXiv:2104.08378, sections 3 and 4; Zhou et al., 2021, arXiv:2102.04010.
    """

    name: ClassVar[str] = "n_m_pruning"

    n: int = Field(default=2, ge=1, description="weights that stay of each group")
    m: int = Field(default=4, ge=2, description="weights in a group: neighbours along the inputs")

    @model_validator(mode="after")
    def _some_go(self) -> Self:
        if self.n >= self.m:
            raise ValueError(f"`n < m` must hold, but got n={self.n}, m={self.m}")
        return self

    def apply(self, network: "nn.Module", workload: LoadedWorkload) -> "nn.Module":
        pruned = copy.deepcopy(network)
        layers = self._layers(pruned)
        found = saliencies(pruned, workload, self.importance, self.samples)
        scores = weights_of(layers, found)
        attach_masks(layers)
        put_masks(layers, {name: n_of_m(score, self.n, self.m) for name, score in scores.items()})
        zero_masked(layers)
        repaired = repair(pruned, workload, self, after_step=lambda trained: zero_masked(layers))
        detach_masks(layers)
        return repaired

    def _layers(self, network: "nn.Module") -> dict[str, "nn.Module"]:
        """Those whose inputs come in groups of m. Raises: UnsuitableError where there are none."""
        layers = prunable(network)
        found = {name: layer for name, layer in layers.items() if _inputs(layer) % self.m == 0}
        if not found:
            sizes = ", ".join(f"`{name}` {_inputs(layer)}" for name, layer in layers.items())
            raise UnsuitableError(
                f"some layer's number of inputs must be a multiple of m = {self.m}",
                f"they are {sizes}",
                "Choose another m",
            )
        return found


def _inputs(layer: Any) -> int:
    """How many inputs one output of the layer sums over, per position; 1 where they are not in dim 1."""
    return 1 if getattr(layer, "transposed", False) else int(layer.weight.shape[1])


def n_of_m(scores: "torch.Tensor", n: int, m: int) -> "torch.Tensor":
    """True for the n highest scores of every m neighbours along dim 1; of the same shape."""
    import torch

    rows = scores.movedim(1, -1)
    groups = rows.reshape(-1, m)
    lowest = groups.argsort(dim=1, stable=True)[:, : m - n]
    keep = torch.ones_like(groups, dtype=torch.bool).scatter(1, lowest, False)
    return keep.reshape(rows.shape).movedim(-1, 1)
