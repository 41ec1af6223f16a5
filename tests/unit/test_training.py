"""The training loop: seeded, resumable after a kill, stopped where it diverges, alike on two processes."""

import copy
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from pareflow.errors import TimedOutError, TrainingDivergedError, WorkloadError
from pareflow.model import Distillation, LowRank, UnstructuredPruning, training
from pareflow.model.training import Batch, TrainedTechnique, fit, task_loss
from pareflow.network import Form
from pareflow.workload import SPLITS, LoadedWorkload, Split, Splits

Load = Callable[[str], LoadedWorkload]


class Trained(TrainedTechnique):
    """No member of the catalog: it has no name."""

    form: ClassVar[Form] = "torch"

    def apply(self, network: nn.Module, workload: LoadedWorkload) -> nn.Module:
        return fit(copy.deepcopy(network), workload, self, loss=task_loss(workload))


def fresh(workload: LoadedWorkload) -> nn.Module:
    """An untrained network."""
    made = workload.definition.network()
    assert isinstance(made, nn.Module)
    return made


def loss_on(split: str, module: nn.Module, workload: LoadedWorkload) -> float:
    samples: Split = getattr(workload.splits, split)
    inputs = map(torch.from_numpy, workload.definition.preprocess(samples.samples).values())
    with torch.no_grad():
        return float(workload.definition.loss(module(*inputs), torch.from_numpy(samples.labels())))


def same(ours: nn.Module, theirs: nn.Module) -> bool:
    return all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))


@pytest.mark.parametrize("name", ["images", "texts"])
def test_training_lowers_the_loss_on_samples_it_has_not_seen(load_tiny: Load, name: str) -> None:
    workload = load_tiny(name)
    module = fresh(workload)
    trained = Trained(epochs=4, batch_size=32, learning_rate=1e-2).apply(module, workload)
    assert loss_on("search", trained, workload) < 0.8 * loss_on("search", module, workload)
    assert not trained.training


@pytest.mark.parametrize("name", ["images", "texts"])
def test_same_seed_gives_the_same_weights(load_tiny: Load, name: str) -> None:
    workload = load_tiny(name)
    module = fresh(workload)
    torch.manual_seed(1)
    first = Trained(epochs=1).apply(module, workload)
    torch.manual_seed(2)
    assert same(first, Trained(epochs=1).apply(module, workload))
    assert same(first, Trained(epochs=1, seed=workload.definition.seed).apply(module, workload))
    assert not same(first, Trained(epochs=1, seed=workload.definition.seed + 1).apply(module, workload))


def test_augmented_inputs_may_come_in_any_order(load_tiny: Load) -> None:
    """The network takes them by position: by the order of `preprocess`."""
    workload = load_tiny("texts")

    class Turned(type(workload.definition)):  # type: ignore[misc]
        def augment(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return dict(reversed(inputs.items()))

    made = [
        Trained(epochs=1).apply(fresh(workload), replace(workload, definition=definition))
        for definition in (workload.definition, Turned())
    ]
    assert same(*made)


def test_no_epoch_leaves_the_network_as_it_is(load_tiny: Load) -> None:
    workload = load_tiny("images")
    module = fresh(workload)
    assert same(module, Trained(epochs=0).apply(module, workload))


KILLED = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
import torch, pareflow
from pareflow import network
from pareflow.model import Distillation, LowRank, UnstructuredPruning, training
from pareflow.workload import load

torch.set_num_threads(1)
workload = load({"file": {"path": "images.py"}}, Path(sys.argv[1]))
workload = replace(workload, scratch=Path(sys.argv[2]))
steps = 0

def die(share):
    global steps
    steps += 1
    if steps == 17:
        os.kill(os.getpid(), signal.SIGKILL)

class Trained(training.TrainedTechnique):
    form = "torch"
    def apply(self, network, workload):
        return training.fit(network, workload, self, loss=training.task_loss(workload), after_step=die)

training.CHECKPOINT_S = training.CHECKPOINT_TIMES = 0
Trained(epochs=3, batch_size=64).apply(workload.definition.network(), workload)
"""


def test_killed_training_goes_on_from_its_checkpoint_to_the_same_weights(
    load_tiny: Load, workloads: Path, tmp_path: Path
) -> None:
    """460 images in batches of about 64 are 7 steps per epoch: step 17 is in the middle of the third."""
    command = [sys.executable, "-c", KILLED, str(workloads), str(tmp_path / "scratch")]
    assert subprocess.run(command, env=os.environ, check=False).returncode == -signal.SIGKILL
    torch.set_num_threads(1)
    workload, left = load_tiny("images"), list[float]()
    settings = Trained(epochs=3, batch_size=64)
    trained = fit(
        fresh(workload),
        replace(workload, scratch=tmp_path / "scratch"),
        settings,
        loss=task_loss(workload),
        after_step=left.append,
    )
    assert len(left) == 21 - 16
    assert same(trained, settings.apply(fresh(workload), workload))


@pytest.mark.parametrize(("times", "kept"), [(0, 7), (10**9, 2)], ids=["free", "dear"])
def test_checkpoints_are_as_frequent_as_they_are_cheap(
    load_tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, kept: int
) -> None:
    """One epoch of 7 steps: where they cost much, the first and that of the epoch's end are all."""
    workload, saved = replace(load_tiny("images"), scratch=tmp_path), list[str]()
    monkeypatch.setattr(training, "CHECKPOINT_S", 0)
    monkeypatch.setattr(training, "CHECKPOINT_TIMES", times)
    save = Accelerator.save_state

    def counted(accelerator: Accelerator, folder: str, **options: Any) -> str:
        saved.append(folder)
        return str(save(accelerator, folder, **options))

    monkeypatch.setattr(Accelerator, "save_state", counted)
    fit(fresh(workload), workload, Trained(epochs=1, batch_size=64), loss=task_loss(workload))
    assert len(saved) == kept


def trained_by_a_clock(workload: LoadedWorkload, monkeypatch: pytest.MonkeyPatch, limit_s: float) -> int:
    """The steps of 21 that are done within a limit, by a clock on which each takes ten seconds."""
    now, steps = 1000.0, 0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def one_more(share: float) -> None:
        nonlocal now, steps
        now, steps = now + 10, steps + 1

    limited = replace(workload, limit_s=limit_s)
    try:
        fit(
            fresh(workload),
            limited,
            Trained(epochs=3, batch_size=64),
            loss=task_loss(workload),
            after_step=one_more,
        )
    except TimedOutError as error:
        assert (error.must, error.found) == (  # noqa: PT017
            f"training must end in {limit_s:g} s",
            f"it would take some 210 s, as is seen after {steps * 10}",
        )
    return steps


@pytest.mark.parametrize(("limit_s", "steps"), [(170, 2), (180, 21), (1000, 21)])
def test_training_that_cannot_end_in_time_is_stopped_early(
    load_tiny: Load, monkeypatch: pytest.MonkeyPatch, limit_s: float, steps: int
) -> None:
    """By hand: 210 s in all; 17 s are a tenth of 170, of which 210 are more than 1.2 times."""
    assert trained_by_a_clock(load_tiny("images"), monkeypatch, limit_s) == steps


def test_training_that_goes_on_after_a_kill_needs_time_for_what_is_left(
    load_tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: stopped in the second of three epochs it has 140 of 210 s left, less than 1.2 times 130."""
    workload = replace(load_tiny("images"), scratch=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(training, "LATE", 0)
        patch.setattr(training, "SEEN", 0.5)
        assert trained_by_a_clock(workload, patch, 160) == 8
    assert trained_by_a_clock(workload, monkeypatch, 130) == 14


def test_training_that_diverges_is_stopped_and_its_checkpoint_kept(load_tiny: Load, tmp_path: Path) -> None:
    workload = replace(load_tiny("images"), scratch=tmp_path)

    def poisoned(module: nn.Module, batch: Batch) -> torch.Tensor:
        found = task_loss(workload)(module, batch)
        epoch_two = (tmp_path / "fit").exists() and batch.split == "train"
        return found * float("nan") if epoch_two else found

    with pytest.raises(TrainingDivergedError, match=r"it was nan on `train` at step 8 of 14"):
        fit(fresh(workload), workload, Trained(epochs=2), loss=poisoned)
    assert any((tmp_path / "fit").iterdir())


@pytest.mark.parametrize("dtype", [np.int32, np.int16, np.uint8, np.bool_])
def test_labels_of_every_width_are_class_numbers(load_tiny: Load, dtype: type[np.generic]) -> None:
    """As they come out of other libraries; torch's cross-entropy takes int64 and uint8 alone."""
    workload = load_tiny("images")
    parts = [getattr(workload.splits, name) for name in SPLITS]

    def trained(dtype: type[np.generic]) -> nn.Module:
        labelled = (Split(part.samples, (part.labels() % 2).astype(dtype)) for part in parts)
        technique = Trained(epochs=1, batch_size=128)
        return technique.apply(fresh(workload), replace(workload, splits=Splits(*labelled)))

    assert same(trained(dtype), trained(np.int64))


def test_labels_are_asked_for_where_the_loss_needs_them(load_tiny: Load) -> None:
    workload = load_tiny("images")
    parts = (Split(getattr(workload.splits, name).samples) for name in SPLITS)
    bare = replace(workload, splits=Splits(*parts))
    with pytest.raises(WorkloadError, match="the data have none"):
        Trained(epochs=1).apply(fresh(workload), bare)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_best_weights_are_kept_unless_the_last_are_asked_for(load_tiny: Load, keep: str) -> None:
    """The loss pulls a weight to 5 and then, after one epoch, the schedule spoils it."""
    workload = load_tiny("images")
    module = nn.Linear(1, 1)

    def loss(found: nn.Module, batch: Batch) -> torch.Tensor:
        return (found.weight - 5).square().sum()  # type: ignore[operator,union-attr]

    def spoil(share: float) -> None:
        if share > 0.5:
            module.weight.data.fill_(-100.0)

    fit(module, workload, Trained(epochs=2), loss=loss, after_step=spoil, keep=keep)  # type: ignore[arg-type]
    assert (module.weight.item() == -100) == (keep == "last")


def test_texts_of_like_length_share_a_batch(load_tiny: Load) -> None:
    workload = load_tiny("texts")
    spreads: list[int] = []

    def loss(module: nn.Module, batch: Batch) -> torch.Tensor:
        if batch.split == "train":
            lengths = batch.inputs["mask"].sum(1)
            spreads.append(int(lengths.max() - lengths.min()))
        return task_loss(workload)(module, batch)

    fit(fresh(workload), workload, Trained(epochs=1, batch_size=16), loss=loss)
    assert np.mean(spreads) < 3  # 6 to 12 letters; at random 16 of them spread over nearly all


def test_every_sample_is_seen_once_per_epoch(load_tiny: Load) -> None:
    workload = load_tiny("images")
    seen: list[int] = []

    def loss(module: nn.Module, batch: Batch) -> torch.Tensor:
        seen.extend(batch.indices if batch.split == "train" else [])
        return task_loss(workload)(module, batch)

    fit(fresh(workload), workload, Trained(epochs=2), loss=loss)
    assert sorted(seen) == sorted([*range(len(workload.splits.train))] * 2)
    assert seen[: len(seen) // 2] != seen[len(seen) // 2 :]


def _on_two_processes(folder: str, into: str) -> None:
    from pareflow.workload import load

    torch.set_num_threads(1)
    workload = load({"file": {"path": "images.py"}}, Path(folder))
    trained = Trained(epochs=2, batch_size=32).apply(fresh(workload), workload)
    rank = torch.distributed.get_rank()
    torch.save((rank, trained.state_dict(), loss_on("search", trained, workload)), f"{into}/{rank}.pt")


@pytest.mark.slow
def test_two_processes_share_the_samples_and_end_with_one_network(
    load_tiny: Load, workloads: Path, tmp_path: Path
) -> None:
    """By gloo on the CPU; on GPUs the same code runs by NCCL (not measured)."""
    from accelerate import debug_launcher

    debug_launcher(_on_two_processes, (str(workloads), str(tmp_path)), num_processes=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert all(map(torch.equal, first[1].values(), second[1].values()))
    workload = load_tiny("images")
    assert first[2] < 0.9 * loss_on("search", fresh(workload), workload)


@pytest.mark.parametrize("kind", [np.str_, object])
@pytest.mark.parametrize(
    "technique",
    [
        Trained(),
        LowRank(share=0.5),
        Distillation(alpha=0, width=0.5),
        UnstructuredPruning(importance="taylor", epochs=0),
    ],
    ids=lambda technique: type(technique).__name__,
)
def test_names_of_classes_are_no_targets_to_train_on(
    load_tiny: Load, technique: TrainedTechnique, kind: type
) -> None:
    """It is told once, and not by torch."""
    workload = load_tiny("images")
    names: np.ndarray = np.array(["cat", "dog", "cow", "hen"], dtype=kind)
    parts = {name: getattr(workload.splits, name) for name in SPLITS}
    named = {name: Split(part.samples, names[part.labels()]) for name, part in parts.items()}
    with pytest.raises(
        WorkloadError, match=r"targets that are numbers.*such as .*order of `class_names\(\)`"
    ):
        technique.apply(fresh(workload), replace(workload, splits=Splits(**named)))
