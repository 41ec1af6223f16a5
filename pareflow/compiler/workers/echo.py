"""The null member: gives back what it is sent. Its requests cost what the pipe costs."""

import time
from typing import Any

import numpy as np


def versions() -> dict[str, str]:
    return {"numpy": np.__version__}


def load(print_first: str = "", sleep_s: float = 0) -> "Echo":
    return Echo(print_first, sleep_s)


class Echo:
    """Prints, sleeps, and answers with its inputs."""

    def __init__(self, print_first: str, sleep_s: float) -> None:
        self._words, self._sleep_s = print_first, sleep_s

    def run(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self._words:
            print(self._words, flush=True)
        time.sleep(self._sleep_s)
        return feeds

    def ran(self) -> dict[str, Any]:
        return {
            "runtime": "echo",
            "version": np.__version__,
            "precision": "none",
            "device": "CPU",
            "threads": 1,
        }
