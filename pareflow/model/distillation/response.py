"""What every distillation has: labels and a teacher's answers, mixed."""

from typing import TYPE_CHECKING

from pydantic import Field

from pareflow.errors import UnsuitableError
from pareflow.model.training import Batch, TrainedTechnique
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import torch


class ResponseTechnique(TrainedTechnique):
    """A technique that trains on labels and on a teacher's answers.

    Source: Hinton et al., 2015, arXiv:1503.02531, section 2: α · cross-entropy + (1 − α) · T² · KL.
    """

    epochs: int = Field(default=2, ge=1, description="passes over the training split")
    alpha: float = Field(
        default=0.1, ge=0, le=1, description="weight of the labels; the teacher's is the rest"
    )
    temperature: float = Field(default=4.0, gt=0, description="what logits are divided by before the softmax")

    def check_labels(self, workload: LoadedWorkload) -> None:
        """Raises: UnsuitableError where the labels have a weight, and there are none."""
        if self.alpha and workload.split("train").targets is None:
            raise UnsuitableError(
                "`alpha > 0` must go with labels",
                f"alpha={self.alpha:g} and the training split has none",
                "Set `alpha: 0` to learn from the teacher alone",
            )

    def response_loss(
        self, outputs: "torch.Tensor", teacher: "torch.Tensor", batch: Batch, workload: LoadedWorkload
    ) -> "torch.Tensor":
        """The mix of both losses on a batch: a scalar."""
        from pareflow.model.distillation.losses import response

        found = (1 - self.alpha) * response(outputs, teacher, self.temperature)
        if self.alpha:
            assert batch.targets is not None  # `check_labels` was asked before
            found = found + self.alpha * workload.definition.loss(outputs, batch.targets)
        return found
