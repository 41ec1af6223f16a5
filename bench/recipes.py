"""Recipes on networks of `configs/`: size, speed, quality and work, claimed against measured.

A YAML holds the claims and the recipes. All that was made is kept in `.pareflow`, so that the same command
goes on where it was stopped.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import yaml
from claims import Claim
from pipeline_run import DATA_DIR

from pareflow import network, spec
from pareflow.catalog import complete
from pareflow.compiler.onnxruntime import OnnxRuntime
from pareflow.gate import drop_interval
from pareflow.intervals import mean_interval, speedup
from pareflow.measurement import Interval, Quality
from pareflow.measuring.arena import Protocol
from pareflow.stages import baseline, building, optimization, sweeping
from pareflow.stages.jobs import links
from pareflow.stages.run import Row, Run
from pareflow.stages.timing import Inputs
from pareflow.stages.timing import measure as timed
from pareflow.variant import Recipe
from pareflow.workload import load

CONFIGS = (Path(__file__).parents[1] / "configs", Path(__file__).parent)
PATIENT = spec.Budget(minutes=1e6, variant_minutes=600)
CONFIDENCE = 0.95
STRONG = Recipe((), OnnxRuntime(threads=1).step)


@dataclass(frozen=True)
class Outcome:
    """One recipe on one seed's network, beside ONNX Runtime fp32; or why there is none."""

    smaller: float = float("nan")
    faster: Interval | None = None
    before: Quality | None = None
    after: Quality | None = None
    reason: str = ""


def measure(path: Path, quick: bool) -> Sequence[Claim]:
    """What each recipe of a YAML was claimed to give; `quick` takes the recipes marked so, on one seed."""
    document = yaml.safe_load(path.read_text())
    return [
        claim
        for family, part in document["families"].items()
        for trial in part["trials"]
        if trial.get("quick") or not quick
        for claim in _claims(
            family,
            {**part["claimed"], **trial.get("claimed", {})},
            trial,
            1 if quick else trial.get("seeds", document["seeds"].get(trial["network"], 1)),
        )
    ]


def _claims(family: str, claimed: Mapping[str, Any], trial: Mapping[str, Any], seeds: int) -> Iterator[Claim]:
    """What is claimed of one recipe; of several seeds the mean."""
    recipe = Recipe.from_json(trial["recipe"])
    against = Recipe.from_json(trial["against"]) if "against" in trial else STRONG
    runs = [run_of(trial["network"], seed, trial.get("settings", {})) for seed in range(seeds)]
    name = f"{family}, {' '.join([trial['network'], *trial.get('settings', {}).values()])}: {recipe.label}"
    if against != STRONG:
        name += f", against {against.label}"
    for at in trial.get("at", [None]):
        inputs = None if at is None else Inputs(*at)
        found = [_outcome(run, recipe, against, inputs) for run in runs]
        failed = next((outcome.reason for outcome in found if outcome.reason), "")
        note = failed or trial.get("why", "")
        shape = "" if at is None else f", {'×'.join(map(str, at))}"
        if "size" in claimed and at is None:
            smaller = None if failed else _smaller(found)
            yield _claim(f"{name}: size", claimed["size"], smaller, "× smaller", seeds, note)
        if "speed" in claimed:
            faster = None if failed else _faster(found)
            yield _claim(f"{name}{shape}: speed", claimed["speed"], faster, "× faster", seeds, note)
        if "lost" in claimed and at is None:
            lost = None if failed else _lost(found)
            yield _claim(f"{name}: lost", claimed["lost"], lost, "share", seeds, note, side="at most")
        if "work" in claimed:
            less = None if failed else mean_interval([_less_work(run, recipe) for run in runs])
            yield _claim(f"{name}: work", claimed["work"], less, "× fewer operations", seeds, note)


def _claim(
    name: str,
    claimed: float | Sequence[float],
    found: Interval | None,
    unit: str,
    seeds: int,
    note: str,
    side: Any = "at least",
) -> Claim:
    """A band holds from its lower end, and the row says which half was reached; else `note` says why."""
    low, high = (claimed, claimed) if isinstance(claimed, (int, float)) else claimed
    if found is None:
        return Claim(name, low, None, unit, seeds, side, note=note)
    claim = Claim(name, low, found.estimate, unit, seeds, side, found.low, found.high)
    if not claim.met:
        return replace(claim, note=note)
    half = f"{'upper' if found.estimate >= (low + high) / 2 else 'lower'} half of {low:g} to {high:g}"
    return replace(claim, note=half if low < high else "")


def _less_work(run: Run, recipe: Recipe) -> float:
    """How many times fewer operations a request takes; the techniques must all change the torch network."""
    from torch.utils.flop_counter import FlopCounterMode

    workload = load(run.spec.workload, run.folder)
    whole, *_, less, _ = links(recipe, run.facts.digest)
    counts = []
    for variant in (whole, less):
        folder = run.store.find(variant.id)
        assert folder is not None  # the recipe was made
        module = network.load("torch", folder)
        with FlopCounterMode(display=False) as counter:
            network.run_torch(module, workload.example(1))
        counts.append(counter.get_total_flops())
    return float(counts[0] / counts[1])


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
        _joined("before", [outcome.before for outcome in found]),
        _joined("after", [outcome.after for outcome in found]),
        CONFIDENCE,
    )


def _joined(variant: str, parts: "Sequence[Quality | None]") -> Quality:
    scores = tuple(int(score) for part in parts if part is not None for score in part.scores or ())
    return Quality(variant, "accuracy", "verdict", "all", float(np.mean(scores)), len(scores), scores)


_RUNS: dict[tuple[object, ...], Run] = {}


def run_of(name: str, seed: int, settings: Mapping[str, Any] = MappingProxyType({})) -> Run:
    """The pipeline of a configuration with another seed and other settings, its network trained."""
    key = (name, seed, *settings.items())
    if key not in _RUNS:
        path = next(folder / name / "pipeline.yaml" for folder in CONFIGS if (folder / name).exists())
        document = copy.deepcopy(spec.read(path).to_json())
        document["workload"]["file"].setdefault("settings", {}).update(settings, seed=seed)
        pipeline = spec.parse(document, str(path)).model_copy(update={"budget": PATIENT})
        _RUNS[key] = Run.open(pipeline, path, DATA_DIR)
        baseline.train(_RUNS[key])
    return _RUNS[key]


def _outcome(run: Run, recipe: Recipe, against: Recipe, inputs: Inputs | None) -> Outcome:
    """What a recipe does to the run's network, on the verdict split; the store knows what was made before."""
    rows = [optimization.make(run, Row(complete(one))) for one in (against, recipe)]
    for row in rows:
        if row.status != "ok":
            return Outcome(reason=f"{row.status}: {row.reason}")
    before, after = (building.evaluate(run, row, "verdict") for row in rows)
    if inputs is not None:
        sweeping.feed(run, inputs)
    found = timed(run, [before, after], Protocol(blocks=60), inputs)
    assert before.size_mib and after.size_mib  # both were built
    faster = speedup(found[str(before.id)], found[str(after.id)])
    return Outcome(before.size_mib / after.size_mib, faster, before.quality, after.quality)
