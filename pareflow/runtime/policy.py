"""Level 3, the runtime: the interface of what stands between requests and a loaded executable."""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

from pareflow.catalog import POLICIES, Member
from pareflow.runtime.endpoint import Endpoint


class TensorName(NamedTuple):
    """An input or output that a setting names: the model's own, or that of one of its tiers."""

    setting: str
    side: Literal["inputs", "outputs"]
    name: str
    tier: str | None = None


class Policy(Member, ABC):
    """A way to serve requests, with its settings. One file per policy.

    Any can stand before any, but for what would answer otherwise then: a serving plan refuses keyed caches
    before what `approximates`, since they keep what is below them under one name; what keeps
    answers, and what `joins`, before what `minds_deadlines`; and what `joins` or `regroups` before what asks
    for `whole_requests`.
    """

    family: ClassVar[dict[str, type[Member]]] = POLICIES
    chooses: ClassVar[bool] = False
    """Whether it asks one of the tiers or another, rather than what is below it alone."""
    approximates: ClassVar[bool] = False
    """Whether it may answer otherwise than what is below it, and by the same name."""
    regroups: ClassVar[bool] = False
    """Whether samples of one request may be computed apart, by which rounding may differ."""
    joins: ClassVar[bool] = False
    """Whether it computes several requests as one, which has no deadline."""
    whole_requests: ClassVar[bool] = False
    """Whether what it answers depends on all samples of a request, and on no others."""
    minds_deadlines: ClassVar[bool] = False
    """Whether it answers by what a request's deadline leaves."""

    @abstractmethod
    def wrap(self, below: Endpoint) -> Endpoint:
        """An endpoint that answers as `below` does, by this policy. Called inside the event loop."""

    def tensors(self) -> tuple[TensorName, ...]:
        """The inputs and outputs that its settings name: whoever serves sees first that they are there."""
        return ()
