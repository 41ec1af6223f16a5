"""What the workers share that start from an exported program, and run in fixed shapes."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .serve import UnsupportedError

Arrays = dict[str, np.ndarray]


def read(source: Path) -> Any:
    """The exported program of a folder: it takes a mapping of tensors, and gives one."""
    import torch

    return torch.export.load(source / "network.pt2")


def example(exported: Any, batch_size: int) -> dict[str, Any]:
    """The inputs it was exported with, as a batch of `batch_size`."""
    (feeds,), _ = exported.example_inputs
    return {name: tensor[[i % len(tensor) for i in range(batch_size)]] for name, tensor in feeds.items()}


@contextlib.contextmanager
def naming(*patterns: str) -> Iterator[None]:
    """Around a conversion. Raises: UnsupportedError of the operator that the first of these patterns finds.

    A pattern's first group is the operator, its second, where it has one, the node.
    """
    try:
        yield
    except Exception as error:
        found = next(filter(None, (re.search(pattern, str(error)) for pattern in patterns)), None)
        if found is None:
            raise
        operator, node = (*found.groups(), None)[:2]
        raise UnsupportedError(str(operator), node, str(error)) from error


def outputs(exported: Any) -> list[str]:
    """The names of the outputs, in their order."""
    names: list[str] = exported.call_spec.out_spec.context
    return names


def positional(exported: Any) -> Any:
    """The program as a module that takes its inputs, and gives its outputs, by position."""
    import torch

    (feeds,), _ = exported.example_inputs
    names, run = list(feeds), exported.module()

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.program, self.training = run, False

        def train(self, mode: bool = True) -> Any:
            return self  # an exported program is of one mode, and refuses to be asked

        def forward(self, *tensors: Any) -> tuple[Any, ...]:
            return tuple(self.program(dict(zip(names, tensors, strict=True))).values())

    return Positional()


def fixed(exported: Any, batch_size: int) -> Any:
    """The program again, by position, its batch fixed, and every other axis at its example's size."""
    import torch

    return torch.export.export(positional(exported), tuple(example(exported, batch_size).values()))


def calibration(source: Path, batch_size: int) -> list[Arrays]:
    """The calibration samples in whole batches; the last is filled up by repetition."""
    with np.load(source / "calibration.npz") as stored:
        feeds = {name: stored[name] for name in stored.files}
    return list(_pieces(feeds, batch_size))


def piecewise(run: Callable[[Arrays], Arrays], feeds: Arrays, batch_size: int) -> Arrays:
    """The answers to a batch of any size from what takes batches of `batch_size` only."""
    count = len(next(iter(feeds.values())))
    if count == batch_size:
        return run(feeds)
    answers = [run(piece) for piece in _pieces(feeds, batch_size)]
    return {name: np.concatenate([answer[name] for answer in answers])[:count] for name in answers[0]}


def _pieces(feeds: Arrays, batch_size: int) -> Any:
    count = len(next(iter(feeds.values())))
    for start in range(0, count, batch_size):
        rows = np.minimum(np.arange(start, start + batch_size), count - 1)
        yield {name: array[rows] for name, array in feeds.items()}


def check_shape(name: str, array: np.ndarray, shape: Any) -> None:
    """Raises: ValueError where an input has not the shape that the executable was made for."""
    if array.shape != tuple(shape):
        raise ValueError(f"`{name}` must have the shape {tuple(map(int, shape))}, but has {array.shape}")
