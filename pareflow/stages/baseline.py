"""The baseline: the original in torch eager, and its plain ONNX export at full graph optimization."""

import dataclasses
import os

from pareflow.compiler.onnxruntime import OnnxRuntime
from pareflow.compiler.torch_eager import TorchEager
from pareflow.errors import InputError, VariantError
from pareflow.hardware.device import device_lock
from pareflow.hardware.probe import cores
from pareflow.intervals import speedup
from pareflow.isolation import Limits
from pareflow.measuring.arena import Protocol
from pareflow.network import form_of
from pareflow.stages.building import first_answers, judged_batch_size, make
from pareflow.stages.fitting import fitted
from pareflow.stages.jobs import feeds_key, original
from pareflow.stages.run import TRAINING_HOURS, Row, Run
from pareflow.stages.timing import measure
from pareflow.variant import Recipe

SCREENING = Protocol(fewest=1)
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
    limits = Limits(3600 * TRAINING_HOURS, run.spec.budget.memory_mib, max(run.threads))  # data load as ever
    batch_size = run.spec.sla.batch_size
    with run.store.lock(original(run.facts.digest).id):
        pass  # another run may be training it: who waits for that holds no device, and is not charged
    with device_lock(run.spec.target.device, exclusive=False):
        if run.store.find(original(run.facts.digest).id) is None:
            arguments = {"named": run.facts.digest, "threads": _training_threads()}
            run.job("train", arguments, f"train-{run.id}", limits=limits)
        first_answers(run)
        if run.store.find(feeds_key(run.facts.digest, batch_size)) is None:
            run.job("feeds", {"batch_size": batch_size}, f"feeds-{run.id}")


def _batches(size: int | None) -> str | None:
    """What is said where answers depend on their batch."""
    if size is None:
        return None
    return f"answers depend on those beside them: quality is judged in batches of {size}, as requests come"


def _training_threads() -> int:
    """As many as torch would take if nobody bounded it: the target's threads are those of a request."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return int(said) if said.isdecimal() else len(cores())


def _rows(run: Run, threads: int) -> list[Row]:
    """The strong baseline and the original at one thread count, timed side by side."""
    strong = Row(Recipe((), OnnxRuntime(threads=threads).step), "baseline")
    eager = Row(Recipe((), TorchEager(threads=threads).step), "original")
    source = run.held(original(run.facts.digest).id, "the original")
    both = [strong, eager] if form_of(source) == "torch" else [strong]
    rows = [fitted(run, make(run, row)) for row in both]
    found = measure(run, rows, SCREENING)
    measured = [found[str(row.id)] for row in rows]
    return [
        dataclasses.replace(
            row,
            reason=_batches(judged_batch_size(run, row.recipe)),
            measurement=ours,
            speedup=speedup(measured[0], ours),
            speedup_over_eager=speedup(measured[1], ours) if len(measured) > 1 else None,
        )
        for row, ours in zip(rows, measured, strict=True)
    ]
