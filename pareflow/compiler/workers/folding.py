"""Constant folding of an ONNX graph: nodes whose inputs are all known become initializers."""

from typing import Any

import numpy as np

LARGEST = 2**20
"""Values: what a node makes of little may be much (an Expand, a ConstantOfShape), and stays a node."""
_LEFT = {"DequantizeLinear", "QuantizeLinear", "RandomNormal", "RandomUniform", "Bernoulli", "Multinomial"}
"""Weights of bytes stay bytes, and what is drawn at random is no constant."""


def fold(model: Any) -> Any:
    """A model that computes the same with fewer nodes; those with graphs of their own stay as they are."""
    import onnx
    from onnx import numpy_helper

    model = onnx.shape_inference.infer_shapes(model)
    graph, kept, shapes = model.graph, list[Any](), _shapes(model.graph)
    known = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        outputs = _of_shapes(node, makers, shapes, known)
        if outputs is None and _foldable(node, known):
            outputs = _evaluated(node, known, model.opset_import)
        if outputs is None:
            kept.append(node)
            continue
        for name, array in zip(node.output, outputs, strict=True):
            known[name] = numpy_helper.from_array(array, name)
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    asked = {output.name for output in graph.output}
    kept = _alive(kept, asked)
    used = _names(kept) | asked
    graph.node.extend(kept)
    graph.initializer.extend(tensor for name, tensor in known.items() if name in used)
    return model


def _alive(nodes: list[Any], asked: set[str]) -> list[Any]:
    """The nodes, in their order, that something asks for."""
    alive, wanted = list[Any](), set(asked)
    for node in reversed(nodes):
        if wanted & set(node.output):
            alive.append(node)
            wanted |= _names([node])
    return alive[::-1]


def _shapes(graph: Any) -> dict[str, list[int | None]]:
    """The sizes of each tensor as far as they are known."""
    return {
        value.name: [
            d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim
        ]
        for value in (*graph.input, *graph.value_info)
        if value.type.tensor_type.HasField("shape")
    }


def _of_shapes(
    node: Any, makers: dict[str, Any], shapes: dict[str, list[int | None]], known: dict[str, Any]
) -> list[np.ndarray] | None:
    """A shape that is known, or one size of it."""
    from onnx import numpy_helper

    if node.op_type == "Shape" and not node.attribute:
        sizes = shapes.get(node.input[0], [None])
        return None if None in sizes else [np.asarray(sizes, np.int64)]
    if node.op_type == "Gather" and node.input[1] in known:
        maker = makers.get(node.input[0])
        if maker is not None and maker.op_type == "Shape" and not maker.attribute:
            which = numpy_helper.to_array(known[node.input[1]])
            sizes = shapes.get(maker.input[0], [])
            if which.ndim == 0 and -len(sizes) <= which < len(sizes) and sizes[which] is not None:
                return [np.asarray(sizes[which], np.int64)]
    return None


def _foldable(node: Any, known: dict[str, Any]) -> bool:
    plain = not node.domain and node.op_type not in _LEFT and not any(a.HasField("g") for a in node.attribute)
    return plain and all(name in known for name in node.input if name)


def _evaluated(node: Any, known: dict[str, Any], opsets: Any) -> list[np.ndarray] | None:
    """What the node makes of its inputs; None where ONNX's reference does not know, or it is too large."""
    from onnx import ValueInfoProto, helper
    from onnx.reference import ReferenceEvaluator

    inputs = [known[name] for name in dict.fromkeys(node.input) if name]
    outputs = [ValueInfoProto(name=name) for name in node.output]
    try:
        alone = helper.make_model(helper.make_graph([node], "one", [], outputs, inputs), opset_imports=opsets)
        found = [np.asarray(array) for array in ReferenceEvaluator(alone).run(None, {})]
    except Exception:
        return None  # it stays a node, and the compiler says what it thinks of it
    return found if sum(array.size for array in found) <= LARGEST else None


def _names(nodes: Any) -> set[str]:
    """All names that nodes take, those in graphs of their own included."""
    used = set[str]()
    for node in nodes:
        used |= set(node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                used |= _names(attribute.g.node) | {output.name for output in attribute.g.output}
    return used
