"""A cascade of classifiers: the cheap ones answer what they are sure of, and pass the rest on."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic import Field

from pareflow.runtime.calibration import ThresholdCalibration
from pareflow.runtime.confidence import Measure, confidence
from pareflow.runtime.endpoint import Endpoint
from pareflow.runtime.policy import Policy, TensorName
from pareflow.runtime.rows import taken
from pareflow.runtime.tiers import Part, Tiered, named_after, score_of, scored_by


class ConfidenceCascade(Policy):
    """Answer each row by the cheapest tier that is sure enough of it, the rest by the full model.

    A row whose confidence reaches the calibrated threshold stays; the others of its batch go on to the next
    tier. Without a calibration nobody is trusted, and the full model answers everything. A tier that fails
    answers nothing, and is counted; what the full model raises is the caller's.
    Source: Viola and Jones, 2001, CVPR 1:511 (cascades); Wang et al., 2017, arXiv:1706.00885 (by confidence).
    """

    name: ClassVar[str] = "confidence_cascade"
    requires: ClassVar[tuple[str, ...]] = ("numpy",)
    chooses: ClassVar[bool] = True
    regroups: ClassVar[bool] = True

    output: str = Field(default="", description="the output that holds the logits; else the only one")
    measure: Measure = Field(default="max_softmax", description="what a tier's confidence is")
    calibration: ThresholdCalibration | None = Field(
        default=None, description="which tiers, and from which confidence on; none: the full model alone"
    )

    def tensors(self) -> tuple[TensorName, ...]:
        return (TensorName("output", "outputs", self.output),) if self.output else ()

    @property
    def kind_of_score(self) -> str:
        """What the threshold is of: the measure, and the output that it is taken of."""
        return score_of(self.measure, self.output)

    def wrap(self, below: Endpoint) -> Endpoint:
        """Raises: CalibrationError where the calibration is of other variants, another measure or output."""
        tiered = Tiered(below, scored_by(self.kind_of_score, below, self.calibration), self._sure)
        return named_after(below.then(self.name, tiered.answer, tiered.figures), self.calibration)

    async def _sure(self, _: str, tier: Endpoint, feeds: Mapping[str, np.ndarray], rows: np.ndarray) -> Part:
        """The rows that a tier is sure of, and its answers."""
        assert self.calibration is not None  # without one there are no tiers
        part = Part(rows, await tier.answer(taken(feeds, rows)))
        sure = confidence(part.outputs, self.output, self.measure) >= self.calibration.threshold
        return part if sure.all() else part.only(sure)
