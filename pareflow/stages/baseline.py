"""The baseline: the original in torch eager, and its plain ONNX export at full graph optimization."""

import dataclasses

from pareflow.compiler.onnxruntime import OnnxRuntime
from pareflow.compiler.torch_eager import TorchEager
from pareflow.errors import InputError, VariantError
from pareflow.hardware.device import device_lock
from pareflow.intervals import speedup
from pareflow.isolation import Limits
from pareflow.measuring.arena import Protocol
from pareflow.network import form_of
from pareflow.stages.building import make
from pareflow.stages.fitting import fitted
from pareflow.stages.jobs import feeds_key, original
from pareflow.stages.run import TRAINING_HOURS, Row, Run
from pareflow.stages.timing import measure
from pareflow.variant import Recipe

SCREENING = Protocol()
"""How baselines and candidates are timed first; finalists are timed again, and longer."""


def baseline(run: Run) -> list[Row]:
    """Per thread count the strong baseline and the original, measured; row 0 is the strong baseline.

    An original that comes as an ONNX graph is its own plain export: the strong baseline stands for both.
    Raises: InputError: without a baseline there is nothing to compare with.
    """
    try:
        train(run)
        return [row for threads in run.threads for row in _rows(run, threads)]
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


def _rows(run: Run, threads: int) -> list[Row]:
    """The strong baseline and the original at one thread count, timed side by side."""
    strong = Row(Recipe((), OnnxRuntime(threads=threads).step), "baseline")
    eager = Row(Recipe((), TorchEager(threads=threads).step), "original")
    source = run.store.find(original(run.facts.digest).id)
    assert source is not None  # it has just been made
    both = [strong, eager] if form_of(source) == "torch" else [strong]
    rows = [fitted(run, make(run, row)) for row in both]
    found = measure(run, rows, SCREENING)
    measured = [found[str(row.id)] for row in rows]
    return [
        dataclasses.replace(
            row,
            measurement=ours,
            speedup=speedup(measured[0], ours),
            speedup_over_eager=speedup(measured[1], ours) if len(measured) > 1 else None,
        )
        for row, ours in zip(rows, measured, strict=True)
    ]
