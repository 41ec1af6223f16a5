"""A loaded executable, as every level sees it: named arrays in, named arrays out."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from pareflow.measurement import Ran
from pareflow.workload import Arrays


class Session(Protocol):
    """What backends load, policies wrap, and instruments time."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> Arrays:
        """Outputs by name; the first axis of every array is the batch."""

    def ran(self) -> Ran:
        """What really executes (law 10), read back from the runtime."""
