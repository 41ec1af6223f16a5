"""The profile: where a request's time goes, and which operators take it."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pareflow.hardware.device import device_lock
from pareflow.stages.jobs import original
from pareflow.stages.run import Row, Run
from pareflow.store import writing
from pareflow.variant import digest, file_digest

_INSTRUMENT = Path(__file__).parents[1] / "measuring"
TRACES = ("torch.json", "onnxruntime.json")


def profile(run: Run, baselines: Sequence[Row]) -> dict[str, Any]:
    """Stages, operators, the bottleneck in words, and the Chrome traces beside the report."""
    strong = baselines[0]
    instrument = [file_digest(_INSTRUMENT / name) for name in ("breakdown.py", "operators.py")]
    batch_size = run.spec.sla.batch_size
    key = digest("profile", strong.id, run.environment.fingerprint, batch_size, instrument)
    if run.store.find(key) is None:
        arguments = {
            "key": key,
            "baseline": {"id": strong.id, "recipe": strong.recipe.to_json()},
            "original_id": original(run.facts.digest).id,
            "batch_size": batch_size,
        }
        with device_lock(run.spec.target.device, exclusive=True) as descriptor:
            run.job("profile", arguments, f"profile-{run.id}", descriptors=(descriptor,))
    entry = run.store.find(key)
    assert entry is not None  # it was there, or the job has just made it
    traces = run.output / "traces"
    with writing(run.data_dir):
        traces.mkdir(parents=True, exist_ok=True)
        for name in TRACES:
            shutil.copyfile(entry / name, traces / name)
    found: dict[str, Any] = json.loads((entry / "profile.json").read_text())
    return {**found, "traces": {Path(name).stem: f"traces/{name}" for name in TRACES}}
