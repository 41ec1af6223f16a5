"""Tiers chosen before anything is computed, by how complex a request is."""

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic import Field

from pareflow.runtime.calibration import ThresholdCalibration
from pareflow.runtime.complexity import SimplicityScore, name_of, simplicity
from pareflow.runtime.endpoint import Endpoint
from pareflow.runtime.policy import Policy, TensorName
from pareflow.runtime.rows import taken
from pareflow.runtime.tiers import Part, Tiered, named_after, score_of, scored_by


class ComplexityRouting(Policy):
    """Send each row to the cheapest tier that it is simple enough for, the rest to the full model.

    By a rule, the number of its tokens, or by a learned score per tier; each row is computed once. The
    threshold is calibrated as that of `confidence_cascade` is, with the score in place of the confidence;
    without a calibration the full model answers everything. Where a tier fails, the full model answers.
    Tokens must be filled up with 0: a row's score is its own, however long its neighbours are.
    """

    name: ClassVar[str] = "complexity_routing"
    requires: ClassVar[tuple[str, ...]] = ("numpy",)
    chooses: ClassVar[bool] = True
    regroups: ClassVar[bool] = True

    input: str = Field(
        default="", description="the input that is looked at: tokens or a mask, filled up with 0; an image"
    )
    scores: dict[str, SimplicityScore] = Field(
        default={}, description="the learned score of each tier, by name; without one the rule"
    )
    calibration: ThresholdCalibration | None = Field(
        default=None, description="which tiers, and from which score on; none: the full model alone"
    )

    def tensors(self) -> tuple[TensorName, ...]:
        return (TensorName("input", "inputs", self.input),) if self.input or self.calibration else ()

    @property
    def kind_of_score(self) -> str:
        """What the threshold is of: the rule or the learned scores, and the input that is looked at."""
        return score_of(name_of(self.scores), self.input)

    def wrap(self, below: Endpoint) -> Endpoint:
        """Raises: CalibrationError where the calibration is of other variants, scores or another input."""
        tiers = scored_by(self.kind_of_score, below, self.calibration)
        tiered = Tiered(below, tiers, self._simple)
        return named_after(below.then(self.name, tiered.answer, tiered.figures), self.calibration)

    async def _simple(
        self, name: str, tier: Endpoint, feeds: Mapping[str, np.ndarray], rows: np.ndarray
    ) -> Part:
        """The rows that are simple enough for a tier, and its answers."""
        assert self.calibration is not None  # without one there are no tiers
        score = simplicity(taken(feeds, rows), self.input, self.scores.get(name))
        simple = rows[score >= self.calibration.threshold]
        if not len(simple):
            return Part(simple, {})
        return Part(simple, await tier.answer(taken(feeds, simple)))
