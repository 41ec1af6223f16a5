"""How much memory a network's activations take at once, at least: by their lives in the graph's own order.

A tensor lives from the node that makes it to the last that reads it. Executors reuse what has died, write
element-wise results over their input, and fuse a quantization into the operator before it; all of this is
granted here, so that the peak is a lower bound for those that run the nodes in this order.
Source: Pisarchyk and Lee, 2020, "Efficient memory management for deep neural net inference",
arXiv:2001.03288, section 3 (the lower bound is the largest sum of tensors alive at one operator).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

# fmt: off
IN_PLACE = frozenset({
    "Abs", "Add", "BatchNormalization", "Cast", "Ceil", "Clip", "Div", "Dropout", "Elu", "Erf", "Exp",
    "Flatten", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "LayerNormalization", "LeakyRelu",
    "Log", "LogSoftmax", "Mul", "Neg", "Not", "PRelu", "Pow", "Reciprocal", "Relu", "Reshape", "Round",
    "Sigmoid", "Sign", "SimplifiedLayerNormalization", "Softmax", "Softplus", "Sqrt", "Squeeze", "Sub",
    "Tanh", "Unsqueeze",
})
# fmt: on
"""Operators whose output can lie where one of their inputs lay, if nothing else reads that input."""


@dataclass(frozen=True, slots=True)
class Node:
    """One node: its operator, and the names of what it reads and makes."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def peak_bytes(
    nodes: Sequence[Node], sizes: Mapping[str, int], inputs: Iterable[str], outputs: Iterable[str]
) -> int | None:
    """The largest sum of tensors that live at one node; None where the size of one is not known.

    `sizes` holds bytes by name. Only what depends on an input of the graph counts: weights, and what is
    computed from them alone, do not. Inputs live until they are last read, outputs to the end.
    """
    outputs = set(outputs)
    activations = dependent(nodes, inputs)
    readers = {name: [i for i, node in enumerate(nodes) if name in node.inputs] for name in activations}
    home = _homes(nodes, sizes, activations, readers, outputs)
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    bytes_at: dict[str, int] = {}
    made = {name: i for i, node in enumerate(nodes) for name in node.outputs}
    for name in sorted(activations):
        if name not in sizes:
            return None
        place = home[name]
        begins = made.get(name, 0)
        ends = len(nodes) if name in outputs else max(readers[name], default=begins)
        first[place] = min(first.get(place, begins), begins)
        last[place] = max(last.get(place, ends), ends)
        bytes_at[place] = min(bytes_at.get(place, sizes[name]), sizes[name])
    return max(
        (sum(n for p, n in bytes_at.items() if first[p] <= i <= last[p]) for i in range(len(nodes))),
        default=0,
    )


def dependent(nodes: Sequence[Node], inputs: Iterable[str]) -> set[str]:
    """The names of all tensors that depend on an input, themselves included; of nodes in their order."""
    found = set(inputs)
    for node in nodes:
        if not found.isdisjoint(node.inputs):
            found.update(filter(None, node.outputs))
    return found


def _homes(
    nodes: Sequence[Node],
    sizes: Mapping[str, int],
    activations: set[str],
    readers: Mapping[str, list[int]],
    outputs: set[str],
) -> dict[str, str]:
    """Where each tensor lies, named by the first tensor that lay there.

    Around a quantization only its narrow side is ever there.
    """
    home = {name: name for name in activations}
    for node in nodes:
        if not node.outputs:
            continue
        out = node.outputs[0]
        for name in node.inputs:
            if name not in activations:
                continue
            alone = len(readers[name]) == 1 and name not in outputs
            over = node.operator in IN_PLACE and alone and sizes.get(name) == sizes.get(out)
            fused = node.operator == "DequantizeLinear" or (node.operator == "QuantizeLinear" and alone)
            if over or fused:
                home[out] = home[name]
                break
    return home
