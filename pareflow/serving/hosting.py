"""One version of a model, opened to serve: sessions loaded and warmed up, policies in place."""

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pareflow.errors import InputError, PareflowError
from pareflow.hardware import probe
from pareflow.measurement import Ran
from pareflow.runtime.endpoint import Endpoint
from pareflow.runtime.pool import SessionPool
from pareflow.serving import protocol
from pareflow.serving.model import PackagedModel
from pareflow.serving.plan import ServingPlan
from pareflow.session import Session
from pareflow.variant import digest
from pareflow.workload import Arrays

_Result = TypeVar("_Result")
SAMPLES, PREDICTIONS = "samples", "predictions"
"""The input that holds raw samples, rather than what the network takes; and the output that answers it."""
WARM_UP = 20
"""Requests that are timed before the first one is answered."""
BRIEF_S = 1e-3
"""What takes less is done on the event loop: going to a thread and back takes a tenth of it."""


@dataclass(frozen=True, slots=True)
class Release:
    """A version of a model, as a package in a folder."""

    name: str
    version: str
    package: Path


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of the network; a size that may vary is -1."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Tensor":
        return cls(document["name"], document["datatype"], tuple(document["shape"]))


class Hosted:
    """A release that answers. Made by `opened`, which blocks; then `started` in the event loop."""

    def __init__(self, release: Release, plan: ServingPlan, model: PackagedModel, pool: SessionPool) -> None:
        self.release, self.plan = release, plan
        self.ran: Ran = model.session.ran()
        self._model, self._pool = model, pool
        self.inputs, self.outputs = described(model)
        self._brief = _seconds(lambda: model.preprocess(model.golden()["samples"][:1])) < BRIEF_S
        self._asked = 0
        self._idle = asyncio.Event()

    def started(self) -> "Hosted":
        """With its policies in place; call it in the event loop."""
        self._idle.set()
        endpoint = self._pool.endpoint(self.identity)
        for policy in reversed(self.plan.chosen()):
            endpoint = policy.wrap(endpoint)
        self.endpoint: Endpoint = endpoint
        return self

    @property
    def identity(self) -> str:
        """Names what answers: the version, the files of its package, and what runs."""
        content = digest(self._model.document["files"])[:16]
        ran = f"{self.ran.runtime} {self.ran.version} {self.ran.precision}"
        return f"{self.release.name}/{self.release.version} {content} {ran}"

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

    async def retire(self) -> None:
        """Close it once nobody waits for an answer of it any more."""
        await self._idle.wait()
        await asyncio.to_thread(self._pool.close)

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
            feeds = await self._processed(lambda: self._model.preprocess(samples))
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise InputError(
                f"samples must be what {self.release.name} takes: {self.sample_kind}",
                f"its preprocessing says {type(error).__name__}: {error}",
                "Mend the samples",
            ) from error
        outputs = await self.endpoint.answer(feeds)
        return await self._processed(lambda: self._model.postprocess(outputs)), outputs

    @property
    def sample_kind(self) -> str:
        """`text`, or the numpy type of a raw sample's values."""
        return str(self._model.document["samples"])

    def metadata(self) -> dict[str, Any]:
        """What the protocol's model metadata says."""
        return {
            "name": self.release.name,
            "versions": [self.release.version],
            "platform": f"{self.ran.runtime}_{self.ran.precision}",
            "inputs": [tensor.to_json() for tensor in self.inputs],
            "outputs": [tensor.to_json() for tensor in self.outputs],
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
        for tensor in self.inputs:
            array = feeds.get(tensor.name)
            if array is None:
                raise self._refused(f"`{tensor.name}` is missing")
            if protocol.datatype(array.dtype) != tensor.datatype:
                raise self._refused(f"`{tensor.name}` is {protocol.datatype(array.dtype)}")
            if array.ndim != len(tensor.shape):
                raise self._refused(f"`{tensor.name}` has shape {array.shape}")
            counts.add(len(array))
        if len(feeds) != len(self.inputs):
            names = {tensor.name for tensor in self.inputs}
            raise self._refused(f"there is no `{next(name for name in feeds if name not in names)}`")
        if len(counts) > 1:
            raise self._refused(f"its inputs hold {' and '.join(map(str, sorted(counts)))} samples")
        if counts == {0}:
            raise self._refused("it holds no sample")

    def _unusual(self, feeds: Mapping[str, np.ndarray]) -> str | None:
        """An input of another size than those that the runtime was seen to take, in words."""
        for tensor in self.inputs:
            sizes = zip(tensor.shape, feeds[tensor.name].shape, strict=True)
            if any(usual not in (-1, size) for usual, size in sizes):
                return f"`{tensor.name}` has shape {feeds[tensor.name].shape}"
        return None

    def _refused(self, found: str) -> InputError:
        takes = ", ".join(f"`{t.name}` {t.datatype} {list(t.shape)}" for t in self.inputs)
        return InputError(
            f"a request to {self.release.name} must hold {takes}, or `{SAMPLES}` alone",
            found,
            f"See GET /v2/models/{self.release.name}",
        )


def opened(release: Release, plan: ServingPlan) -> Hosted:
    """Open a release: verify its files, load its sessions, repeat its golden outputs, warm up.

    Raises: InputError where a file is not what was packaged; BadOutputError where it answers otherwise here.
    """
    model = PackagedModel(release.package)
    model.check_golden()
    feeds = model.preprocess(model.golden()["samples"][:1])
    inline = 1000 * _seconds(lambda: model.session.run(feeds)) < plan.inline_ms
    count = 1 if inline else plan.sessions or max(1, len(probe.cores()) // model.session.ran().threads)
    sessions = [model.session, *(model.load_session() for _ in range(count - 1))]
    largest = max((getattr(policy, "max_batch_size", 1) for policy in plan.chosen()), default=1)
    for session in sessions:
        _warm_up(session, feeds, largest)
    return Hosted(release, plan, model, SessionPool(sessions, inline=inline))


def described(model: PackagedModel) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and outputs of a network, as its golden samples show them."""
    batches = _batches(model)
    return _tensors(batches), _tensors([model.session.run(feeds) for feeds in batches])


def _seconds(work: Callable[[], object]) -> float:
    """The median of some runs, of which the first may compile something."""
    times = []
    for _ in range(WARM_UP):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _warm_up(session: Session, feeds: Arrays, largest: int) -> None:
    """Every size of batch once: some runtimes compile for each."""
    for size in range(1, largest + 1):
        session.run({name: np.repeat(array, size, axis=0) for name, array in feeds.items()})


def _batches(model: PackagedModel) -> list[Arrays]:
    """What the network takes: of all golden samples at once, and of each alone."""
    samples = model.golden()["samples"]
    return [model.preprocess(part) for part in (samples, *([sample] for sample in samples))]


def _tensors(batches: Sequence[Arrays]) -> tuple[Tensor, ...]:
    """What they have in common; the batch, and every size that differs among them, may vary."""
    found = []
    for name, array in batches[0].items():
        shapes = [batch[name].shape for batch in batches]
        same = [len(set(sizes)) == 1 for sizes in zip(*shapes, strict=True)]
        shape = tuple(
            size if fixed and axis else -1
            for axis, (size, fixed) in enumerate(zip(array.shape, same, strict=True))
        )
        found.append(Tensor(name, protocol.datatype(array.dtype), shape))
    return tuple(found)
