"""A cascade of rankers: each stage orders what the one before let through, and lets fewer through."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from pydantic import Field

from pareflow.errors import BadOutputError
from pareflow.runtime.confidence import named
from pareflow.runtime.endpoint import Endpoint
from pareflow.runtime.policy import Policy, TensorName
from pareflow.runtime.ranking_calibration import RankingCalibration
from pareflow.runtime.rows import row_count, taken
from pareflow.runtime.tiers import Part, calibrated, named_after
from pareflow.workload import Arrays


class RankingCascade(Policy):
    """Score candidates by ever costlier rankers, each of which sees the best of the one before.

    A request is one query: a row per candidate, and a score per row as answer, higher for better. The full
    model scores the last that are left. Whoever was let go keeps the order of the stage that let him go,
    below all that went on. It stands before what joins requests or takes them apart: a plan that has it
    behind `dynamic_batching`, a cache of rows or another cascade is refused.
    Without a calibration the full model scores every candidate. A stage that fails lets everyone through.
    A plan that has it before a model of more outputs is refused: who was let go has none but a score.
    Source: Wang, Lin and Metzler, 2011, SIGIR 105 (cascade ranking).
    """

    name: ClassVar[str] = "ranking_cascade"
    requires: ClassVar[tuple[str, ...]] = ("numpy",)
    chooses: ClassVar[bool] = True
    whole_requests: ClassVar[bool] = True

    output: str = Field(default="", description="the output that holds the scores; else the only one")
    calibration: RankingCalibration | None = Field(
        default=None, description="which stages, and how many each lets through; none: the full model alone"
    )

    def tensors(self) -> tuple[TensorName, ...]:
        return (TensorName("output", "outputs", self.output),) if self.output else ()

    def wrap(self, below: Endpoint) -> Endpoint:
        """Raises: CalibrationError where the calibration is of other variants."""
        stages = _Stages(self, below, calibrated(below, self.calibration))
        return named_after(below.then(self.name, stages.answer, stages.figures), self.calibration)


class _Stages:
    """The rankers one after the other, and how many candidates each has scored."""

    def __init__(self, policy: RankingCascade, below: Endpoint, tiers: Mapping[str, Endpoint]) -> None:
        self._policy, self._below, self._tiers = policy, below, tiers
        self._keep = {} if policy.calibration is None else policy.calibration.keep
        self._requests = self._scored_by_full = 0
        self._scored, self._failed = Counter[str](), Counter[str]()

    async def answer(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Raises: what the full model raises, BadOutputError, and UnsuitableError."""
        stages, left = list[Part](), np.arange(row_count(feeds, otherwise=1))
        for name, tier in self._tiers.items():
            if self._keep[name] >= len(left):
                continue  # everyone goes on
            part = await self._scores(name, tier, feeds, left)
            if part is not None:
                stages.append(part)
                left = best(part, self._policy.output, self._keep[name])
        answers = await self._below.answer(taken(feeds, left))
        self._requests += 1
        self._scored_by_full += len(left)
        if not stages:
            return answers
        last = Part(left, {self._policy.output: named(answers, self._policy.output)})
        name = self._policy.output or next(iter(answers))
        return {name: merged([*stages, last], self._policy.output)}

    def figures(self) -> Mapping[str, float]:
        """Candidates that each stage scored, and requests in which it failed."""
        scored = {f"scored_{name}": self._scored[name] for name in self._tiers}
        failed = {f"failed_{name}": self._failed[name] for name in self._tiers}
        return {"requests": self._requests, **scored, "scored_full": self._scored_by_full, **failed}

    async def _scores(
        self, name: str, tier: Endpoint, feeds: Mapping[str, np.ndarray], rows: np.ndarray
    ) -> Part | None:
        try:
            scores = named(await tier.answer(taken(feeds, rows)), self._policy.output)
            if not np.isfinite(scores).all():
                raise BadOutputError("scores must be finite", f"those of `{name}` are not", "Mend it")
            self._scored[name] += len(rows)
            return Part(rows, {self._policy.output: scores})
        except Exception:  # whatever a broken variant raises: the next one sees all, and it is counted
            self._failed[name] += 1
            return None


def best(part: Part, output: str, keep: int) -> np.ndarray:
    """The `keep` rows with the highest scores, in the order of the request; of equal ones the first."""
    scores = named(part.outputs, output).reshape(len(part.rows))
    return np.sort(part.rows[np.argsort(-scores, kind="stable")[:keep]])


def merged(stages: Sequence[Part], output: str) -> np.ndarray:
    """One score per row of the first stage: the last stage's own for those that it saw.

    Those of earlier stages are given numbers one apart, below all of the later ones, in the order of the
    stage that let them go: their own scores, moved so far down, could round to equal ones.
    """
    scores = [named(stage.outputs, output) for stage in stages]
    found = np.empty(scores[0].shape, np.result_type(*scores))
    gone_on = stages[-1].rows
    found[gone_on] = scores[-1].reshape(len(gone_on), *found.shape[1:])
    floor = float(found[gone_on].min(initial=0.0))
    for stage, own in zip(stages[-2::-1], scores[-2::-1], strict=True):
        let_go = ~np.isin(stage.rows, gone_on)
        rows, order = stage.rows[let_go], np.argsort(-own[let_go].reshape(-1), kind="stable")
        flat = floor - 1 - np.arange(len(rows))
        found[rows[order]] = flat.reshape(len(rows), *found.shape[1:])
        floor, gone_on = floor - len(rows), stage.rows
    return found
