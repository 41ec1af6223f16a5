"""Generations of one network, each taught by the one before."""

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pareflow.model.distillation.response import ResponseTechnique
from pareflow.model.shapes import untrained
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

    @property
    def passes(self) -> int:
        """Of all generations."""
        return self.generations * self.epochs

    def apply(self, network: "nn.Module", workload: LoadedWorkload) -> "nn.Module":
        from pareflow.model.distillation.teacher import check_answers

        self.check_labels(workload)
        check_answers(network, network, "its next generation", workload)
        for generation in range(self.generations):
            network = self._next(network, workload, generation)
        return network

    def _next(self, parent: "nn.Module", workload: LoadedWorkload, generation: int) -> "nn.Module":
        from pareflow.model.distillation.teacher import Teacher

        seed = self.seed_of(workload) + 1 + generation  # another than its parent's
        child, teacher = untrained(workload, parent, seed), Teacher(parent, workload)

        def loss(module: "nn.Module", batch: Batch) -> "torch.Tensor":
            return self.response_loss(module(*batch.inputs.values()), teacher(batch)[0], batch, workload)

        return fit(child, workload, self, loss=loss, stage=f"generation-{generation + 1}")
