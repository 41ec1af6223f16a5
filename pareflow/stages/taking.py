"""What the search's techniques would take of the original, setting by setting: known before any trains."""

import json
from typing import Any

from pareflow.catalog import TECHNIQUES
from pareflow.errors import VariantError
from pareflow.hardware.device import INTERRUPTED, device_lock
from pareflow.search import Circumstances, training_space
from pareflow.stages.run import Run
from pareflow.variant import digest


def takes(run: Run, here: Circumstances) -> dict[str, Any]:
    """By the label of each of `training_space.takers`, what it takes; None where nothing tells.

    Kept in the store, so that a run that goes on asks what it asked. It only spares training: where finding
    out dies nothing is known, which is kept too.
    """
    takers = training_space.takers(training_space.families(here))
    steps = [taker.to_json() for taker in takers]
    versions = {taker.name: TECHNIQUES[taker.name].code_version() for taker in takers}
    key = digest("takes", run.facts.digest, steps, versions)
    if not steps or run.clock.stopped(f"takes {key}") is not None:
        return {}

    def ask() -> None:
        with device_lock(run.spec.target.device, exclusive=False):
            run.job("takes", {"key": key, "steps": steps}, f"takes-{run.id}")

    try:
        entry = run.made(key, ask)
    except VariantError as error:
        if not INTERRUPTED.is_set():
            run.stop(f"takes {key}", f"{error.must}, but {error.found}")
        return {}
    found = json.loads((entry / "takes.json").read_text())
    return {taker.label: taken for taker, taken in zip(takers, found, strict=True)}
