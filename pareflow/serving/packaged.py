"""A worker's runtime for a package, in a process of its own: loads it, runs it. `apart.py` calls it."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pareflow.serving.model import PackagedModel
from pareflow.workload import Arrays


class Loaded:
    """A package's session, as a worker asks it."""

    def __init__(self, package: Path) -> None:
        self._session = PackagedModel(package).session

    def run(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        return self._session.run(arrays)

    def ran(self) -> dict[str, Any]:
        return asdict(self._session.ran())


def versions() -> dict[str, str]:
    return {}


def load(artifact: str) -> Loaded:
    return Loaded(Path(artifact))
