"""Every family of techniques on real data: size, speed and quality, claimed against measured.

`techniques.yaml` holds the claims and the recipes. All that was made is kept in `.pareflow`, so that the same
command goes on where it was stopped.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from claims import Claim, main
from pipeline_run import DATA_DIR

from pareflow import spec
from pareflow.catalog import members
from pareflow.compiler.onnxruntime import OnnxRuntime
from pareflow.gate import drop_interval
from pareflow.intervals import mean_interval, speedup
from pareflow.measurement import Interval, Quality
from pareflow.measuring.arena import Protocol
from pareflow.stages import baseline, building, optimization
from pareflow.stages.run import Row, Run
from pareflow.stages.timing import measure as timed
from pareflow.variant import Recipe

CONFIGS = Path(__file__).parents[1] / "configs"
TRIALS = Path(__file__).with_suffix(".yaml")
PATIENT = spec.Budget(minutes=1e6, variant_minutes=600)
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Outcome:
    """One recipe on one seed's network, beside ONNX Runtime fp32; or why there is none."""

    smaller: float = float("nan")
    faster: Interval | None = None
    before: Quality | None = None
    after: Quality | None = None
    reason: str = ""


def measure(quick: bool) -> Sequence[Claim]:
    """Three claims per recipe; `quick` takes the recipes marked so, on one seed."""
    document = yaml.safe_load(TRIALS.read_text())
    return [
        claim
        for family, part in document["families"].items()
        for trial in part["trials"]
        if trial.get("quick") or not quick
        for claim in _claims(
            family, part["claimed"], trial, 1 if quick else document["seeds"][trial["network"]]
        )
    ]


def _claims(
    family: str, claimed: Mapping[str, float], trial: Mapping[str, Any], seeds: int
) -> Iterator[Claim]:
    """Size, speed and quality of one recipe; over several seeds the mean."""
    recipe = Recipe.from_json(trial["recipe"])
    found = [_outcome(_run(trial["network"], seed), recipe) for seed in range(seeds)]
    label = " → ".join(step.label for step in (*recipe.techniques, recipe.backend))
    name = f"{family}, {trial['network']}: {label}"
    claimed = {**claimed, **trial.get("claimed", {})}
    failed = next((outcome.reason for outcome in found if outcome.reason), "")
    note = failed or trial.get("note", "")
    smaller, faster, lost = (None, None, None) if failed else (_smaller(found), _faster(found), _lost(found))
    yield _claim(f"{name}: size", claimed["size"], smaller, "× smaller", seeds, note)
    yield _claim(f"{name}: speed", claimed["speed"], faster, "× faster", seeds, note)
    yield _claim(f"{name}: lost", claimed["lost"], lost, "share", seeds, note, side="at most")


def _claim(
    name: str,
    claimed: float,
    found: Interval | None,
    unit: str,
    seeds: int,
    note: str,
    side: Any = "at least",
) -> Claim:
    if found is None:
        return Claim(name, claimed, None, unit, seeds, side, note=note)
    return Claim(name, claimed, found.estimate, unit, seeds, side, found.low, found.high, note)


def _smaller(found: Sequence[Outcome]) -> Interval:
    return mean_interval([outcome.smaller for outcome in found])


def _faster(found: Sequence[Outcome]) -> Interval | None:
    """Of one seed its own interval, of several Student's for their mean."""
    each = [outcome.faster for outcome in found if outcome.faster is not None]
    return each[0] if len(each) == 1 else mean_interval([interval.estimate for interval in each])


def _lost(found: Sequence[Outcome]) -> Interval | None:
    """The quality lost on the verdict splits of all seeds together, paired sample by sample."""
    if len(found) == 1 or any(one.before is None or one.before.scores is None for one in found):
        return drop_interval(found[0].before, found[0].after, CONFIDENCE)
    return drop_interval(
        _joined([outcome.before for outcome in found]),
        _joined([outcome.after for outcome in found]),
        CONFIDENCE,
    )


def _joined(parts: "Sequence[Quality | None]") -> Quality:
    scores = tuple(int(score) for part in parts if part is not None for score in part.scores or ())
    return Quality("all seeds", "accuracy", "verdict", "all", float(np.mean(scores)), len(scores), scores)


_RUNS: dict[tuple[str, int], Run] = {}


def _run(name: str, seed: int) -> Run:
    """The pipeline of a configuration with another seed, its network trained."""
    if (name, seed) not in _RUNS:
        path = CONFIGS / name / "pipeline.yaml"
        document = copy.deepcopy(spec.read(path).to_json())
        document["workload"]["file"].setdefault("settings", {})["seed"] = seed
        pipeline = spec.parse(document, str(path)).model_copy(update={"budget": PATIENT})
        _RUNS[name, seed] = Run.open(pipeline, path, DATA_DIR)
        baseline.train(_RUNS[name, seed])
    return _RUNS[name, seed]


def _outcome(run: Run, recipe: Recipe) -> Outcome:
    """What a recipe does to the run's network, on the verdict split; the store knows what was made before."""
    strong = building.make(run, Row(Recipe((), OnnxRuntime(threads=1).step), "baseline"))
    *techniques, backend = (member.step for member in members(recipe))
    row = optimization.make(run, Row(Recipe(tuple(techniques), backend)))
    if row.status != "ok":
        return Outcome(reason=f"{row.status}: {row.reason}")
    strong, row = (building.evaluate(run, one, "verdict") for one in (strong, row))
    found = timed(run, [strong, row], Protocol(blocks=60))
    assert strong.size_mib and row.size_mib  # both were built
    faster = speedup(found[str(strong.id)], found[str(row.id)])
    return Outcome(strong.size_mib / row.size_mib, faster, strong.quality, row.quality)


if __name__ == "__main__":
    main("techniques", measure)
