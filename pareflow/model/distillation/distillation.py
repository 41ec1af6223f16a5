"""A smaller network, taught by the one at hand."""

from typing import TYPE_CHECKING, ClassVar, Self

from pydantic import Field, model_validator

from pareflow.errors import InputError
from pareflow.model.distillation.response import ResponseTechnique
from pareflow.model.low_rank import LowRank
from pareflow.model.pruning.channels import ChannelPruning
from pareflow.model.training import Batch, fit
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import torch
    from torch import nn


class Distillation(ResponseTechnique):
    """A student of the workload's, or a smaller copy of the network, taught by the whole network.

    Any mix of losses: labels and answers (Source: Hinton et al., 2015, arXiv:1503.02531, section 2), hints
    through learned projections (Romero et al., 2015, arXiv:1412.6550, section 2.2), and relations between
    samples (Park et al., 2019, arXiv:1904.05068, section 3.2). Departures: hints are learned along with the
    answers, not before them; relations are those of the logits. The smaller copy: blocks dropped evenly (Sanh
    et al., 2019, arXiv:1910.01108, section 3), then `channel_pruning`, then `low_rank`.
    """

    name: ClassVar[str] = "distillation"
    form: ClassVar[Form] = "torch"
    requires: ClassVar[tuple[str, ...]] = ("torch", "accelerate", "torch-pruning")
    taking: ClassVar[tuple[str, ...]] = ("depth",)

    student: str | None = Field(
        default=None,
        description="its name in the workload's `students()`; without one, the network itself made smaller",
    )
    depth: float = Field(default=1.0, gt=0, le=1, description="share of the blocks in the smaller copy")
    width: float = Field(default=0.5, gt=0, le=1, description="share of the channels in the smaller copy")
    rank: float = Field(default=1.0, gt=0, le=1, description="share of the parameters in its low-rank form")
    hints: float = Field(
        default=0.0, ge=0, description="weight of the hidden states' squared error, a share of their square"
    )
    hint_layers: dict[str, str] = Field(
        default={}, description="student's layers to teacher's; where empty, blocks that lie as deep"
    )
    distance: float = Field(default=0.0, ge=0, description="weight of the distances between samples")
    angle: float = Field(default=0.0, ge=0, description="weight of the angles between samples")

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if self.student is None and self.depth == self.width == self.rank == 1:
            raise ValueError("`depth`, `width` or `rank` must be below 1 where no student is named")
        if self.hint_layers and not self.hints:
            raise ValueError("`hints > 0` must hold where `hint_layers` are named")
        if (self.distance or self.angle) and self.batch_size < 3:
            raise ValueError("`batch_size >= 3` must hold where samples are related to each other")
        return self

    def apply(self, network: "nn.Module", workload: LoadedWorkload) -> "nn.Module":
        from pareflow.model.distillation.hinted import by_depth, hinted
        from pareflow.model.distillation.teacher import Teacher, check_answers

        self.check_labels(workload)
        student = self._student(network, workload)
        check_answers(network, student, f"the student `{self.student or 'smaller copy'}`", workload)
        layers = (self.hint_layers or by_depth(student, network)) if self.hints else {}
        pupil = hinted(student, network, layers, workload)
        teacher = Teacher(network, workload, list(layers.values()))

        def loss(module: "nn.Module", batch: Batch) -> "torch.Tensor":
            return self._loss(module(*batch.inputs.values()), teacher(batch), batch, workload)

        fit(pupil, workload, self, loss=loss)
        return pupil.student

    def takes(self, network: "nn.Module", workload: LoadedWorkload) -> list[str] | None:
        """The blocks that the smaller copy lacks."""
        from pareflow.model.distillation.blocks import dropped

        if self.student is not None or self.depth == 1:
            return None
        return dropped(network, workload, self.depth)

    def _student(self, teacher: "nn.Module", workload: LoadedWorkload) -> "nn.Module":
        """The untaught student. Raises: InputError where its name is not known; UnsuitableError."""
        import torch

        from pareflow.torch_network import as_stored

        torch.manual_seed(self.seed_of(workload))
        if self.student is None:
            return self._smaller(teacher, workload)
        known = workload.definition.students()
        if self.student not in known:
            raise InputError(
                "`student` must name a network of the workload's `students()`",
                f"there is no `{self.student}`",
                f"Known are {', '.join(known) or 'none'}",
            )
        return as_stored(known[self.student](), list(workload.example(1)))

    def _smaller(self, network: "nn.Module", workload: LoadedWorkload) -> "nn.Module":
        """A copy with fewer blocks, then fewer channels, then thinner layers. Raises: UnsuitableError."""
        from pareflow.model.distillation.blocks import drop_blocks

        if self.depth < 1:
            network = drop_blocks(network, workload, self.depth)
        if self.width < 1:
            narrow = ChannelPruning(ratio=1 - self.width, widths="all", round_to=1, epochs=0)
            network = narrow.apply(network, workload)
        if self.rank < 1:
            network = LowRank(share=self.rank, epochs=0).apply(network, workload)
        return network

    def _loss(
        self,
        ours: "tuple[torch.Tensor, list[torch.Tensor]]",
        theirs: "tuple[torch.Tensor, list[torch.Tensor]]",
        batch: Batch,
        workload: LoadedWorkload,
    ) -> "torch.Tensor":
        from pareflow.model.distillation.losses import angle, distance, hint

        found = self.response_loss(ours[0], theirs[0], batch, workload)
        for state, wanted in zip(ours[1], theirs[1], strict=True):
            found = found + self.hints / len(ours[1]) * hint(state, wanted)
        if self.distance:
            found = found + self.distance * distance(ours[0], theirs[0])
        if self.angle:
            found = found + self.angle * angle(ours[0], theirs[0])
        return found
