"""A served model: what answers now, with its policies in place, its processing before and after."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any, Literal, TypeVar

import numpy as np

from pareflow.errors import InputError, PareflowError, StoreError
from pareflow.runtime.endpoint import Endpoint
from pareflow.serving import protocol
from pareflow.serving.executable import Executable, Release, seconds
from pareflow.serving.plan import ServingPlan
from pareflow.workload import Arrays

_Result = TypeVar("_Result")
SAMPLES, PREDICTIONS = "samples", "predictions"
"""The input that holds raw samples, rather than what the network takes; and the output that answers it."""
Standing = Literal["here", "elsewhere", "unknown"]
"""Where the gate promoted a version: in this environment, in another one, or nowhere that is known."""
BRIEF_S = 1e-3
"""What takes less is done on the event loop: going to a thread and back takes a tenth of it."""


class Hosted:
    """A release that answers, and its tiers: other variants of the same model, by name.

    Made by `opened`, which blocks; then `started` in the event loop.
    """

    def __init__(self, main: Executable, tiers: Mapping[str, Executable], plan: ServingPlan) -> None:
        self.main, self.tiers, self.plan = main, dict(tiers), plan
        self.standing: Standing = "unknown"
        for name, tier in tiers.items():
            _check_alike(main, name, tier)
        samples = main.model.golden()["samples"][:1]
        self._brief = seconds(lambda: main.model.preprocess(samples)) < BRIEF_S
        self._asked = 0
        self._idle = asyncio.Event()

    @property
    def releases(self) -> dict[str, Release]:
        """What answers, by the name of the tier; the main one's is empty."""
        return {"": self.main.release, **{name: tier.release for name, tier in self.tiers.items()}}

    @property
    def release(self) -> Release:
        return self.main.release

    @property
    def in_demand(self) -> bool:
        """Whether more requests are there than sessions compute."""
        return self._asked > self.main.sessions

    def started(self) -> "Hosted":
        """With its policies in place; call it in the event loop."""
        self._idle.set()
        tiers = {name: tier.endpoint for name, tier in self.tiers.items()}
        endpoint, chosen = replace(self.main.endpoint, tiers=tiers), False
        for policy in reversed(self.plan.chosen()):
            chosen = chosen or policy.chooses
            if not chosen:  # what stands below the choice stands before every tier
                tiers = {name: policy.wrap(tier) for name, tier in tiers.items()}
            endpoint = replace(policy.wrap(endpoint), tiers=tiers)
        self.endpoint: Endpoint = endpoint
        return self

    @asynccontextmanager
    async def asked(self) -> AsyncIterator["Hosted"]:
        """While inside, it is not closed."""
        self._asked += 1
        self._idle.clear()
        try:
            yield self
        finally:
            self._asked -= 1
            if not self._asked:
                self._idle.set()

    async def retire(self, *, for_good: bool = False) -> None:
        """Close it once nobody waits for an answer of it any more; for good, what it kept is removed too."""
        await self._idle.wait()
        for endpoint in (self.endpoint, *self.endpoint.tiers.values()):
            if for_good:
                with suppress(StoreError):  # a store that is away: what it keeps is found by no other version
                    await endpoint.flush()
            await endpoint.close()
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Close what was opened: for one that was never started. It blocks."""
        for executable in (self.main, *self.tiers.values()):
            executable.close()

    async def answer(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """The outputs for the network's inputs, or the predictions for raw samples and all outputs besides.

        Raises: InputError where a name, type or rank is not the model's; what the policies raise.
        """
        if feeds.keys() == {SAMPLES}:
            predictions, outputs = await self.predict(self._as_samples(feeds[SAMPLES]))
            return {PREDICTIONS: predictions, **outputs}
        self._check(feeds)
        try:
            return await self.endpoint.answer(feeds)
        except PareflowError:
            raise
        except Exception as error:
            unusual = self._unusual(feeds)
            if unusual is None:
                raise
            raise self._refused(unusual) from error

    async def predict(self, samples: Any) -> tuple[np.ndarray, Arrays]:
        """One prediction per raw sample, and the outputs that they come from. Raises: InputError."""
        try:
            feeds = await self._processed(lambda: self.main.model.preprocess(samples))
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise InputError(
                f"samples must be what {self.release.name} takes: {self.sample_kind}",
                f"its preprocessing says {type(error).__name__}: {error}",
                "Mend the samples",
            ) from error
        outputs = await self.endpoint.answer(feeds)
        return await self._processed(lambda: self.main.model.postprocess(outputs)), outputs

    async def predicted(self, samples: Any) -> Arrays:
        """The outputs for raw samples, and the predictions. Raises: InputError."""
        predictions, outputs = await self.predict(samples)
        return {**outputs, PREDICTIONS: predictions}

    async def predictions(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """One prediction per row of the network's outputs; of those that `answer` gave, the same again."""
        found = outputs.get(PREDICTIONS)
        if found is not None:
            return found
        return await self._processed(lambda: self.main.model.postprocess(dict(outputs)))

    @property
    def sample_kind(self) -> str:
        """`text`, or the numpy type of a raw sample's values."""
        return str(self.main.model.document["samples"])

    def metadata(self) -> dict[str, Any]:
        """What the protocol's model metadata says."""
        return {
            "name": self.release.name,
            "versions": [self.release.version],
            "platform": f"{self.main.ran.runtime}_{self.main.ran.precision}",
            "inputs": [tensor.to_json() for tensor in self.main.inputs],
            "outputs": [tensor.to_json() for tensor in self.main.outputs],
        }

    async def _processed(self, work: Callable[[], _Result]) -> _Result:
        return work() if self._brief else await asyncio.to_thread(work)

    def _as_samples(self, array: np.ndarray) -> Any:
        if self.sample_kind == "text":
            return [str(text) for text in array.ravel()]
        return array

    def _check(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Raises: InputError. Sizes are the runtime's to refuse: golden samples show what it is given."""
        counts = set()
        for tensor in self.main.inputs:
            array = feeds.get(tensor.name)
            if array is None:
                raise self._refused(f"`{tensor.name}` is missing")
            if protocol.datatype(array.dtype) != tensor.datatype:
                raise self._refused(f"`{tensor.name}` is {protocol.datatype(array.dtype)}")
            if array.ndim != len(tensor.shape):
                raise self._refused(f"`{tensor.name}` has shape {array.shape}")
            counts.add(len(array))
        if len(feeds) != len(self.main.inputs):
            names = {tensor.name for tensor in self.main.inputs}
            raise self._refused(f"there is no `{next(name for name in feeds if name not in names)}`")
        if len(counts) > 1:
            raise self._refused(f"its inputs hold {' and '.join(map(str, sorted(counts)))} samples")
        if counts == {0}:
            raise self._refused("it holds no sample")

    def _unusual(self, feeds: Mapping[str, np.ndarray]) -> str | None:
        """An input of another size than those that the runtime was seen to take, in words."""
        for tensor in self.main.inputs:
            sizes = zip(tensor.shape, feeds[tensor.name].shape, strict=True)
            if any(usual not in (-1, size) for usual, size in sizes):
                return f"`{tensor.name}` has shape {feeds[tensor.name].shape}"
        return None

    def _refused(self, found: str) -> InputError:
        takes = ", ".join(f"`{t.name}` {t.datatype} {list(t.shape)}" for t in self.main.inputs)
        return InputError(
            f"a request to {self.release.name} must hold {takes}, or `{SAMPLES}` alone",
            found,
            f"See GET /v2/models/{self.release.name}",
        )


def opened(releases: Mapping[str, Release], plan: ServingPlan, *, apart: bool = False) -> Hosted:
    """Open releases by the name of the tier, the main one's empty; `apart`, that one in a process of its own.

    Raises: as `Executable`; InputError.
    """
    executables = {
        name: Executable(release, plan, apart=apart and not name) for name, release in releases.items()
    }
    return Hosted(executables.pop(""), executables, plan)


def _check_alike(main: Executable, name: str, tier: Executable) -> None:
    """Raises: InputError where a tier takes or gives other tensors than the model that it stands in for."""
    for side in ("inputs", "outputs"):
        ours, theirs = ({(t.name, t.datatype) for t in getattr(one, side)} for one in (main, tier))
        if ours != theirs:
            raise InputError(
                f"the tier `{name}` must have the {side} of {main.release.name}: {_named(ours)}",
                f"{tier.release.name} has {_named(theirs)}",
                "Name a variant of the same model",
            )


def _named(tensors: set[tuple[str, str]]) -> str:
    return ", ".join(f"`{name}` {datatype}" for name, datatype in sorted(tensors))
