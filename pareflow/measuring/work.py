"""How much a network computes and moves per request, from the shapes that ONNX Runtime's profile tells.

Counted are the products and sums of matrices: convolutions, matrix products, attention, recurrent layers.
They are nearly all of a network's arithmetic; what the rest (activations, norms) computes is None. It is the
work that the runtime does: convolutions pad channels to whole vectors (8 channels become 16 with AVX-512).
Products with the padding around an image are counted though kernels may skip them (8 % of a 3×3 convolution
of 16×16), by which a convolution can seem to pass the machine's matrix rate.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

Shape = Sequence[int]

PRODUCTS = {"MatMul", "MatMulInteger", "QLinearMatMul", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
TURNED = {"Gemm", "FusedGemm", "QGemm", "FusedMatMul", "TransposeMatMul"}
"""Products that may take their first matrix transposed."""
CONVOLUTION = {"Conv", "FusedConv", "ConvInteger", "QLinearConv"}
ATTENTION = {"Attention", "QAttention"}
RECURRENT = {"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"}
LOOKUPS = {"Gather", "GatherElements", "GatherND", "EmbedLayerNormalization", "Slice"}
VIEWS = {"Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze"}


def flops(operator: str, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> int | None:
    """Floating-point (or integer) multiplications and additions of one call; None if not counted, as where
    shapes are not those of the operator.

    A product of (m, k) and (k, n) counts 2·m·k·n. Source for the convolution: the same product over
    im2col's matrices, Chellapilla et al., 2006.
    """
    if not inputs or not outputs:
        return None
    try:
        return _counted(operator, inputs, outputs[0])
    except (IndexError, ValueError):
        return None


def _counted(operator: str, inputs: Sequence[Shape], out: Shape) -> int | None:
    first = inputs[0]
    if operator in PRODUCTS:
        return 2 * prod(out) * first[-1]
    if operator in TURNED:
        return 2 * prod(first) * out[-1]
    if operator in CONVOLUTION:
        weights = next((shape for shape in inputs[1:] if len(shape) == len(first)), None)
        return None if weights is None else 2 * prod(out) * prod(weights[1:])
    if operator == "ConvTranspose":
        return 2 * prod(first) * prod(inputs[1][1:])
    if operator in ATTENTION:
        return _attention(inputs, out)
    if operator in RECURRENT:
        weights_and_recurrence = sum(prod(shape) for shape in inputs[1:] if len(shape) == 3 and shape[1] > 1)
        return 2 * first[0] * first[1] * weights_and_recurrence
    return None


def _attention(inputs: Sequence[Shape], out: Shape) -> int | None:
    """Scores and what they weigh, and the projections of ONNX Runtime's own, whose second input they are.

    ONNX's takes queries, keys and values; None where keys of before come beside them.
    """
    first, second = inputs[0], inputs[1]
    if len(second) == 2:
        _, length, _ = first
        return 2 * prod(first) * second[-1] + 4 * prod(out) * length
    if len(first) != len(second) or any(inputs[4:]):
        return None
    return 2 * second[-2] * (prod(first) + prod(out))


def moved_bytes(operator: str, parameters: int, activations: int, output: int) -> int:
    """Bytes that one call reads and writes, each once: weights, inputs, outputs.

    A look-up reads as much of its table as it writes, and a view moves nothing.
    """
    if operator in VIEWS:
        return 0
    return 2 * output if operator in LOOKUPS else parameters + activations + output


def work(events: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """`flops` and `bytes` of one request by operator, from the `Node` events of one request.

    The session must run without prepacking: else packed weights are missing from shapes and sizes alike
    (seen with ONNX Runtime 1.32: a 1.6 MB Gemm told 256 bytes of parameters, those of its bias).
    """
    found: dict[str, dict[str, Any]] = {}
    for event in events:
        told = event["args"]
        name = told["op_name"]
        row = found.setdefault(name, {"flops": None, "bytes": 0})
        count = flops(name, _shapes(told["input_type_shape"]), _shapes(told["output_type_shape"]))
        if count is not None:
            row["flops"] = (row["flops"] or 0) + count
        sizes = (int(told[f"{part}_size"]) for part in ("parameter", "activation", "output"))
        row["bytes"] += moved_bytes(name, *sizes)
    return found


def _shapes(told: Sequence[Mapping[str, Shape]]) -> list[Shape]:
    """`[{"float": [1, 3]}, …]` without the types."""
    return [next(iter(kind.values()), []) for kind in told]
