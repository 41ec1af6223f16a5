"""In a bundle, what stands in for `compiler/worker.py`: the runtime in this interpreter, without a pipe.

A bundle's interpreter has the runtime and numpy, as a worker's has. It is copied into bundles of worker
backends as `pareflow/compiler/worker.py`.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from pareflow.compiler.backend import Backend
from pareflow.errors import EnvironmentUnfitError
from pareflow.measurement import Ran
from pareflow.workload import Arrays


class WorkerSession:
    """An executable that the runtime's own file has loaded."""

    def __init__(self, loaded: Any) -> None:
        self._loaded = loaded

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        answers: Arrays = self._loaded.run(dict(feeds))
        return answers

    def ran(self) -> Ran:
        return Ran(**self._loaded.ran())


class WorkerBackend(Backend):
    """A backend whose runtime is installed here."""

    requires: ClassVar[tuple[str, ...]] = ("numpy",)
    runtime: ClassVar[tuple[str, ...]] = ()
    parts: ClassVar[tuple[str, ...]] = ()

    def compile(self, source: Path, into: Path) -> None:
        raise EnvironmentUnfitError(
            "a bundle must only run what it holds",
            f"{source} should be compiled",
            "Install pareflow for that",
        )

    def load(self, artifact: Path) -> WorkerSession:
        runtime = importlib.import_module(f"pareflow.compiler.workers.{self.name}")
        return WorkerSession(runtime.load(artifact=str(artifact), **self.model_dump(mode="json")))
