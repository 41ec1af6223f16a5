"""Single weights set to zero, wherever they lie."""

import copy
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from pareflow.model.pruning.masks import (
    attach_masks,
    choose_masks,
    detach_masks,
    prunable,
    put_masks,
    weights_of,
    zero_masked,
)
from pareflow.model.pruning.saliency import PruningTechnique, Share, cubic, repair, saliencies, shares
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    from torch import nn

RAMP = 0.5
"""Share of the training in which the sparsity rises; in the rest the network recovers."""


class UnstructuredPruning(PruningTechnique):
    """Zero the weights that are worth least, one by one.

    No runtime here gains speed from it (`bench/techniques.py` measures 90 % of zeros); it gains size only
    where the artifact is stored packed. Techniques that train after it fill the zeros again. The weights of
    linear and convolutional layers are pruned; biases, norms and embeddings are not.
    Source: Han et al., 2015, arXiv:1506.02626, section 3; gradual: Zhu and Gupta, 2017, arXiv:1710.01878,
    section 3. Departure: the ramp is one half of the training, in as many steps as asked for.
    """

    name: ClassVar[str] = "unstructured_pruning"

    sparsity: float = Field(default=0.5, gt=0, lt=1, description="share of the weights that become zero")
    scope: Literal["global", "layer"] = Field(
        default="global", description="rank the weights of all layers together, or each layer's alone"
    )
    steps: int = Field(default=1, ge=1, description="in how many steps the sparsity grows; 1 is one shot")
    layers: dict[str, Share] = Field(
        default={}, description="sparsity by pattern of layer names, in place of `sparsity`; 0 exempts"
    )

    @model_validator(mode="after")
    def _trains_while_it_grows(self) -> Self:
        if self.steps > 1 and self.epochs == 0:
            raise ValueError("sparsity that grows in `steps` must have `epochs` to grow in")
        return self

    def apply(self, network: "nn.Module", workload: LoadedWorkload) -> "nn.Module":
        pruned = copy.deepcopy(network)
        layers = prunable(pruned)
        wanted = shares(list(layers), self.sparsity, self.layers)
        attach_masks(layers)
        done = 0

        def grow(trained: float) -> None:
            """Prune further where the ramp says so, and zero what training has moved.

            What is masked stays so, and a step taken twice changes nothing: a killed training just goes on.
            """
            nonlocal done
            step = min(self.steps, 1 + int(trained / RAMP * self.steps))
            if step > done:
                found = saliencies(pruned, workload, self.importance, self.samples)
                now = {name: share * cubic(step, self.steps) for name, share in wanted.items()}
                put_masks(layers, choose_masks(weights_of(layers, found), now, self.scope))
                done = step
            zero_masked(layers)

        grow(0.0)
        keep: Literal["best", "last"] = "best" if self.steps == 1 else "last"
        repaired = repair(pruned, workload, self, after_step=grow, keep=keep)
        detach_masks(layers)
        return repaired
