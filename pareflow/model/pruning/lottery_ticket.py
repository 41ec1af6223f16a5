"""The lottery ticket: a sparse network that could have been trained from its start."""

import copy
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from pareflow.model.pruning.masks import (
    attach_masks,
    choose_masks,
    detach_masks,
    prunable,
    put_masks,
    weights_of,
    zero_masked,
)
from pareflow.model.pruning.saliency import saliencies
from pareflow.model.shapes import untrained
from pareflow.model.training import TrainedTechnique, fit, task_loss
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import torch
    from torch import nn


class LotteryTicket(TrainedTechnique):
    """Prune by magnitude over several rounds, each trained again from the weights of early training.

    In each round the same share of the remaining weights goes, all layers ranked together; what stays is
    rewound and trained. It trains `rounds` times; as with all single zeros, no runtime here gains speed.
    Source: Frankle and Carbin, 2019, arXiv:1803.03635, section 2 (`rewind_epochs: 0`); Frankle et al., 2020,
    arXiv:1912.05671, section 4 (rewinding). Departures: the network to rewind to is the workload's untrained
    one trained for `rewind_epochs` with a rate that falls to zero; the first round prunes the given network.
    """

    name: ClassVar[str] = "lottery_ticket"
    form: ClassVar[Form] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "accelerate")

    epochs: int = Field(default=2, ge=1, description="passes over the training split in each round")
    sparsity: float = Field(default=0.8, gt=0, lt=1, description="share of the weights zero in the end")
    rounds: int = Field(default=3, ge=1, description="how often it prunes, rewinds and trains")
    rewind_epochs: int = Field(default=1, ge=0, description="passes before the point that it rewinds to")

    @property
    def passes(self) -> int:
        """Of all rounds, and of what comes before them."""
        return self.rounds * self.epochs + self.rewind_epochs

    def apply(self, network: "nn.Module", workload: LoadedWorkload) -> "nn.Module":
        loss = task_loss(workload)
        start = self._start(network, workload)
        ticket = copy.deepcopy(network)
        layers = prunable(ticket)

        def stay_zero(done: float) -> None:
            zero_masked(layers)

        for turn in range(1, self.rounds + 1):
            kept = self._ticket(ticket, workload, turn)
            ticket.load_state_dict(start)
            attach_masks(layers)
            put_masks(layers, kept)
            zero_masked(layers)
            fit(ticket, workload, self, loss=loss, stage=f"round-{turn}", after_step=stay_zero)
            detach_masks(layers)
        return ticket

    def _ticket(self, network: "nn.Module", workload: LoadedWorkload, turn: int) -> "dict[str, torch.Tensor]":
        """The masks of this round. Weights that are zero already have the lowest magnitude, and stay zero."""
        layers = prunable(network)
        sparsity = sparsity_after(turn, self.rounds, self.sparsity)
        scores = weights_of(layers, saliencies(network, workload, "magnitude", 1))
        return choose_masks(scores, dict.fromkeys(layers, sparsity), "global")

    def _start(self, network: "nn.Module", workload: LoadedWorkload) -> "dict[str, torch.Tensor]":
        """The weights to rewind to. Raises: UnsuitableError where the workload's `network()` is no start."""
        first = untrained(workload, network, self.seed_of(workload))
        loss = task_loss(workload)
        started = fit(first, workload, self, loss=loss, stage="rewind", epochs=self.rewind_epochs)
        return started.state_dict()


def sparsity_after(turn: int, rounds: int, final: float) -> float:
    """The sparsity after so many rounds, each of which takes the same share of what remains."""
    return float(1 - (1 - final) ** (turn / rounds))
