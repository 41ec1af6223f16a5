"""A worker's runtime, as those of `pareflow/compiler/workers/`, that gives back what it is sent."""

import time
from typing import Any

import numpy as np

from .serve import UnsupportedError  # type: ignore[import-not-found]  # beside it in the worker


def versions() -> dict[str, str]:
    return {"numpy": np.__version__}


def compile(source: str, into: str) -> None:  # noqa: A001
    """There is nothing to make."""


def load(
    artifact: str = "",
    threads: int = 1,
    print_first: str = "",
    sleep_s: float = 0,
    allocate: int = 0,
    lacks: str = "",
) -> "Echo":
    return Echo(print_first, sleep_s, allocate, lacks)


class Echo:
    """Prints, sleeps, takes memory, and answers with its inputs, or with the operator that it lacks."""

    def __init__(self, print_first: str, sleep_s: float, allocate: int, lacks: str) -> None:
        self._words, self._sleep_s, self._allocate, self._lacks = print_first, sleep_s, allocate, lacks

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._words:
            print(self._words, flush=True)
        if self._lacks:
            raise UnsupportedError(self._lacks, "node_1", "echo has no operators")
        time.sleep(self._sleep_s)
        np.zeros(self._allocate, np.uint8)
        return feeds

    def ran(self) -> dict[str, Any]:
        return {
            "runtime": "echo",
            "version": np.__version__,
            "precision": "none",
            "device": "CPU",
            "threads": 1,
        }
