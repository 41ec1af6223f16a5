"""What a technique measured, kept: times are the one thing that the same seed does not give again."""

import json
from collections.abc import Callable

from pareflow.workload import LoadedWorkload

FILE = "timings.json"


class Timings:
    """Numbers by label, each measured once: kept in the scratch folder, where there is one.

    With the same file a technique that `measures` goes the same way, also after it was killed.
    """

    def __init__(self, workload: LoadedWorkload) -> None:
        self._file = None if workload.scratch is None else workload.scratch / FILE
        known = self._file is not None and self._file.exists()
        self.known: dict[str, float] = json.loads(self._file.read_text()) if known and self._file else {}

    def of(self, label: str, measure: Callable[[], float]) -> float:
        """The number of this label: known already, or measured now and kept."""
        if label not in self.known:
            self.known[label] = measure()
            self._keep()
        return self.known[label]

    def _keep(self) -> None:
        """Whole or not at all."""
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            making = self._file.with_suffix(".making")
            making.write_text(json.dumps(self.known))
            making.replace(self._file)
