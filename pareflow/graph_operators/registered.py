"""How operators enter their tables, and what they share: known numbers as tensors, and ONNX's types."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch

Sizes = np.ndarray
"""Known numbers, or the integers that stand for an open batch."""
T = torch.Tensor


@dataclass(frozen=True, slots=True)
class Operator:
    """What computes it, and which of its inputs must be known before it runs."""

    run: Callable[..., Any]
    known: tuple[int, ...] = ()


OPERATORS: dict[str, Operator] = {}

OF_SIZES: dict[str, Callable[..., Any]] = {}
"""The few that shapes are computed with, on sizes alone."""


def operator(name: str, known: tuple[int, ...] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def enter(run: Callable[..., Any]) -> Callable[..., Any]:
        OPERATORS[name] = Operator(run, known)
        return run

    return enter


def of_sizes(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def enter(run: Callable[..., Any]) -> Callable[..., Any]:
        OF_SIZES[name] = run
        return run

    return enter


def of_integers(values: Any) -> Sizes:
    """Sizes, open ones among them, of a list or of one."""
    found = np.empty(len(values) if isinstance(values, list) else (), object)
    found[...] = values
    return found


def as_tensor(value: Sizes) -> T:
    """Known numbers as a tensor, sizes of an open batch among them."""
    if value.dtype != object:
        return torch.from_numpy(np.array(value))
    elements = [torch.scalar_tensor(size, dtype=torch.int64) for size in value.reshape(-1).tolist()]
    return torch.stack(elements).reshape(value.shape)


def torch_kind(number: int) -> torch.dtype:
    """torch's type of ONNX's. Raises: KeyError."""
    return _KINDS[number]


_KINDS: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.BOOL: torch.bool,
}
