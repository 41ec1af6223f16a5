"""What computes: one number at a time, along axes, products, normalization, quantized numbers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional

from pareflow.graph_operators.registered import OPERATORS, Operator, Sizes, T, operator, torch_kind

_ONE_TO_ONE: Mapping[str, Callable[..., Any]] = {
    "Abs": torch.abs,
    "And": torch.logical_and,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "HardSwish": functional.hardswish,
    "Identity": lambda x: x,
    "IsNaN": torch.isnan,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "MatMul": torch.matmul,
    "Mish": functional.mish,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tanh": torch.tanh,
    "Add": torch.add,
    "Where": torch.where,
    "Xor": torch.logical_xor,
}

OPERATORS.update({name: Operator(run) for name, run in _ONE_TO_ONE.items()})


@operator("Div")
def _div(a: T, b: T) -> T:
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


@operator("Pow")
def _pow(x: T, exponent: T) -> T:
    return torch.pow(x, exponent).to(x.dtype)


@operator("Max")
def _max(*inputs: T) -> T:
    return _folded(torch.maximum, inputs)


@operator("Min")
def _min(*inputs: T) -> T:
    return _folded(torch.minimum, inputs)


@operator("Sum")
def _sum(*inputs: T) -> T:
    return _folded(torch.add, inputs)


@operator("Mean")
def _mean(*inputs: T) -> T:
    return _folded(torch.add, inputs) / len(inputs)


def _folded(join: Callable[[T, T], T], inputs: Sequence[T]) -> T:
    found, *others = inputs
    for other in others:
        found = join(found, other)
    return found


@operator("Clip", known=(1, 2))
def _clip(x: T, min: Sizes | None = None, max: Sizes | None = None) -> T:  # noqa: A002 (ONNX's names)
    low, high = (None if bound is None else bound.item() for bound in (min, max))
    return x if low is high is None else torch.clamp(x, low, high)


@operator("Elu")
def _elu(x: T, alpha: float = 1.0) -> T:
    return functional.elu(x, alpha)


@operator("LeakyRelu")
def _leaky_relu(x: T, alpha: float = 0.01) -> T:
    return functional.leaky_relu(x, alpha)


@operator("PRelu")
def _prelu(x: T, slope: T) -> T:
    return torch.where(x < 0, slope * x, x)


@operator("HardSigmoid")
def _hard_sigmoid(x: T, alpha: float = 0.2, beta: float = 0.5) -> T:
    return torch.clamp(alpha * x + beta, 0, 1)


@operator("Gelu")
def _gelu(x: T, approximate: str = "none") -> T:
    return functional.gelu(x, approximate=approximate)


@operator("Softmax")
def _softmax(x: T, axis: int = -1) -> T:
    return torch.softmax(x, axis)


@operator("LogSoftmax")
def _log_softmax(x: T, axis: int = -1) -> T:
    return torch.log_softmax(x, axis)


@operator("Dropout")
def _dropout(x: T, ratio: T | None = None, training_mode: T | None = None, seed: int = 0) -> T:
    return x


@operator("Cast")
def _cast(x: T, to: int, saturate: int = 1) -> T:
    return x.to(torch_kind(to))


@operator("Gemm")
def _gemm(
    a: T, b: T, c: T | None = None, alpha: float = 1, beta: float = 1, transA: int = 0, transB: int = 0
) -> T:
    a = a.t() if transA else a
    if transB and alpha == 1 and beta == 1 and (c is None or c.dim() == 1):
        return functional.linear(a, b, c)
    product = alpha * (a @ (b.t() if transB else b))
    return product if c is None else product + beta * c


@operator("Einsum")
def _einsum(*inputs: T, equation: str) -> T:
    return torch.einsum(equation, *inputs)


@operator("BatchNormalization")
def _batch_normalization(
    x: T,
    scale: T,
    b: T,
    mean: T,
    var: T,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> T:
    if training_mode:
        raise NotImplementedError("it must not train")
    return functional.batch_norm(x, mean, var, scale, b, eps=epsilon)


@operator("InstanceNormalization")
def _instance_normalization(x: T, scale: T, b: T, epsilon: float = 1e-5) -> T:
    return functional.instance_norm(x, weight=scale, bias=b, eps=epsilon)


@operator("LayerNormalization")
def _layer_normalization(
    x: T, scale: T, b: T | None = None, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> T:
    return functional.layer_norm(x, x.shape[axis % x.dim() :], scale, b, epsilon)


_REDUCTIONS: Mapping[str, Callable[[T, list[int], bool], T]] = {
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keep).sqrt(),
    "ReduceLogSumExp": lambda x, axes, keep: x.logsumexp(axes, keep),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keep),
    "ReduceProd": lambda x, axes, keep: _product(x, axes, keep),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep),
    "ReduceSumSquare": lambda x, axes, keep: x.square().sum(axes, keep),
}


def _product(x: T, axes: list[int], keep: bool) -> T:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keep)
    return x


def _reduction(reduce: Callable[[T, list[int], bool], T]) -> Callable[..., T]:
    def run(
        x: T, axes: Sequence[int] | Sizes | None = None, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> T:
        given = [] if axes is None else [int(axis) for axis in axes]
        if not given and noop_with_empty_axes:
            return x
        return reduce(x, given or list(range(x.dim())), bool(keepdims))

    return run


OPERATORS.update({name: Operator(_reduction(run), known=(1,)) for name, run in _REDUCTIONS.items()})


@operator("ArgMax")
def _arg_max(x: T, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> T:
    if select_last_index:
        raise NotImplementedError("it must take the first of equals")
    return torch.argmax(x, axis, bool(keepdims))


@operator("CumSum", known=(1,))
def _cum_sum(x: T, axis: Sizes, exclusive: int = 0, reverse: int = 0) -> T:
    if exclusive or reverse:
        raise NotImplementedError("it must sum forwards, the element itself included")
    return torch.cumsum(x, int(axis.reshape(-1)[0]))


@operator("QuantizeLinear")
def _quantize_linear(x: T, scale: T, zero_point: T | None = None, axis: int = 1) -> T:
    """In plain arithmetic, as its opposite: ExecuTorch answers wrongly to torch's own pair (docs/log.md)."""
    zero = torch.zeros(1, dtype=torch.uint8) if zero_point is None else zero_point
    limits = torch.iinfo(zero.dtype)
    steps = torch.round(x / _along(scale, x, axis)) + _along(zero, x, axis).to(x.dtype)
    return torch.clamp(steps, limits.min, limits.max).to(zero.dtype)


@operator("DequantizeLinear")
def _dequantize_linear(x: T, scale: T, zero_point: T | None = None, axis: int = 1) -> T:
    steps = x.to(scale.dtype)
    if zero_point is not None:
        steps = steps - _along(zero_point, x, axis).to(scale.dtype)
    return steps * _along(scale, x, axis)


def _along(values: T, x: T, axis: int) -> T:
    """One value, or one per position of an axis of `x`."""
    if values.numel() == 1:
        return values.reshape(())
    return values.reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])
