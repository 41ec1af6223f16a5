"""What exporters compute shapes with, on sizes alone: some of them stand for an open batch."""

import math
from collections.abc import Sequence

import numpy as np
import onnx

from pareflow.graph_operators.registered import Sizes, T, as_tensor, of_integers, of_sizes, torch_kind
from pareflow.graph_operators.shapes import constant_of_shape


@of_sizes("Identity")
def _same(x: Sizes) -> Sizes:
    return x


@of_sizes("Cast")
def _cast_sizes(x: Sizes, to: int) -> Sizes | T:
    integer = to in (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
    return x if integer else as_tensor(x).to(torch_kind(to))


@of_sizes("Add")
def _add_sizes(a: Sizes, b: Sizes) -> Sizes:
    return np.asarray(a + b, object)


@of_sizes("Sub")
def _sub_sizes(a: Sizes, b: Sizes) -> Sizes:
    return np.asarray(a - b, object)


@of_sizes("Mul")
def _mul_sizes(a: Sizes, b: Sizes) -> Sizes:
    return np.asarray(a * b, object)


@of_sizes("Div")
def _div_sizes(a: Sizes, b: Sizes) -> Sizes:
    return np.asarray(a // b, object)  # sizes are not negative


@of_sizes("Equal")
def _equal_sizes(a: Sizes, b: Sizes) -> Sizes:
    return np.asarray(np.equal(a, b, dtype=object))


@of_sizes("Where")
def _where_sizes(condition: Sizes, a: Sizes, b: Sizes) -> Sizes:
    return np.where(condition.astype(bool), a, b)


@of_sizes("Gather")
def _gather_sizes(x: Sizes, indices: Sizes, axis: int = 0) -> Sizes:
    return np.asarray(np.take(x, indices.astype(np.int64), axis), object)


@of_sizes("Concat")
def _concat_sizes(*inputs: Sizes, axis: int) -> Sizes:
    return np.concatenate(inputs, axis)


@of_sizes("Unsqueeze")
def _unsqueeze_sizes(x: Sizes, axes: Sequence[int] | Sizes) -> Sizes:
    return np.expand_dims(x, tuple(int(axis) for axis in axes))


@of_sizes("Squeeze")
def _squeeze_sizes(x: Sizes, axes: Sequence[int] | Sizes | None = None) -> Sizes:
    return np.squeeze(x, None if axes is None else tuple(int(axis) for axis in axes))


@of_sizes("Reshape")
def _reshape_sizes(x: Sizes, shape: Sizes, allowzero: int = 0) -> Sizes:
    return x.reshape([int(size) for size in shape])


@of_sizes("Slice")
def _slice_sizes(
    x: Sizes, starts: Sizes, ends: Sizes, axes: Sizes | None = None, steps: Sizes | None = None
) -> Sizes:
    return x[int(starts[0]) : int(ends[0]) : 1 if steps is None else int(steps[0])]


@of_sizes("ReduceProd")
def _product_of_sizes(x: Sizes, axes: Sequence[int] | Sizes | None = None, keepdims: int = 1) -> Sizes:
    product = math.prod(x.tolist())
    return of_integers([product] if keepdims else product)


@of_sizes("ConstantOfShape")
def _constant_sizes(shape: Sizes, value: onnx.TensorProto | None = None) -> Sizes | T:
    array = np.zeros(1, np.float32) if value is None else onnx.numpy_helper.to_array(value)
    if array.dtype.kind == "i" and len(shape) == 1 and isinstance(shape[0], int):
        return of_integers([array.item()] * shape[0])
    data: T = constant_of_shape(shape, value)
    return data
