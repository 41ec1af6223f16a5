"""What a run shows while it goes: one line per stage and variant, and how much time is left."""

import logging
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from pareflow.reporting import formats
from pareflow.stages.run import Row


class Progress(Protocol):
    """Told of each stage and row as it is done."""

    def stage(self, name: str, steps: int = 1) -> None:
        """A stage begins, of so many rows."""

    def rows(self, rows: Sequence[Row]) -> None:
        """Rows are done."""

    def note(self, text: str) -> None:
        """Something worth a line."""


class Silent:
    """Shows nothing: for deployments, whose state Prefect shows."""

    def stage(self, name: str, steps: int = 1) -> None:
        pass

    def rows(self, rows: Sequence[Row]) -> None:
        pass

    def note(self, text: str) -> None:
        pass


shown: ContextVar[Progress] = ContextVar("shown", default=Silent())  # noqa: B039 (it has no state)
"""What the present run is shown by; the command line sets it, deployments leave it silent."""


class _Warnings(logging.Handler):
    """Shows what the package warns of as notes: the root's handlers are silent under Prefect."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._note = note

    def emit(self, record: logging.LogRecord) -> None:
        self._note(record.getMessage())


class Lines:
    """Lines on a terminal's error stream, with a bar under them where it is a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        self._bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._bar.add_task("start", total=None)
        self._began = time.monotonic()
        self._warnings = _Warnings(self.note)

    def __enter__(self) -> "Lines":
        self._bar.start()
        logging.getLogger("pareflow").addHandler(self._warnings)
        return self

    def __exit__(self, *error: object) -> None:
        logging.getLogger("pareflow").removeHandler(self._warnings)
        self._bar.stop()

    def stage(self, name: str, steps: int = 1) -> None:
        elapsed = time.monotonic() - self._began
        self._console.print(f"[bold]{name}[/bold] [dim]at {elapsed:.0f} s[/dim]", highlight=False)
        self._bar.reset(self._task, description=name, total=steps if steps > 1 else None)

    def rows(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._console.print("  " + _line(row), highlight=False, markup=False, soft_wrap=True)
            self._bar.advance(self._task)

    def note(self, text: str) -> None:
        self._console.print("  " + text, highlight=False, markup=False, soft_wrap=True)


def _line(row: Row) -> str:
    if row.measurement is None or row.quality is None or row.speedup is None:
        return f"{row.label}: {row.status}: {row.reason}"
    return (
        f"{row.label}: {row.measurement.quantile_ms(0.5):.3g} ms, "
        f"{row.speedup.estimate:.2f}×, {row.quality.metric} {formats.quality(row.quality.value)}"
        + (f" (noisy: {row.measurement.noise})" if row.measurement.noise else "")
    )
