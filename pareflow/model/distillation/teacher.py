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
from pareflow.model.distillation.response import check_class_axis, gives_numbers
from pareflow.model.training import Batch
from pareflow.variant import digest, file_digest
from pareflow.workload import LoadedWorkload, Split, Workload

ANSWERS = "answers.npz"

Answers = tuple[torch.Tensor, list[torch.Tensor]]
"""Logits, and what the watched layers give."""


class Teacher:
    """A frozen copy of a network, and what it says to a batch.

    Where no layer is watched and the workload does not `augment`, its logits on the training and calibration
    samples are computed once for all students, and kept in the store by what they depend on. Else it runs on
    each batch, so that it sees what the student sees.
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
        """Its logits per split: from the store, or made and put there."""
        if self._workload.shared is None:
            return self._answer()
        folder = self._workload.shared(self._key(), self._write)
        with np.load(folder / ANSWERS) as kept:
            return dict(kept)

    def _write(self, folder: Path) -> None:
        np.savez(folder / ANSWERS, **self._answer())  # type: ignore[arg-type]  # its stub takes them for a flag

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

    def _key(self) -> str:
        """By the network, its weights, the workload with its data, and this file."""
        weights = hashlib.sha256()
        for name, tensor in self._network.state_dict().items():
            weights.update(name.encode() + tensor.numpy().tobytes())
        code = file_digest(Path(__file__))
        return digest("teacher", str(self._network), weights.hexdigest(), self._workload.digest, code)


def check_answers(teacher: nn.Module, student: nn.Module, name: str, workload: LoadedWorkload) -> None:
    """Raises: UnsuitableError unless both give logits of the same classes, or numbers as targets are."""
    given = [_shape(network, workload) for network in (teacher, student)]
    few = not gives_numbers(workload) and max(given[0][1:], default=0) < 2
    if given[0] != given[1] or not given[0] or few:
        raise UnsuitableError(
            "teacher and student must give logits of the same classes, two at least, or as many numbers",
            f"for two samples {type(teacher).__name__} gives {given[0]} and {name} {given[1]}",
            "Name a student with the teacher's outputs",
        )
    check_class_axis(given[0], workload)


def _shape(network: nn.Module, workload: LoadedWorkload) -> tuple[int, ...]:
    with torch.no_grad():
        outputs = network.eval()(*example(workload))
    return tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else ()
