"""Generations of one network, each taught by the one before."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pareflow.errors import UnsuitableError
from pareflow.model.distillation.response import ResponseTechnique
from pareflow.model.shapes import first_difference
from pareflow.model.training import Batch, fit
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import torch
    from torch import nn


class BornAgain(ResponseTechnique):
    """The same network trained anew, taught by its former self: no smaller, and often better.

    Source: Furlanello et al., 2018, arXiv:1805.04770, section 3.1. Departure: a temperature; the last
    generation answers alone, not an ensemble of all.
    """

    name: ClassVar[str] = "born_again"
    form: ClassVar[Form] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "accelerate")

    generations: int = Field(default=1, ge=1, description="how often it is trained anew")

    def apply(self, network: "nn.Module", workload: LoadedWorkload) -> "nn.Module":
        from pareflow.model.distillation.teacher import check_classes

        self.check_labels(workload)
        check_classes(network, network, "its next generation", workload)
        for generation in range(self.generations):
            network = self._next(network, workload, generation)
        return network

    def _next(self, parent: "nn.Module", workload: LoadedWorkload, generation: int) -> "nn.Module":
        from pareflow.model.distillation.teacher import Teacher

        child, teacher = _newborn(parent, workload, self.seed_of(workload)), Teacher(parent, workload)

        def loss(module: "nn.Module", batch: Batch) -> "torch.Tensor":
            return self.response_loss(module(*batch.inputs.values()), teacher(batch)[0], batch, workload)

        return fit(child, workload, self, loss=loss, stage=f"generation-{generation + 1}")


def _newborn(parent: "nn.Module", workload: LoadedWorkload, seed: int) -> "nn.Module":
    """The workload's untrained network. Raises: UnsuitableError where the parent has other weights by now."""
    import torch

    torch.manual_seed(seed)
    child = workload.definition.network()
    assert isinstance(child, torch.nn.Module)  # the form is torch
    if differing := first_difference(child, parent):
        raise UnsuitableError(
            "a network that is born again must have the layers that the workload's `network()` has",
            f"they differ in `{differing[0]}`",
            "Put `born_again` before what changes layers, or use `distillation`",
        )
    return child
