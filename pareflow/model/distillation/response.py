"""What every distillation has: labels and a teacher's answers, mixed."""

from typing import TYPE_CHECKING

from pydantic import Field

from pareflow.errors import UnsuitableError
from pareflow.model.training import Batch, TrainedTechnique, check_targets
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import torch


class ResponseTechnique(TrainedTechnique):
    """A technique that trains on labels and on a teacher's answers.

    Source: Hinton et al., 2015, arXiv:1503.02531, section 2: α · cross-entropy + (1 − α) · T² · KL. Where
    targets are floats, a teacher's answers are numbers, and their squared error stands for T² · KL.
    """

    epochs: int = Field(default=2, ge=1, description="passes over the training split")
    alpha: float = Field(
        default=0.1, ge=0, le=1, description="weight of the labels; the teacher's is the rest"
    )
    temperature: float = Field(default=4.0, gt=0, description="what logits are divided by before the softmax")

    def check_labels(self, workload: LoadedWorkload) -> None:
        """Raises: UnsuitableError where the labels have a weight, and there are none; WorkloadError where it
        trains, and they are no numbers."""
        if self.epochs:
            check_targets(workload)
        if self.alpha and workload.split("train").targets is None:
            raise UnsuitableError(
                "`alpha > 0` must go with labels",
                f"alpha={self.alpha:g} and the training split has none",
                "Set `alpha: 0` to learn from the teacher alone",
            )

    def response_loss(
        self, outputs: "torch.Tensor", teacher: "torch.Tensor", batch: Batch, workload: LoadedWorkload
    ) -> "torch.Tensor":
        """The mix of both losses on a batch: a scalar. Raises: UnsuitableError where there are no classes."""
        found = (1 - self.alpha) * self._to_teacher(outputs, teacher, batch.targets)
        if self.alpha:
            assert batch.targets is not None  # `check_labels` was asked before
            found = found + self.alpha * workload.definition.loss(outputs, batch.targets)
        return found

    def _to_teacher(
        self, outputs: "torch.Tensor", teacher: "torch.Tensor", targets: "torch.Tensor | None"
    ) -> "torch.Tensor":
        from torch.nn.functional import mse_loss

        from pareflow.model.distillation.losses import response

        if targets is not None and targets.is_floating_point():
            return mse_loss(outputs, teacher)
        axis = class_axis(tuple(outputs.shape), None if targets is None else tuple(targets.shape))
        return response(outputs, teacher, self.temperature, axis)


def gives_numbers(workload: LoadedWorkload) -> bool:
    """Whether it is a regression: its targets are floats."""
    targets = workload.split("train").targets
    return targets is not None and targets.dtype.kind == "f"


def check_class_axis(outputs: tuple[int, ...], workload: LoadedWorkload) -> None:
    """Raises: UnsuitableError unless outputs of this shape hold classes, or numbers as targets do."""
    targets = workload.split("train").targets
    if not gives_numbers(workload):
        class_axis(outputs, None if targets is None else (*outputs[:1], *targets.shape[1:]))


def class_axis(outputs: tuple[int, ...], targets: tuple[int, ...] | None) -> int:
    """Which axis of the outputs holds the classes: that which the targets lack, or are 1 long on.

    Both are shapes. It is axis 1, as cross-entropy takes it, or else the last, as of tokens; without labels
    only outputs of two axes tell it. Raises: UnsuitableError.
    """
    for axis in sorted({1, len(outputs) - 1} & {*range(1, len(outputs))}):
        before, behind = outputs[:axis], outputs[axis + 1 :]
        fits = targets in ((*before, *behind), (*before, 1, *behind)) if targets else len(outputs) == 2
        if fits and outputs[axis] > 1:
            return axis
    raise UnsuitableError(
        "logits must have two classes at least, on axis 1 or the last, and their other axes as targets have",
        f"an output of shape {outputs} goes with {f'targets of shape {targets}' if targets else 'no labels'}",
        "Give `data()` a class for each position as targets, or floats where outputs are numbers",
    )
