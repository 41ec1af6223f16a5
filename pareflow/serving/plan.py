"""How a model is served: sessions, policies and limits, as one YAML says them."""

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pareflow.catalog import POLICIES, find
from pareflow.errors import SpecError
from pareflow.hardware import probe
from pareflow.runtime.batching import DynamicBatching
from pareflow.runtime.caching.cache import Cache, KeyedCache
from pareflow.runtime.decoding import Decoding
from pareflow.runtime.pipelining import Pipelining
from pareflow.runtime.policy import Policy
from pareflow.spec import read_part
from pareflow.variant import Step


class ServingPlan(BaseModel):
    """The runtime policy of one model. Policies stand in their order: the first meets a request first."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)

    sessions: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="that compute side by side; left out, one per core to use, shared by all models",
    )
    inline_ms: float = Field(
        default=0.1,
        ge=0,
        description="a network that takes less is computed on the event loop, by one session; requests of so "
        "many samples that they take more are not",
    )
    deadline_ms: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="an answer is worthless after so long, unless the request says otherwise"
    )
    tiers: dict[Annotated[str, Field(min_length=1)], str] = Field(
        default={},
        description="other variants of the model by name, cheapest first, for policies to choose from",
    )
    policies: tuple[Any, ...] = ({"dynamic_batching": {}},)
    pipelining: Pipelining = Field(
        default=Pipelining(), description="when raw samples are processed in threads, beside other requests"
    )
    decoding: Decoding | None = Field(
        default=None, description="how a causal language model is decoded; its draft is one of the tiers"
    )

    @model_validator(mode="after")
    def _names_policies(self) -> Self:
        try:
            self.chosen()
        except SpecError as error:
            raise ValueError("; ".join(error.problems)) from error
        except (ValueError, TypeError, AttributeError):
            raise ValueError("each of `policies` must be one `name: {settings}`") from None
        return self

    @model_validator(mode="after")
    def _stands_in_order(self) -> Self:
        for before, behind in combinations(self.chosen(), 2):
            harm = _harm(before, behind)
            if harm is not None:
                raise ValueError(
                    f"`{before.name}` must stand behind `{behind.name}`, but it stands before it, and would "
                    f"{harm}. Name `{behind.name}` first"
                )
        return self

    def to_json(self) -> dict[str, Any]:
        """What is not as it is by default, in the order of the settings."""
        return self.model_dump(mode="json", exclude_defaults=True)

    def write(self, to: Path) -> None:
        """As YAML that `read` takes."""
        to.write_text(yaml.safe_dump(self.to_json(), sort_keys=False))

    def sessions_of(self, threads: int, models: int = 1) -> int:
        """Sessions of so many threads each: as planned, or as many as there are cores to use, in equal
        shares of so many models that are served: what one is asked does not delay another."""
        return self.sessions or max(1, probe.usable_cores() // models // threads)

    def chosen(self) -> tuple[Policy, ...]:
        """The policies, with their settings checked. Raises: SpecError."""
        found = [find(POLICIES, Step.from_json(one), "policy") for one in self.policies]
        return tuple(policy for policy in found if isinstance(policy, Policy))


def _harm(before: Policy, behind: Policy) -> str | None:
    """What a policy would do to one that stands behind it, where that makes answers wrong."""
    if isinstance(before, KeyedCache) and behind.approximates:
        return "keep approximations as the full model's answers"
    if isinstance(before, Cache) and behind.minds_deadlines:
        return "keep what a deadline left time for as the full model's answers"
    if before.joins and behind.whole_requests:
        return "give it the candidates of several queries as one's"
    if before.regroups and behind.whole_requests:
        return "give it a part of a query's candidates"
    if before.joins and behind.minds_deadlines:
        return "give it requests without their deadlines"
    return None


def default(document: Mapping[str, Any]) -> ServingPlan:
    """The plan of a package that has none, by what its `model.json` says.

    Where an answer depends on those beside it, no larger batches are made than it was judged in.
    """
    largest = document.get("judged_batch_size")
    if largest is None:
        return ServingPlan()
    return ServingPlan(policies=({DynamicBatching.name: {"max_batch_size": largest}},))


def read(path: Path) -> ServingPlan:
    """The plan in a YAML file. Raises: InputError if it cannot be read, SpecError with every problem."""
    return read_part(ServingPlan, path, "a serving plan", "Those of `configs/serving/` come with pareflow")
