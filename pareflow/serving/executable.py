"""A version of a model, opened: files verified, golden samples repeated, sessions loaded and warmed up."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pareflow.compiler.worker import Worker, WorkerSession
from pareflow.hardware import probe
from pareflow.measurement import Ran
from pareflow.runtime.endpoint import Endpoint
from pareflow.runtime.pool import THREADS, SessionPool
from pareflow.serving import protocol
from pareflow.serving.apart import ModelApart
from pareflow.serving.model import PackagedModel
from pareflow.serving.plan import ServingPlan
from pareflow.session import Session
from pareflow.variant import digest
from pareflow.workload import Arrays

WARM_UP, WARM_UP_S = 20, 0.05
"""At most so many requests are timed before the first one is answered, and three at least: no more once they
took so long."""


@dataclass(frozen=True, slots=True)
class Release:
    """A version of a model, as a package in a folder, and the plan that was tuned for it here."""

    name: str
    version: str
    package: Path
    plan: ServingPlan | None = None
    judged: str | None = field(default=None, compare=False)
    """What the gate said of it in this environment, as the registry knows; None: nothing that is known."""
    registered: bool = field(default=False, compare=False)
    """Whether the registry alone says so: what its package says of a verdict no digest covers."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of the network; a size that may vary is -1. An optional input may be left out."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Tensor":
        return cls(document["name"], document["datatype"], tuple(document["shape"]))


class Opened(Protocol):
    """A version of a model, loaded: an `Executable` or a `LanguageModel`."""

    release: Release
    apart: bool
    sessions: int

    @property
    def inputs(self) -> tuple[Tensor, ...]: ...

    @property
    def outputs(self) -> tuple[Tensor, ...]: ...

    @property
    def processing(self) -> PackagedModel | None:
        """What makes inputs of raw samples; None where there are none."""

    @property
    def ran(self) -> Ran: ...

    @property
    def identity(self) -> str: ...

    @property
    def endpoint(self) -> Endpoint: ...

    def aside(self, wanted: bool) -> None: ...

    def close(self) -> None: ...


class Executable:
    """A release and its sessions, of one of so many `models` that share the machine. Making it blocks.

    `apart`: its network runs in a process of its own, which is added there; it may crash or hang and harms
    nobody.
    Raises: InputError where a file is not what was packaged; BadOutputError where it answers otherwise here.
    """

    def __init__(
        self, release: Release, plan: ServingPlan, *, apart: list[Worker] | None = None, models: int = 1
    ) -> None:
        self.release, self.apart = release, apart is not None
        package = release.package
        self.model = PackagedModel(package) if apart is None else ModelApart(package, apart)
        self.model.check_golden()
        self.ran: Ran = self.model.session.ran()
        self.inputs, self.outputs = described(self.model)
        self._pool = self._sessions(plan, models)

    @property
    def processing(self) -> PackagedModel:
        """What makes inputs of raw samples, and predictions of outputs."""
        return self.model

    @property
    def identity(self) -> str:
        """Names what answers: the version, the files of its package, and what runs."""
        content = digest(self.model.document["files"])[:16]
        ran = f"{self.ran.runtime} {self.ran.version} {self.ran.precision}"
        return f"{self.release.name}/{self.release.version} {content} {ran}"

    @property
    def endpoint(self) -> Endpoint:
        shapes = {tensor.name: tensor.shape for tensor in self.inputs}
        return replace(self._pool.endpoint(self.identity), shapes=shapes)

    def aside(self, wanted: bool) -> None:
        """Compute in a thread, however brief it is, where a hang holds up nobody; or as it was planned."""
        self._pool.inline_rows = 0 if wanted else self._inline_rows

    def close(self) -> None:
        """Let what runs end, and take no more; what runs apart is ended."""
        if isinstance(self.model, ModelApart):
            self.model.end()
        self._pool.close()

    def _sessions(self, plan: ServingPlan, models: int) -> SessionPool:
        """As many as the plan says, or as there are cores for; one of what is brief, and one apart."""
        feeds = self.model.preprocess(self.model.golden_samples[:1])
        sample_ms = 1000 * seconds(lambda: self.model.session.run(feeds))
        brief_rows = plan.inline_ms / sample_ms
        # the event loop waits for no other process, which may die and be begun anew
        self._inline_rows = 0 if isinstance(self.model.session, WorkerSession) else brief_rows
        alone = self.apart or brief_rows >= 1
        self.sessions = 1 if alone else plan.sessions_of(self.ran.threads, models)
        largest = max((getattr(policy, "max_batch_size", 1) for policy in plan.chosen()), default=1)
        sizes = range(1, largest + 1) if self.model.backend.prepares_shapes else {1, largest}

        def warm(number: int) -> Session:
            session = self.model.load_session() if number else self.model.session
            for size in sizes:
                session.run({name: np.repeat(array, size, axis=0) for name, array in feeds.items()})
            return session

        on_cpu = self.ran.device.lower() == "cpu"
        abreast = probe.usable_cores() if on_cpu else 1  # a GPU captures one graph at a time
        with ThreadPoolExecutor(abreast, thread_name_prefix=THREADS) as pool:
            sessions = list(pool.map(warm, range(self.sessions)))
        return SessionPool(sessions, inline_rows=self._inline_rows)


def described(model: PackagedModel) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and outputs of a network, as its golden samples show them."""
    batches = _batches(model)
    return _tensors(batches), _tensors([model.session.run(feeds) for feeds in batches])


def seconds(work: Callable[[], object]) -> float:
    """The median of some runs, of which the first may compile something."""
    times = list[float]()
    while len(times) < 3 or (len(times) < WARM_UP and sum(times) < WARM_UP_S):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _batches(model: PackagedModel) -> list[Arrays]:
    """What the network takes: of all golden samples at once, and of each alone."""
    samples = model.golden_samples
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
