"""A backend that is slower by a known share, and the workload that a file with a backend must define."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from pareflow.compiler.onnxruntime import OnnxRuntime
from pareflow.measurement import Ran
from pareflow.onnx_file import OnnxFile
from pareflow.workload import Arrays


class Slowed(OnnxRuntime):
    """ONNX Runtime that spins after each request, for a share of the time that the request took."""

    name: ClassVar[str] = "slowed"

    by: float = Field(default=0.1, ge=0, description="share of each request's time")

    def load(self, artifact: Path) -> Any:
        return _Session(super().load(artifact), self.by)


class _Session:
    def __init__(self, session: Any, by: float) -> None:
        self._session, self._by = session, by

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        began = time.perf_counter()
        outputs: Arrays = self._session.run(feeds)
        until = time.perf_counter() + self._by * (time.perf_counter() - began)
        while time.perf_counter() < until:
            pass
        return outputs

    def ran(self) -> Ran:
        ran: Ran = self._session.ran()
        return ran


class Files(OnnxFile):
    """Never loaded: contestants are given their artifact and their feeds."""
