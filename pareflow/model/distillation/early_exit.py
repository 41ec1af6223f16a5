"""A network that ends early, taught by its own later part."""

import copy
from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from pareflow.model.distillation.response import ResponseTechnique
from pareflow.model.training import Batch, fit, task_loss
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import torch
    from torch import nn


class EarlyExit(ResponseTechnique):
    """The first blocks with an exit of their own, trained together with, and taught by, the whole network.

    Source: Zhang et al., 2019, arXiv:1905.08094 (be your own teacher), section 3.2. Departures: an exit is a
    copy of the network's own last layers, behind two separable convolutions for images and a linear map for
    tokens; hints are shares.
    """

    name: ClassVar[str] = "early_exit"
    form: ClassVar[Form] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "accelerate")

    exits: int = Field(default=1, ge=1, description="how many, after equal parts of the blocks")
    taken: int = Field(default=1, ge=1, description="which of them answers; 1 is the first")
    hints: float = Field(
        default=0.03, ge=0, description="weight of the hidden states' squared error, a share of their square"
    )

    @model_validator(mode="after")
    def _taken_is_one_of_them(self) -> Self:
        if self.taken > self.exits:
            raise ValueError(f"`taken <= exits` must hold, but got {self.taken} of {self.exits}")
        return self

    def apply(self, network: "nn.Module", workload: LoadedWorkload) -> "nn.Module":
        import torch

        from pareflow.model.distillation.exits import with_exits
        from pareflow.model.distillation.teacher import check_answers

        task_loss(workload)  # labels are needed: the whole network has no teacher
        check_answers(network, network, "its exits", workload)
        torch.manual_seed(self.seed_of(workload))
        module = with_exits(copy.deepcopy(network), workload, self.exits)

        def loss(module: "nn.Module", batch: Batch) -> "torch.Tensor":
            return self._loss(module(*batch.inputs.values()), batch, workload)

        fit(module, workload, self, loss=loss)
        return copy.deepcopy(module.networks[self.taken - 1])

    def _loss(
        self,
        answers: "list[tuple[torch.Tensor, list[torch.Tensor]]]",
        batch: Batch,
        workload: LoadedWorkload,
    ) -> "torch.Tensor":
        """The sum over all exits; the whole network learns from the labels alone."""
        from pareflow.model.distillation.losses import hint

        *early, (whole, (last,)) = answers
        assert batch.targets is not None  # the training split has labels, so all have
        found = workload.definition.loss(whole, batch.targets)
        for logits, (state,) in early:
            found = found + self.response_loss(logits, whole.detach(), batch, workload)
            found = found + self.hints * hint(state, last.detach())
        return found
