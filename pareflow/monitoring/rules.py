"""Rules of monitoring as one YAML says them: what is a breach, at which error, and what follows from it."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pareflow.serving.agreement import NEAR
from pareflow.spec import read_part

Action = Literal["rollback", "retrain"]
RuleName = Literal[
    "errors",
    "refused",
    "latency_p50",
    "latency_p99",
    "variant_drift",
    "input_drift",
    "prediction_drift",
    "quality_min",
    "quality_drop",
]
Share = Annotated[float, Field(gt=0, lt=1)]
LONGEST_MS = 50_000.0
"""The last bound of the server's histogram: beyond it nothing is told apart."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class _Rule(_Part):
    then: tuple[Action, ...] = Field(
        default=(), description="beside the event: `rollback`, and `retrain`, which an automation follows"
    )


class Errors(_Rule):
    """Of all requests so many may be answered with 5xx."""

    max_share: Share = 0.01


class Refused(_Rule):
    """Of all requests so many may be answered with 429, for lack of room: the load is to blame."""

    max_share: Share = 0.05


class Latency(_Rule):
    """What half, and what 99 of a hundred requests may take in the server, its line included."""

    p50_ms: Annotated[float, Field(gt=0, le=LONGEST_MS)] | None = None
    p99_ms: Annotated[float, Field(gt=0, le=LONGEST_MS)] | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.p50_ms is None and self.p99_ms is None:
            raise ValueError("`p50_ms` or `p99_ms` must be given")
        return self


class VariantDrift(_Rule):
    """How often the served variant may predict otherwise than the original, on live requests.

    Predictions that are numbers with fractions agree within `tolerance` of the reference's spread; those of
    many positions, where all but a hundredth of them do.
    """

    max_disagreement: Share | None = Field(
        default=None,
        description="left out, the SLA's `quality.max_drop`, where its metric is the share that is right",
    )
    tolerance: float = Field(default=NEAR, ge=0)


class Drift(_Rule):
    """How far live data may lie from the calibration data: a feature's largest difference of shares.

    A window is judged when it has `samples`, and not before `minutes` are over; two in a row must agree.
    """

    min_distance: Share = Field(default=0.1, description="smaller differences are none, however certain")
    samples: int = Field(default=500, ge=50)
    minutes: float = Field(default=10, gt=0)


class InputDrift(Drift):
    """Features of the network's inputs, and projections of embeddings."""

    features: int = Field(default=16, ge=1, description="single values that are watched, beside summaries")
    projections: int = Field(default=8, ge=0, description="of the embeddings, along fixed directions")
    embedding: str | None = Field(
        default=None, description="the output of the original that embeds; left out, all of its outputs"
    )


class LateQuality(_Rule):
    """How good answers must have been, once labels are there: joined by request id."""

    min: Share | None = Field(default=None, description="of the served answers must be right")
    max_drop: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="below the original on the same requests"
    )

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.min is None and self.max_drop is None:
            raise ValueError("`min` or `max_drop` must be given")
        return self


class Rules(_Part):
    """All rules of one served model. What is left out is recorded, and never a breach."""

    every_s: float = Field(default=5, gt=0, description="between two looks")
    record_s: float = Field(default=60, gt=0, le=600, description="between two rows in MLflow")
    false_alarms_per_week: float = Field(
        default=0.01, gt=0, lt=1, description="of all rules together: a chance, kept however often one looks"
    )
    windows: int = Field(default=3, ge=1, description="looks that must agree before it is a breach")
    recovered_after: int = Field(default=12, ge=1, description="looks under the limit that end a breach")
    keep_days: float = Field(default=30, gt=0, description="answers wait for labels that come so late")
    errors: Errors | None = None
    refused: Refused | None = None
    latency: Latency | None = None
    variant_drift: VariantDrift | None = None
    input_drift: InputDrift | None = None
    prediction_drift: Drift | None = None
    quality: LateQuality | None = None

    @model_validator(mode="after")
    def _has_rules(self) -> Self:
        if not self.named():
            raise ValueError("at least one rule must be given, of errors, refused, latency, variant_drift, …")
        return self

    def named(self) -> dict[RuleName, tuple[Action, ...]]:
        """Every rule that is on, by name, with what follows from its breach."""
        found: dict[RuleName, tuple[Action, ...]] = {}
        if self.errors is not None:
            found["errors"] = self.errors.then
        if self.refused is not None:
            found["refused"] = self.refused.then
        if self.latency is not None:
            found |= {"latency_p50": self.latency.then} if self.latency.p50_ms else {}
            found |= {"latency_p99": self.latency.then} if self.latency.p99_ms else {}
        if self.variant_drift is not None:
            found["variant_drift"] = self.variant_drift.then
        if self.input_drift is not None:
            found["input_drift"] = self.input_drift.then
        if self.prediction_drift is not None:
            found["prediction_drift"] = self.prediction_drift.then
        if self.quality is not None:
            found |= {"quality_min": self.quality.then} if self.quality.min is not None else {}
            found |= {"quality_drop": self.quality.then} if self.quality.max_drop is not None else {}
        return found

    @property
    def error(self) -> float:
        """The chance of a false alarm in a week that each rule may spend."""
        return self.false_alarms_per_week / len(self.named())

    @property
    def retrains(self) -> bool:
        """Whether the breach of a rule starts a retraining."""
        return any("retrain" in then for then in self.named().values())

    @property
    def needs_requests(self) -> bool:
        """Whether a rule needs kept requests."""
        return any(
            rule is not None
            for rule in (self.variant_drift, self.input_drift, self.prediction_drift, self.quality)
        )


def read(path: Path) -> Rules:
    """The rules in a YAML file. Raises: InputError if it cannot be read, SpecError with every problem."""
    return read_part(Rules, path, "rules of monitoring", "See configs/monitoring/rules.yaml")
