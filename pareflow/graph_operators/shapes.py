"""What moves numbers about and computes none: shapes, slices, copies."""

import math
from collections.abc import Sequence

import numpy as np
import onnx
import torch

from pareflow.graph_operators.registered import Sizes, T, of_integers, operator


@operator("Shape")
def _shape(x: T, start: int = 0, end: int | None = None) -> Sizes:
    return of_integers(list(x.shape)[start:end])


@operator("Size")
def _size(x: T) -> Sizes:
    return of_integers(x.numel())


@operator("Reshape", known=(1,))
def _reshape(x: T, shape: Sizes, allowzero: int = 0) -> T:
    asked = shape.tolist()
    return x.reshape([x.shape[i] if size == 0 and not allowzero else size for i, size in enumerate(asked)])


@operator("Flatten")
def _flatten(x: T, axis: int = 1) -> T:
    rows = math.prod(x.shape[:axis]) if axis else 1
    return x.reshape(rows, -1)


@operator("Transpose")
def _transpose(x: T, perm: Sequence[int] | None = None) -> T:
    return x.permute(list(perm or range(x.dim())[::-1]))


@operator("Squeeze", known=(1,))
def _squeeze(x: T, axes: Sequence[int] | Sizes | None = None) -> T:
    return x.squeeze() if axes is None else x.squeeze([int(axis) for axis in axes])


@operator("Unsqueeze", known=(1,))
def _unsqueeze(x: T, axes: Sequence[int] | Sizes) -> T:
    rank = x.dim() + len(axes)
    for axis in sorted(int(axis) % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def _concat(*inputs: T, axis: int) -> T:
    return torch.cat(inputs, axis)


@operator("Split", known=(1,))
def _split(
    x: T, split: Sequence[int] | Sizes | None = None, axis: int = 0, num_outputs: int | None = None
) -> tuple[T, ...]:
    if split is None:
        if num_outputs is None:
            raise NotImplementedError("its sizes or their number must be told")
        return torch.split(x, -(-x.shape[axis] // num_outputs), axis)
    return torch.split(x, [int(size) for size in split], axis)


@operator("Slice", known=(1, 2, 3, 4))
def _slice(x: T, starts: Sizes, ends: Sizes, axes: Sizes | None = None, steps: Sizes | None = None) -> T:
    chosen = range(len(starts)) if axes is None else axes.tolist()
    strides = [1] * len(starts) if steps is None else steps.tolist()
    for axis, start, end, step in zip(chosen, starts.tolist(), ends.tolist(), strides, strict=True):
        if step < 0:
            raise NotImplementedError(f"its steps must be positive, but one is {step}")
        x = torch.ops.aten.slice.Tensor(x, axis, start, end, step)
    return x


@operator("Gather")
def _gather(x: T, indices: T, axis: int = 0) -> T:
    axis %= x.dim()
    found = torch.index_select(x, axis, _positive(indices, x.shape[axis]).reshape(-1))
    return found.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


@operator("GatherElements")
def _gather_elements(x: T, indices: T, axis: int = 0) -> T:
    return torch.gather(x, axis, _positive(indices, x.shape[axis]).long())


def _positive(indices: T, size: int) -> T:
    """Indices of which negative ones count from the end."""
    return torch.where(indices < 0, indices + size, indices)


@operator("Expand", known=(1,))
def _expand(x: T, shape: Sizes) -> T:
    asked = shape.tolist()
    own = [1] * (len(asked) - x.dim()) + list(x.shape)
    asked = [1] * (len(own) - len(asked)) + asked
    return x.expand([mine if size == 1 else size for mine, size in zip(own, asked, strict=True)])


@operator("Tile", known=(1,))
def _tile(x: T, repeats: Sizes) -> T:
    return x.repeat(repeats.tolist())


@operator("ConstantOfShape", known=(0,))
def constant_of_shape(shape: Sizes, value: onnx.TensorProto | None = None) -> T:
    array = np.zeros(1, np.float32) if value is None else onnx.numpy_helper.to_array(value)
    return torch.full(shape.tolist(), array.item(), dtype=torch.from_numpy(array.copy()).dtype)


@operator("Range", known=(0, 1, 2))
def _range(start: Sizes, limit: Sizes, delta: Sizes) -> T:
    return torch.arange(start.item(), limit.item(), delta.item())


@operator("Trilu", known=(1,))
def _trilu(x: T, k: Sizes | None = None, upper: int = 1) -> T:
    diagonal = 0 if k is None else int(k.reshape(-1)[0])
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)
