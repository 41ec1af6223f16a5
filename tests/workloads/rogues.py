"""Techniques and backends that misbehave, each in one way: real members of their families.

Whoever loads the workload of `rogue_images.py` has them in the catalog, as a user's own members would be.
"""

import copy
import ctypes
import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from pareflow.compiler.torch_eager import TorchEager, TorchSession
from pareflow.compiler.worker import Worker, WorkerBackend, WorkerSession
from pareflow.compiler.workers import serve
from pareflow.errors import EnvironmentUnfitError, MissingExtraError, StepFailedError
from pareflow.model import Technique
from pareflow.network import Form
from pareflow.workload import Arrays, LoadedWorkload


class _Rogue(Technique):
    form: ClassVar[Form] = "torch"


class OwnError(StepFailedError):
    """An error class that only the child process knows."""


class Raises(_Rogue):
    name: ClassVar[str] = "raises"

    def apply(self, network: nn.Module, workload: LoadedWorkload) -> nn.Module:
        raise RuntimeError("no kernel for this operator")


class RaisesOwnError(_Rogue):
    name: ClassVar[str] = "raises_own_error"

    def apply(self, network: nn.Module, workload: LoadedWorkload) -> nn.Module:
        raise OwnError("the moon must be full", "it is new", "Wait")


class LacksAPackage(_Rogue):
    name: ClassVar[str] = "lacks_a_package"

    def apply(self, network: nn.Module, workload: LoadedWorkload) -> nn.Module:
        raise MissingExtraError("unobtainium must be installed", "it is not", "Install it")


class LacksADriver(_Rogue):
    name: ClassVar[str] = "lacks_a_driver"

    def apply(self, network: nn.Module, workload: LoadedWorkload) -> nn.Module:
        raise EnvironmentUnfitError("unobtainium must be loaded", "its driver is not here", "Install it")


class DeniedAFile(_Rogue):
    """It is not the store that may not be read."""

    name: ClassVar[str] = "denied_a_file"

    def apply(self, network: nn.Module, workload: LoadedWorkload) -> nn.Module:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/etc/tables.bin")


class Segfaults(_Rogue):
    name: ClassVar[str] = "segfaults"

    def apply(self, network: nn.Module, workload: LoadedWorkload) -> nn.Module:
        ctypes.string_at(0)
        return network


class Exits(_Rogue):
    name: ClassVar[str] = "exits"

    def apply(self, network: nn.Module, workload: LoadedWorkload) -> nn.Module:
        sys.exit(7)


class Hangs(_Rogue):
    """Says that it has begun by making a file, then never ends."""

    name: ClassVar[str] = "hangs"
    begun: str = ""

    def apply(self, network: nn.Module, workload: LoadedWorkload) -> nn.Module:
        if self.begun:
            partial = Path(self.begun + ".partial")
            partial.write_text(str(os.getpid()))
            partial.rename(self.begun)
        while True:
            time.sleep(1)


class Hoards(_Rogue):
    name: ClassVar[str] = "hoards"

    def apply(self, network: nn.Module, workload: LoadedWorkload) -> nn.Module:
        np.zeros(2**36, dtype=np.uint8)
        return network


class HoardsNatively(_Rogue):
    name: ClassVar[str] = "hoards_natively"

    def apply(self, network: nn.Module, workload: LoadedWorkload) -> nn.Module:
        torch.empty(2**36, dtype=torch.uint8)
        return network


class GivesNan(_Rogue):
    name: ClassVar[str] = "gives_nan"

    def apply(self, network: nn.Module, workload: LoadedWorkload) -> nn.Module:
        changed = copy.deepcopy(network)
        with torch.no_grad():
            next(changed.parameters()).fill_(float("nan"))
        return changed


class LosesRows(_Rogue):
    name: ClassVar[str] = "loses_rows"

    def apply(self, network: nn.Module, workload: LoadedWorkload) -> nn.Module:
        return FirstRow(network)


class FirstRow(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.network(*inputs)
        return outputs[:1]


class PeeksAtTheVerdict(_Rogue):
    name: ClassVar[str] = "peeks_at_the_verdict"

    def apply(self, network: nn.Module, workload: LoadedWorkload) -> nn.Module:
        workload.split("verdict")
        return network


class Sluggish(TorchEager):
    """The same network, and a pause."""

    name: ClassVar[str] = "sluggish"

    def load(self, artifact: Path) -> "SluggishSession":
        return SluggishSession(artifact, self)


class SluggishSession(TorchSession):
    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        time.sleep(0.005)
        return super().run(feeds)


class Witness(TorchEager):
    """Writes down each request: a line with its tag, when it began and when it ended."""

    name: ClassVar[str] = "witness"
    tag: str
    book: str

    def load(self, artifact: Path) -> "WitnessSession":
        return WitnessSession(artifact, self, self.tag, Path(self.book))


class WitnessSession(TorchSession):
    def __init__(self, artifact: Path, settings: TorchEager, tag: str, book: Path) -> None:
        super().__init__(artifact, settings)
        self._tag, self._book = tag, book

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        began = time.monotonic_ns()
        outputs = super().run(feeds)
        with self._book.open("a") as book:
            book.write(f"{self._tag} {began} {time.monotonic_ns()}\n")
        return outputs


class Moody(TorchEager):
    """Answers as its network does, until the file `mood` says otherwise."""

    name: ClassVar[str] = "moody"
    mood: str

    def load(self, artifact: Path) -> "MoodySession":
        return MoodySession(artifact, self, Path(self.mood))


class MoodySession(TorchSession):
    def __init__(self, artifact: Path, settings: TorchEager, mood: Path) -> None:
        super().__init__(artifact, settings)
        self._mood = mood

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        mood = self._mood.read_text() if self._mood.exists() else ""
        (name, output), *_ = super().run(feeds).items()
        match mood:
            case "raises":
                raise RuntimeError("it will not")
            case "dies":
                ctypes.string_at(0)
            case "hangs":
                while self._mood.exists():
                    time.sleep(0.02)
            case "loses rows":
                output = output[:-1]
            case "gives nan":
                output = np.full_like(output, np.nan)
            case "answers otherwise":
                output = -output
        return {name: output}


class SegfaultsUnderLoad(TorchEager):
    """Answers while it is evaluated, dies while it is timed; if `marker` names a file, once there is one."""

    name: ClassVar[str] = "segfaults_under_load"
    requests: int = 20
    marker: str = "/"

    def load(self, artifact: Path) -> "DoomedSession":
        return DoomedSession(artifact, self, self.requests, Path(self.marker))


class DoomedSession(TorchSession):
    def __init__(self, artifact: Path, settings: TorchEager, requests: int, marker: Path) -> None:
        super().__init__(artifact, settings)
        self._left, self._marker = requests, marker

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        self._left -= 1
        if self._left < 0 and self._marker.exists():
            ctypes.string_at(0)
        return super().run(feeds)


def _echo() -> Worker:
    """A worker that gives back what it is sent."""
    folders = Path(serve.__file__).parent, Path(__file__).parent
    worker = Worker("echo", Path(sys.executable), ("-I", "-c", serve.BOOT, "echo", *folders))
    worker.call("load")
    return worker


class Relayed(TorchEager):
    """Each request passes through a worker."""

    name: ClassVar[str] = "relayed"

    def load(self, artifact: Path) -> "RelayedSession":
        return RelayedSession(artifact, self)


class RelayedSession(TorchSession):
    def __init__(self, artifact: Path, settings: TorchEager) -> None:
        super().__init__(artifact, settings)
        self.relay = WorkerSession(_echo(), _echo)

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        return super().run(self.relay.run(feeds))


class WorkerKilled(TorchEager):
    """The same, but the worker is killed amid the request after so many."""

    name: ClassVar[str] = "worker_killed"
    requests: int = 20

    def load(self, artifact: Path) -> "KilledSession":
        return KilledSession(artifact, self, self.requests)


class KilledSession(TorchSession):
    def __init__(self, artifact: Path, settings: TorchEager, requests: int) -> None:
        super().__init__(artifact, settings)
        self._worker, self._left = _echo(), requests

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        self._left -= 1
        if self._left < 0:
            self._worker.call("load", sleep_s=60)
            threading.Timer(0.2, os.kill, (self._worker.pid, signal.SIGKILL)).start()
        return super().run(self._worker.call("run", feeds)[1])


class Unbuildable(WorkerBackend):
    """Its environment has a lock that no index can serve."""

    name: ClassVar[str] = "unbuildable"
    form: ClassVar[Form] = "torch"

    @classmethod
    def code_version(cls) -> str:
        return "it has no code"


class HangsUnderLoad(TorchEager):
    """Answers while it is evaluated, and never while it is timed."""

    name: ClassVar[str] = "hangs_under_load"

    def load(self, artifact: Path) -> "StuckSession":
        return StuckSession(artifact, self)


class StuckSession(TorchSession):
    _left = 20

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        self._left -= 1
        while self._left < 0:
            time.sleep(1)
        return super().run(feeds)


class RaisesUnderLoad(TorchEager):
    """Answers while it is evaluated, and raises while it is timed."""

    name: ClassVar[str] = "raises_under_load"

    def load(self, artifact: Path) -> "RaisingSession":
        return RaisingSession(artifact, self)


class RaisingSession(TorchSession):
    _left = 40

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        self._left -= 1
        if self._left < 0:
            raise RuntimeError("the queue is full")
        return super().run(feeds)
