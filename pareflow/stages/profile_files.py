"""What a profile leaves beside the report: one trace of all runtimes, and TensorBoard's event file."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pareflow.isolation import run_isolated
from pareflow.measuring import chrome_trace, event_file
from pareflow.stages.run import Run
from pareflow.store import writing
from pareflow.variant import digest, file_digest

TRACE, EVENTS = "traces/profile.json", "tensorboard"


def write_trace(run: Run, events: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Where the trace lies, from the run's output folder."""
    path = run.output / TRACE
    with writing(run.data_dir):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(chrome_trace.merged(events)))
    return TRACE


def write_event_file(run: Run, profile: Mapping[str, Any]) -> str:
    """The folder of the event file, from the run's output folder; one file per profile."""
    shown = {name: profile[name] for name in ("stages", "operators")}
    key = digest("event file", shown, file_digest(Path(event_file.__file__)))

    def write(into: Path) -> None:
        (into / "profile.json").write_text(json.dumps(shown))
        log = run.data_dir / "logs" / f"tensorboard-{run.id}.log"
        arguments = {"profile": str(into / "profile.json"), "into": str(into)}
        run_isolated("pareflow.measuring.event_file:write", arguments, run.limits, log)

    entry, target = run.store.ensure(key, write), run.output / EVENTS
    with writing(run.data_dir):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for path in entry.glob("events.out.tfevents.*"):
            shutil.copy2(path, target / path.name)
    return EVENTS
