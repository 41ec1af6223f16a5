"""The baseline: the original in torch eager, and its plain ONNX export at full graph optimization."""

import dataclasses

from pareflow.compiler.onnxruntime import OnnxRuntime
from pareflow.compiler.torch_eager import TorchEager
from pareflow.errors import InputError, VariantError
from pareflow.hardware.device import device_lock
from pareflow.isolation import Limits
from pareflow.measurement import Interval, speedup
from pareflow.measuring.arena import Protocol
from pareflow.stages.building import make
from pareflow.stages.jobs import feeds_key, original
from pareflow.stages.run import TRAINING_HOURS, Row, Run
from pareflow.stages.timing import measure
from pareflow.variant import Recipe

SCREENING = Protocol()
"""How baselines and candidates are timed first; finalists are timed again, and longer."""


def baseline(run: Run) -> list[Row]:
    """Per thread count the strong baseline and the original, measured; row 0 is the strong baseline.

    Raises: InputError: without a baseline there is nothing to compare with.
    """
    try:
        train(run)
        return [row for threads in run.threads for row in _pair(run, threads)]
    except VariantError as error:
        raise InputError("the original must run", f"{error.must}, but {error.found}", error.remedy) from error


def train(run: Run) -> None:
    """The original network and the inputs that measurements use, made where the store lacks them."""
    limits = Limits(3600 * TRAINING_HOURS, run.spec.budget.memory_mib)
    batch_size = run.spec.sla.batch_size
    with device_lock(run.spec.target.device, exclusive=False):
        if run.store.find(original(run.facts.digest).id) is None:
            run.job("train", {}, f"train-{run.id}", limits=limits)
        if run.store.find(feeds_key(run.facts.digest, batch_size)) is None:
            run.job("feeds", {"batch_size": batch_size}, f"feeds-{run.id}")


def _pair(run: Run, threads: int) -> tuple[Row, Row]:
    """The strong baseline and the original at one thread count, timed side by side."""
    strong = Row(Recipe((), OnnxRuntime(threads=threads).step), "baseline")
    eager = Row(Recipe((), TorchEager(threads=threads).step), "original")
    strong, eager = (make(run, row) for row in (strong, eager))
    assert strong.id is not None and eager.id is not None  # both were built
    measured = measure(run, [strong, eager], SCREENING)
    ours, theirs = measured[strong.id], measured[eager.id]
    one = Interval(1.0, 1.0, 1.0, samples=SCREENING.blocks)
    return (
        dataclasses.replace(strong, measurement=ours, speedup=one, speedup_over_eager=speedup(theirs, ours)),
        dataclasses.replace(eager, measurement=theirs, speedup=speedup(ours, theirs), speedup_over_eager=one),
    )
