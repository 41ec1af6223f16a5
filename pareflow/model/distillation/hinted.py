"""A student that also shows its hidden states, as large as its teacher's."""

from collections.abc import Mapping

import torch
from torch import nn

from pareflow.errors import UnsuitableError
from pareflow.model.distillation.blocks import Trace, bridge, captured, find_blocks
from pareflow.model.distillation.teacher import Answers
from pareflow.workload import LoadedWorkload


class Hinted(nn.Module):
    """A student and the projections of its layers to its teacher's; they are trained together."""

    def __init__(self, student: nn.Module, layers: list[str], projections: list[nn.Module]) -> None:
        super().__init__()
        self.student, self._layers = student, layers
        self.projections = nn.ModuleList(projections)

    def forward(self, *inputs: torch.Tensor) -> Answers:
        with captured(self.student, self._layers) as found:
            outputs = self.student(*inputs)
        states = [project(found[name]) for name, project in zip(self._layers, self.projections, strict=True)]
        return outputs, states


def hinted(
    student: nn.Module, teacher: nn.Module, layers: Mapping[str, str], workload: LoadedWorkload
) -> Hinted:
    """The student with a projection for each pair of `layers`, student's to teacher's.

    Raises: UnsuitableError where a layer is not there, or no projection fits.
    """
    ours, theirs = Trace.of(student, workload).made, Trace.of(teacher, workload).made
    for whose, names, known in (("student", layers, ours), ("teacher", layers.values(), theirs)):
        for name in names:
            if name not in known:
                raise UnsuitableError(
                    "`hint_layers` must go from layers of the student to layers of the teacher",
                    f"the {whose} runs no `{name}`",
                    f"It runs, among others, {', '.join(list(known)[:5])}",
                )
    projections = [bridge(ours[a], theirs[b], f"`{a}` and the teacher's `{b}`") for a, b in layers.items()]
    return Hinted(student, list(layers), projections)


def by_depth(student: nn.Module, teacher: nn.Module) -> dict[str, str]:
    """Each block of the student, with the teacher's that lies as deep. Raises: UnsuitableError."""
    ours, theirs = find_blocks(student), find_blocks(teacher)
    return {name: theirs[(i + 1) * len(theirs) // len(ours) - 1] for i, name in enumerate(ours)}
