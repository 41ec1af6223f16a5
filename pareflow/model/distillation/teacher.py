"""The network that a student learns from: its answers, computed once where that is honest."""

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pareflow.errors import UnsuitableError
from pareflow.model.distillation.blocks import captured, example
from pareflow.model.training import Batch
from pareflow.variant import digest
from pareflow.workload import LoadedWorkload, Split, Workload

Answers = tuple[torch.Tensor, list[torch.Tensor]]
"""Logits, and what the watched layers give."""


class Teacher:
    """A frozen copy of a network, and what it says to a batch.

    Where no layer is watched and the workload does not `augment`, its logits on the training and calibration
    samples are computed once, and kept in the scratch folder by a digest of its weights and the data. Else
    it runs on each batch, so that it sees what the student sees.
    """

    def __init__(self, network: nn.Module, workload: LoadedWorkload, layers: Sequence[str] = ()) -> None:
        self._network = copy.deepcopy(network).eval().requires_grad_(False)
        self._workload, self._layers = workload, list(layers)
        as_they_are = type(workload.definition).augment is Workload.augment
        self._known = self._recall() if as_they_are and not layers else None

    def __call__(self, batch: Batch) -> Answers:
        device = next(iter(batch.inputs.values())).device
        if self._known is not None:
            return torch.from_numpy(self._known[batch.split][batch.indices]).to(device), []
        self._network.to(device)
        with torch.no_grad(), captured(self._network, self._layers) as found:
            outputs = self._network(*batch.inputs.values())
        return outputs, [found[name] for name in self._layers]

    def _recall(self) -> dict[str, np.ndarray]:
        """Its logits per split: from the scratch folder, or made and put there."""
        if self._workload.scratch is None:
            return self._answer()
        path = self._workload.scratch / f"teacher-{self._digest()}.npz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, self._answer())
        with np.load(path) as kept:
            return dict(kept)

    def _answer(self) -> dict[str, np.ndarray]:
        return {split: self._answers_to(self._workload.split(split)) for split in ("train", "calibration")}

    def _answers_to(self, split: Split) -> np.ndarray:
        """Its logits, one row per sample; texts go through with others of about their length."""
        texts = isinstance(split.samples[0], str)
        order = np.argsort([len(s) if texts else 0 for s in split.samples], kind="stable")
        parts = np.array_split(order, -(-len(order) // 256))
        with torch.no_grad():
            rows = np.concatenate([self._run(split.take(part)) for part in parts])
        answers = np.empty_like(rows)
        answers[order] = rows
        return answers

    def _run(self, part: Split) -> np.ndarray:
        inputs = self._workload.definition.preprocess(part.samples).values()
        rows: np.ndarray = self._network(*map(torch.from_numpy, inputs)).numpy()
        return rows

    def _digest(self) -> str:
        weights = hashlib.sha256()
        for name, tensor in self._network.state_dict().items():
            weights.update(name.encode() + tensor.numpy().tobytes())
        return digest(weights.hexdigest(), self._workload.data_digest)


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Whole or not at all."""
    making = path.with_suffix(".making.npz")
    np.savez(making, **arrays)  # type: ignore[arg-type]  # numpy's stub takes them for a flag
    making.rename(path)


def check_classes(teacher: nn.Module, student: nn.Module, name: str, workload: LoadedWorkload) -> None:
    """Raises: UnsuitableError unless both give logits of the same classes, two at least."""
    given = [_shape(network, workload) for network in (teacher, student)]
    if given[0] != given[1] or len(given[0]) < 2 or given[0][-1] < 2:
        raise UnsuitableError(
            "teacher and student must give logits of the same classes, two at least",
            f"for two samples {type(teacher).__name__} gives {given[0]} and {name} {given[1]}",
            "Name a student with the teacher's outputs",
        )


def _shape(network: nn.Module, workload: LoadedWorkload) -> tuple[int, ...]:
    with torch.no_grad():
        outputs = network.eval()(*example(workload))
    return tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else ()
