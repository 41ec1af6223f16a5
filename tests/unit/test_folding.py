"""Constant folding for compilers that do little of it themselves: the same answers from fewer nodes."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from pareflow.compiler.workers import folding


def model(nodes: list[onnx.NodeProto], output: int = TensorProto.FLOAT) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 16])],
        [helper.make_tensor_value_info("y", output, None)],
        [
            numpy_helper.from_array(np.asarray(1), "one"),
            numpy_helper.from_array(np.asarray(0.5, np.float32), "half"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def answer(made: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(None, {"x": x})[0]
    return found


def test_scale_by_the_root_of_a_known_size_becomes_a_constant() -> None:
    """As attention is exported: x / sqrt(16), of an input whose batch is open. By hand: ones become 0.25."""
    made = model(
        [
            helper.make_node("Shape", ["x"], ["shape"]),
            helper.make_node("Gather", ["shape", "one"], ["size"]),
            helper.make_node("Cast", ["size"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Pow", ["float", "half"], ["root"]),
            helper.make_node("Div", ["x", "root"], ["y"]),
        ]
    )
    folded = folding.fold(made)
    assert [node.op_type for node in folded.graph.node] == ["Div"]
    assert np.array_equal(answer(folded, np.ones((3, 16), np.float32)), np.full((3, 16), 0.25, np.float32))


def test_open_size_stays_a_question() -> None:
    made = model([helper.make_node("Shape", ["x"], ["y"])], TensorProto.INT64)
    folded = folding.fold(made)
    assert [node.op_type for node in folded.graph.node] == ["Shape"]
    assert answer(folded, np.ones((3, 16), np.float32)).tolist() == [3, 16]


def test_weights_of_bytes_stay_bytes() -> None:
    made = model(
        [
            helper.make_node("DequantizeLinear", ["w", "half"], ["float"]),
            helper.make_node("Mul", ["x", "float"], ["y"]),
        ]
    )
    made.graph.initializer.append(numpy_helper.from_array(np.arange(16, dtype=np.int8), "w"))
    folded = folding.fold(made)
    assert [node.op_type for node in folded.graph.node] == ["DequantizeLinear", "Mul"]
    assert answer(folded, np.ones((1, 16), np.float32)).tolist() == [(np.arange(16) / 2).tolist()]


def test_much_made_of_little_stays_a_node() -> None:
    size = numpy_helper.from_array(np.asarray([folding.LARGEST + 1]), "size")
    made = model(
        [
            helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
            helper.make_node("ReduceMax", ["zeros"], ["most"], keepdims=0),
            helper.make_node("Add", ["x", "most"], ["y"]),
        ]
    )
    made.graph.initializer.append(size)
    assert "ConstantOfShape" in {node.op_type for node in folding.fold(made).graph.node}


def test_names_that_only_graphs_within_use_are_kept() -> None:
    then = helper.make_graph(
        [helper.make_node("Mul", ["x", "half"], ["a"])],
        "then",
        [],
        [helper.make_empty_tensor_value_info("a")],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["b"])], "else", [], [helper.make_empty_tensor_value_info("b")]
    )
    nodes = [helper.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=other)]
    made = model(nodes)
    made.graph.initializer.append(numpy_helper.from_array(np.asarray(True), "yes"))
    folded = folding.fold(made)
    assert {tensor.name for tensor in folded.graph.initializer} == {"half", "yes"}
    assert np.array_equal(answer(folded, np.ones((1, 16), np.float32)), np.full((1, 16), 0.5, np.float32))
