"""Cascades and routing on real data: the compute that they save, the quality that they lose, and how often a
calibration breaks its budget.

`tiered.py` says what is measured, and how. Of the samples, half calibrate and half are held out.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import ranking
import recipes
import routing
from claims import Claim, main
from tiered import TRIALS, Scored, compute, lost, setting, variant, violations

from pareflow.runtime import ConfidenceCascade
from pareflow.variant import Recipe


def measure(name: str, quick: bool) -> Iterator[Claim]:
    """What one cascade saves and loses; `quick` times fewer rounds."""
    trial = TRIALS[name]
    run = recipes.run_of(trial.network, 0)
    made = setting(run, trial)
    everyone = np.arange(len(made.pool.labels))
    calibration, held_out = np.array_split(np.random.default_rng(0).permutation(everyone), 2)
    scored = Scored(made, {tier: one.confidence for tier, one in made.tiers.items()})
    record = scored.calibrated(calibration)
    policy = ConfidenceCascade(calibration=record)
    rival = variant(run, Recipe.from_json(trial.rival), made.pool)
    shares = ", ".join(f"{tier} {share:.3f}" for tier, share in record.answered.items())
    note = f"threshold {record.threshold:.4f}; answered by {shares}"
    rounds = 20 if quick else 80
    yield from compute(name, policy, made, {"int8": rival}, held_out, rounds, 3, note)
    yield lost(name, policy, made, held_out)
    yield violations(name, scored, everyone)


if __name__ == "__main__":
    main(
        "cascade",
        {
            "intent": partial(measure, "intent"),
            "fashion": partial(measure, "fashion"),
            "cranfield": ranking.measure,
            "routing": partial(routing.by_complexity, "intent"),
            "deadlines": partial(routing.by_deadline, "intent"),
        },
    )
