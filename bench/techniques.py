"""Every family of techniques on real data: size, speed and quality, claimed against measured.

`techniques.yaml` holds the claims and the recipes. All that was made is kept in `.pareflow`, so that the same
command goes on where it was stopped.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from claims import Claim, main
from pipeline_run import DATA_DIR

from pareflow import network, spec
from pareflow.catalog import complete, members
from pareflow.compiler.onnxruntime import OnnxRuntime
from pareflow.gate import drop_interval
from pareflow.intervals import mean_interval, speedup
from pareflow.measurement import Interval, Quality
from pareflow.measuring.arena import Protocol
from pareflow.stages import baseline, building, optimization
from pareflow.stages.jobs import original
from pareflow.stages.run import Row, Run
from pareflow.stages.timing import measure as timed
from pareflow.variant import Recipe
from pareflow.workload import load

CONFIGS = Path(__file__).parents[1] / "configs"
TRIALS = Path(__file__).with_suffix(".yaml")
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


def measure(quick: bool) -> Sequence[Claim]:
    """Size, speed and quality of each recipe; `quick` takes the recipes marked so, on one seed."""
    document = yaml.safe_load(TRIALS.read_text())
    return [
        claim
        for family, part in document["families"].items()
        for trial in part["trials"]
        if trial.get("quick") or not quick
        for claim in _claims(
            family,
            part["claimed"],
            trial,
            1 if quick else trial.get("seeds", document["seeds"][trial["network"]]),
        )
    ]


def _claims(family: str, claimed: Mapping[str, Any], trial: Mapping[str, Any], seeds: int) -> Iterator[Claim]:
    """Size, speed and quality of one recipe, its work where that is claimed; of several seeds the mean."""
    recipe = Recipe.from_json(trial["recipe"])
    runs = [_run(trial["network"], seed) for seed in range(seeds)]
    against = Recipe.from_json(trial["against"]) if "against" in trial else STRONG
    found = [_outcome(run, recipe, against) for run in runs]
    name = f"{family}, {trial['network']}: {recipe.label}"
    if against != STRONG:
        name += f", against {against.label}"
    claimed = {**claimed, **trial.get("claimed", {})}
    failed = next((outcome.reason for outcome in found if outcome.reason), "")
    note = failed or trial.get("why", "")
    smaller, faster, lost = (None, None, None) if failed else (_smaller(found), _faster(found), _lost(found))
    yield _claim(f"{name}: size", claimed["size"], smaller, "× smaller", seeds, note)
    yield _claim(f"{name}: speed", claimed["speed"], faster, "× faster", seeds, note)
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
    """A claim that is a band holds from its lower end, and says which half was reached; else `note` says why."""
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
    whole = less = original(run.facts.digest)
    for member in members(recipe)[:-1]:
        less = less.then(member.step, member.code_version())
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


def _outcome(run: Run, recipe: Recipe, against: Recipe) -> Outcome:
    """What a recipe does to the run's network, on the verdict split; the store knows what was made before."""
    rows = [optimization.make(run, Row(complete(one))) for one in (against, recipe)]
    for row in rows:
        if row.status != "ok":
            return Outcome(reason=f"{row.status}: {row.reason}")
    before, after = (building.evaluate(run, row, "verdict") for row in rows)
    found = timed(run, [before, after], Protocol(blocks=60))
    assert before.size_mib and after.size_mib  # both were built
    faster = speedup(found[str(before.id)], found[str(after.id)])
    return Outcome(before.size_mib / after.size_mib, faster, before.quality, after.quality)


if __name__ == "__main__":
    main("techniques", measure)
