"""What slides over an image: convolutions, pools, padding, resizing."""

import math
from collections.abc import Sequence
from typing import Any

from torch.nn import functional

from pareflow.graph_operators.registered import Sizes, T, operator


@operator("Conv")
def _conv(
    x: T,
    w: T,
    b: T | None = None,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> T:
    rank = w.dim() - 2
    strides, dilations = list(strides or [1] * rank), list(dilations or [1] * rank)
    x, padding = _padded(x, list(w.shape[2:]), strides, dilations, auto_pad, pads, 0.0)
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    return convolve(x, w, b, strides, padding, dilations, group)


def _padded(
    x: T,
    kernel: list[int],
    strides: list[int],
    dilations: list[int],
    auto_pad: str,
    pads: Sequence[int] | None,
    value: float,
) -> tuple[T, list[int]]:
    """What a window slides over, and the padding that is the same on both sides, so that it is left to it."""
    rank = len(kernel)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
            for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True)
        ]
        less = [total // 2 for total in totals]
        more = [total - half for total, half in zip(totals, less, strict=True)]
        pads = [*less, *more] if auto_pad == "SAME_UPPER" else [*more, *less]
    elif auto_pad == "VALID" or pads is None:
        pads = [0] * 2 * rank
    before, after = list(pads[:rank]), list(pads[rank:])
    if before == after:
        return x, before
    return functional.pad(x, _for_torch(before, after), value=value), [0] * rank


def _for_torch(before: Sequence[Any], after: Sequence[Any]) -> list[Any]:
    """Padding as torch takes it: the last axis first."""
    pairs = list(zip(before, after, strict=True))[::-1]
    return [size for pair in pairs for size in pair]


@operator("ConvTranspose")
def _conv_transpose(
    x: T,
    w: T,
    b: T | None = None,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> T:
    rank = w.dim() - 2
    pads = list(pads or [0] * 2 * rank)
    if pads[:rank] != pads[rank:]:
        raise NotImplementedError(f"its padding must be the same on both sides, but is {pads}")
    convolve = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
    ones, nothing = [1] * rank, [0] * rank
    return convolve[rank - 1](
        x, w, b, strides or ones, pads[:rank], output_padding or nothing, group, dilations or ones
    )


@operator("MaxPool")
def _max_pool(
    x: T,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> T:
    rank = len(kernel_shape)
    strides, dilations = list(strides or [1] * rank), list(dilations or [1] * rank)
    x, padding = _padded(x, list(kernel_shape), strides, dilations, auto_pad, pads, -math.inf)
    pool = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[rank - 1]
    found: T = pool(x, list(kernel_shape), strides, padding, dilations, bool(ceil_mode))
    return found


@operator("AveragePool")
def _average_pool(
    x: T,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> T:
    rank = len(kernel_shape)
    strides = list(strides or [1] * rank)
    slid, padding = _padded(x, list(kernel_shape), strides, [1] * rank, auto_pad, pads, 0.0)
    if slid is not x and not count_include_pad:
        raise NotImplementedError(f"its padding must be the same on both sides, but is {pads or auto_pad}")
    pool = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[rank - 1]
    return pool(slid, list(kernel_shape), strides, padding, bool(ceil_mode), bool(count_include_pad))


@operator("GlobalAveragePool")
def _global_average_pool(x: T) -> T:
    return x.mean(dim=list(range(2, x.dim())), keepdim=True)


@operator("GlobalMaxPool")
def _global_max_pool(x: T) -> T:
    return x.amax(dim=list(range(2, x.dim())), keepdim=True)


@operator("Pad", known=(1, 2, 3))
def _pad(
    x: T, pads: Sizes, value: Sizes | None = None, axes: Sizes | None = None, mode: str = "constant"
) -> T:
    chosen = list(range(x.dim())) if axes is None else [int(axis) % x.dim() for axis in axes]
    before, after = [0] * x.dim(), [0] * x.dim()
    for position, axis in enumerate(chosen):
        before[axis], after[axis] = pads[position], pads[position + len(chosen)]
    if mode == "constant":
        return functional.pad(x, _for_torch(before, after), value=0 if value is None else value.item())
    rank = x.dim() - 2  # torch mirrors and repeats all axes but the batch and the channels
    if any([*before[:2], *after[:2]]):
        raise NotImplementedError(f"mode {mode} must leave batch and channels as they are")
    name = {"edge": "replicate", "reflect": "reflect", "wrap": "circular"}[mode]
    return functional.pad(x, _for_torch(before[-rank:], after[-rank:]), mode=name)


@operator("Resize", known=(2, 3))
def _resize(
    x: T,
    roi: T | None = None,
    scales: Sizes | None = None,
    sizes: Sizes | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> T:
    """Nearest and linear, as torch exports them."""
    asked = (mode, coordinate_transformation_mode, nearest_mode if mode == "nearest" else "")
    known = {
        ("nearest", "asymmetric", "floor"): ("nearest", None),
        ("linear", "half_pixel", ""): ("bilinear", False),
        ("linear", "pytorch_half_pixel", ""): ("bilinear", False),
        ("linear", "align_corners", ""): ("bilinear", True),
    }
    if asked not in known or x.dim() != 4:
        raise NotImplementedError(f"its modes must be one of {sorted(known)} on images, but are {asked}")
    name, align = known[asked]
    size = None if sizes is None else sizes.tolist()[2:]
    factors = None if size is not None or scales is None else scales.tolist()[2:]
    return functional.interpolate(x, size, factors, name, align)
