"""The training loop of every technique that trains: seeded, resumable, the same on CPU and GPUs.

A run that is killed goes on from its last checkpoint: the same numbers as if it had never stopped.
"""

import copy
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from pareflow.errors import TimedOutError, TrainingDivergedError, WorkloadError
from pareflow.model.technique import Technique
from pareflow.workload import LoadedWorkload

if TYPE_CHECKING:
    import torch
    from torch import nn

    Loss = Callable[[nn.Module, "Batch"], torch.Tensor]

CHECKPOINT_S, CHECKPOINT_TIMES = 2.0, 50
"""Two checkpoints within an epoch are so many seconds apart, and so many times what the former took, at the
least; each epoch ends with one."""

WARM_UP = 0.1
"""Share of the steps in which the rate rises."""

SEEN, LATE = 0.1, 1.2
"""After this share of its limit a training is stopped where it would take so many times the limit."""

TrainedOn = Literal["train", "calibration"]


class TrainedTechnique(Technique):
    """A technique that trains: the settings of its training."""

    epochs: int = Field(default=2, ge=0, description="passes over the training split")
    learning_rate: float = Field(default=1e-3, gt=0, description="the highest; it rises, then falls to zero")
    batch_size: int = Field(default=64, ge=1, description="samples per step")
    seed: int | None = Field(
        default=None, ge=0, description="of all that is random; none: the workload's own"
    )

    @property
    def passes(self) -> int:
        """Over the training split, of all that it trains."""
        return self.epochs

    def seed_of(self, workload: LoadedWorkload) -> int:
        """Of the order of samples, dropout, and weights that begin anew."""
        return workload.definition.seed if self.seed is None else self.seed


@dataclass(frozen=True)
class Batch:
    """Samples of one split as tensors. `indices` are their positions in it, shape (samples,)."""

    split: TrainedOn
    indices: np.ndarray
    inputs: "dict[str, torch.Tensor]"
    targets: "torch.Tensor | None"


def task_loss(workload: LoadedWorkload) -> "Loss":
    """The workload's own loss of a module's outputs. Raises: WorkloadError where there are no labels, or they
    are no numbers."""
    workload.split("train").labels()
    check_targets(workload)

    def loss(module: "nn.Module", batch: Batch) -> "torch.Tensor":
        assert batch.targets is not None  # the training split has labels, so all have
        return workload.definition.loss(module(*batch.inputs.values()), batch.targets)

    return loss


def check_targets(workload: LoadedWorkload) -> None:
    """Raises: WorkloadError where there are targets that no loss can take, such as the names of classes."""
    targets = workload.split("train").targets
    if targets is not None and targets.dtype.kind not in "biuf":
        raise WorkloadError(
            "techniques that train must have targets that are numbers",
            f"these are of {targets.dtype}, such as {targets.flat[0]!r}",
            "Let `data()` give the ids of classes, integers in the order of `class_names()`, and "
            "`postprocess()` the same ids; or take techniques that do not train",
        )


def fit(
    module: "nn.Module",
    workload: LoadedWorkload,
    settings: TrainedTechnique,
    *,
    loss: "Loss",
    stage: str = "fit",
    epochs: int | None = None,
    after_step: Callable[[float], None] | None = None,
    keep: Literal["best", "last"] = "best",
) -> "nn.Module":
    """Train `module` in place with AdamW, and return it in evaluation mode, on the CPU.

    `loss(module, batch)` is what falls. `stage` names the checkpoints where a technique trains more than
    once; `epochs` replaces the settings' own. `after_step` is called with the share of the steps done: to
    apply masks, to move a schedule. The best weights by the loss on the calibration split are kept, or, with
    `keep="last"`, the last ones. Raises: TrainingDivergedError where the loss is not finite; TimedOutError
    where it would take much longer than the workload's limit; WorkloadError where targets are no numbers.
    """
    epochs = settings.epochs if epochs is None else epochs
    if epochs == 0:
        return module.eval()
    check_targets(workload)
    return _Fit(module, workload, settings, loss, stage, epochs, after_step, keep).run()


@dataclass
class _Progress:
    """Where a training stands; saved with each checkpoint."""

    step: int = 0
    best_loss: float = math.inf
    best: "dict[str, torch.Tensor] | None" = None

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "best_loss": self.best_loss, "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.best_loss, self.best = state["step"], state["best_loss"], state["best"]


class _Fit:
    """One training: Accelerate moves it to the device, and saves and restores all that it depends on."""

    def __init__(
        self,
        module: "nn.Module",
        workload: LoadedWorkload,
        settings: TrainedTechnique,
        loss: "Loss",
        stage: str,
        epochs: int,
        after_step: Callable[[float], None] | None,
        keep: Literal["best", "last"],
    ) -> None:
        import torch
        from accelerate import Accelerator

        self._workload, self._loss, self._stage, self._keep = workload, loss, stage, keep
        self._after_step = after_step
        self._seed, self._batch_size = settings.seed_of(workload), settings.batch_size
        torch.manual_seed(self._seed)
        self._accelerator = Accelerator(step_scheduler_with_optimizer=False)
        self._per_epoch = len(self._order(0))
        self._steps = epochs * self._per_epoch
        optimizer = torch.optim.AdamW(
            [p for p in module.parameters() if p.requires_grad], settings.learning_rate, weight_decay=0.01
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        self._module, self._optimizer, self._schedule = self._accelerator.prepare(module, optimizer, schedule)
        self._progress = _Progress()
        self._accelerator.register_for_checkpointing(self._progress)

    def run(self) -> "nn.Module":
        self._resume()
        saved, took = time.monotonic(), 0.0
        start, first = saved, self._progress.step
        while self._progress.step < self._steps:
            self._one_step()
            self._foresee(time.monotonic() - start, self._progress.step - first)
            ended = self._progress.step % self._per_epoch == 0
            if ended:
                self._end_epoch()
            began = time.monotonic()
            if ended or began - saved > max(CHECKPOINT_S, CHECKPOINT_TIMES * took):
                self._checkpoint()
                saved = time.monotonic()
                took = saved - began
        module: nn.Module = self._accelerator.unwrap_model(self._module)
        if self._keep == "best" and self._progress.best is not None:
            module.load_state_dict(self._progress.best)
        self._accelerator.free_memory()
        return module.cpu().eval()

    def _one_step(self) -> None:
        step = self._progress.step
        epoch, position = divmod(step, self._per_epoch)
        if position == 0:
            self._batches = self._order(epoch)
        self._module.train()
        batch = self._batch("train", self._batches[position])
        augmented = self._workload.definition.augment(batch.inputs)
        in_order = {name: augmented[name] for name in batch.inputs}  # the network takes them by position
        found = self._loss(self._module, replace(batch, inputs=in_order))
        self._check(float(found.detach()), "train")
        self._accelerator.backward(found)
        self._accelerator.clip_grad_norm_(self._module.parameters(), 1.0)
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        self._progress.step += 1
        if self._after_step is not None:
            self._after_step(self._progress.step / self._steps)

    def _end_epoch(self) -> None:
        """Say where it stands, and keep the weights if they are the best yet."""
        import torch

        self._module.eval()
        split = self._workload.split("calibration")
        parts = np.array_split(np.arange(len(split)), max(1, len(split) // self._batch_size))
        with torch.no_grad():
            losses = [float(self._loss(self._module, self._batch("calibration", part))) for part in parts]
        mean = float(np.average(losses, weights=[len(part) for part in parts]))
        self._check(mean, "calibration")
        epoch, epochs = self._progress.step // self._per_epoch, self._steps // self._per_epoch
        print(f"{self._stage}: epoch {epoch} of {epochs}, loss {mean:.4f} on calibration", flush=True)
        if mean < self._progress.best_loss:
            state = self._accelerator.unwrap_model(self._module).state_dict()
            self._progress.best_loss, self._progress.best = mean, copy.deepcopy(state)

    def _foresee(self, seconds: float, steps: int) -> None:
        """Raises: TimedOutError where, at the pace of these steps, it would end much too late."""
        limit_s = self._workload.limit_s
        if limit_s is None or seconds < SEEN * limit_s:
            return
        expected_s = seconds + (self._steps - self._progress.step) * seconds / steps
        if expected_s > LATE * limit_s:
            raise TimedOutError(
                f"training must end in {limit_s:g} s",
                f"it would take some {expected_s:.0f} s, as is seen after {seconds:.0f}",
                "Raise `budget.variant_minutes`, or let it train in fewer `epochs`",
            )

    def _check(self, loss: float, split: TrainedOn) -> None:
        """Raises: TrainingDivergedError unless the loss is finite."""
        if not math.isfinite(loss):
            raise TrainingDivergedError(
                "the loss must stay finite while training",
                f"it was {loss} on `{split}` at step {self._progress.step + 1} of {self._steps}",
                f"Lower `learning_rate`; the last checkpoint is in {self._folder}",
            )

    def _order(self, epoch: int) -> list[np.ndarray]:
        """This process's batches of an epoch: positions in the training split, shuffled.

        Texts are put together with others of about their length, so that little is padded.
        """
        samples = self._workload.split("train").samples
        chance = np.random.default_rng([self._seed, epoch])
        order = chance.permutation(len(samples))
        count = max(1, len(samples) // self._batch_size)
        if isinstance(samples[0], str):
            lengths = np.asarray([len(samples[i]) for i in order])
            order = order[np.argsort(lengths * chance.uniform(0.9, 1.1, len(order)), kind="stable")]
        batches = np.array_split(order, count)
        shuffled = [batches[i] for i in chance.permutation(count)]
        ours, processes = self._accelerator.process_index, self._accelerator.num_processes
        return shuffled[ours::processes][: max(1, count // processes)]

    def _batch(self, split: TrainedOn, indices: np.ndarray) -> Batch:
        import torch

        part = self._workload.split(split).take(indices)
        arrays = self._workload.definition.preprocess(part.samples)
        device = self._accelerator.device
        inputs = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        targets = None if part.targets is None else torch.from_numpy(part.targets).to(device)
        return Batch(split, indices, inputs, targets)

    def _rate(self, step: int) -> float:
        """The share of the highest rate: it rises in a line, then falls to zero by half a cosine.

        Source: Loshchilov and Hutter, 2017, arXiv:1608.03983, section 3; Goyal et al., 2017,
        arXiv:1706.02677, section 2.2 (warm-up).
        """
        rising = WARM_UP * self._steps
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1.0, self._steps - rising)))

    @property
    def _folder(self) -> Path | None:
        scratch = self._workload.scratch
        return None if scratch is None else scratch / self._stage

    def _checkpoint(self) -> None:
        """Save all that the next step depends on; the last checkpoint is there until this one is whole."""
        if self._folder is None or not self._accelerator.is_main_process:
            return
        making = self._folder.with_suffix(".making")
        shutil.rmtree(making, ignore_errors=True)
        self._accelerator.save_state(str(making), safe_serialization=False)
        former = self._folder.with_suffix(".former")
        shutil.rmtree(former, ignore_errors=True)
        if self._folder.exists():
            self._folder.rename(former)
        making.rename(self._folder)
        shutil.rmtree(former, ignore_errors=True)

    def _resume(self) -> None:
        """Go on from the last checkpoint, where there is one."""
        if self._folder is None:
            return
        former = self._folder.with_suffix(".former")
        if not self._folder.exists() and former.exists():
            former.rename(self._folder)  # killed between two renames
        if self._folder.exists():
            self._accelerator.load_state(str(self._folder))
            step = self._progress.step
            if step % self._per_epoch:
                self._batches = self._order(step // self._per_epoch)
