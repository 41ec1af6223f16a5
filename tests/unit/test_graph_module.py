"""ONNX graphs in torch: each operator against ONNX Runtime, eagerly and exported with an open batch."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pareflow import exported, network
from pareflow.errors import ExportError
from pareflow.graph_module import GraphModule
from pareflow.graph_operators import OF_SIZES, OPERATORS
from pareflow.network import Form
from pareflow.workload import Arrays, LoadedWorkload

Load = Callable[[str], LoadedWorkload]
Forms = Callable[[str], Mapping[Form, Path]]
Constants = Sequence[Any]

RANDOM = np.random.default_rng(7)
ROWS = RANDOM.normal(size=(4, 6)).astype(np.float32)
IMAGES = RANDOM.normal(size=(4, 6, 9, 8)).astype(np.float32)
WHOLE = RANDOM.integers(-5, 6, size=(4, 6))


def normal(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def integers(*values: int) -> np.ndarray:
    return np.asarray(values, np.int64)


BYTES = RANDOM.integers(-128, 128, size=(6, 5)).astype(np.int8)
FIVE_ZEROS = np.asarray([0, 1, 2, 3, -4], np.int8)
UNARY = [
    "Abs",
    "Ceil",
    "Cos",
    "Dropout",
    "Elu",
    "Erf",
    "Exp",
    "Flatten",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsNaN",
    "LeakyRelu",
    "LogSoftmax",
    "Mish",
    "Neg",
    "Reciprocal",
    "Relu",
    "Round",
    "Sigmoid",
    "Sign",
    "Sin",
    "Softmax",
    "Softplus",
    "Softsign",
    "Tanh",
]
BINARY = [
    "Add",
    "Div",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mul",
    "PRelu",
    "Sub",
    "Sum",
]
REDUCTIONS = [name for name in OPERATORS if name.startswith("Reduce")]

CASES: list[tuple[str, dict[str, Any], np.ndarray, Constants]] = [
    *((name, {}, ROWS, ()) for name in UNARY),
    *((name, {}, np.abs(ROWS) + 0.1, ()) for name in ("Log", "Sqrt")),
    *((name, {}, ROWS, (normal(6),)) for name in BINARY),
    *((name, {}, ROWS > 0, (normal(6) > 0,)) for name in ("And", "Or", "Xor")),
    ("Not", {}, ROWS > 0, ()),
    ("Equal", {}, WHOLE, (integers(1, 2, 3, 4, 5, -5),)),
    ("Div", {}, WHOLE, (integers(2, -2, 3, 3, 4, 2),)),
    ("Pow", {}, np.abs(ROWS), (np.asarray(1.5, np.float32),)),
    ("Clip", {}, ROWS, (np.float32(-0.5), np.float32(0.5))),
    ("Clip", {}, ROWS, (None, np.float32(0.5))),
    ("Clip", {}, ROWS, ()),
    ("Gelu", {"approximate": "tanh"}, ROWS, ()),
    ("Cast", {"to": TensorProto.INT32}, ROWS, ()),
    ("Where", {}, ROWS > 0, (normal(6), normal(6))),
    ("MatMul", {}, ROWS, (normal(6, 5),)),
    ("Gemm", {"transB": 1}, ROWS, (normal(5, 6), normal(5))),
    ("Gemm", {"alpha": 0.5, "beta": 2.0}, ROWS, (normal(6, 5), normal(5))),
    ("Einsum", {"equation": "bi,ij->bj"}, ROWS, (normal(6, 5),)),
    ("Conv", {"strides": [2, 1], "pads": [1, 0, 2, 1]}, IMAGES, (normal(4, 6, 3, 3), normal(4))),
    ("Conv", {"group": 6, "dilations": [2, 2]}, IMAGES, (normal(6, 1, 3, 3),)),
    ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, IMAGES, (normal(4, 6, 4, 3),)),
    ("Conv", {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, IMAGES, (normal(4, 6, 4, 3),)),
    ("Conv", {"auto_pad": "VALID"}, IMAGES, (normal(4, 6, 3, 2),)),
    ("Conv", {}, IMAGES[..., 0], (normal(4, 6, 3),)),
    ("ConvTranspose", {"strides": [2, 2], "pads": [1, 1, 1, 1]}, IMAGES, (normal(6, 3, 3, 3), normal(3))),
    ("MaxPool", {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 0, 1]}, IMAGES, ()),
    ("MaxPool", {"kernel_shape": [2, 2], "ceil_mode": 1, "strides": [2, 2]}, IMAGES, ()),
    ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, IMAGES, ()),
    ("AveragePool", {"kernel_shape": [3, 2], "pads": [1, 0, 0, 1], "count_include_pad": 1}, IMAGES, ()),
    ("GlobalAveragePool", {}, IMAGES, ()),
    ("GlobalMaxPool", {}, IMAGES, ()),
    ("BatchNormalization", {}, IMAGES, (normal(6), normal(6), normal(6), np.abs(normal(6)) + 0.1)),
    ("InstanceNormalization", {}, IMAGES, (normal(6), normal(6))),
    ("LayerNormalization", {"axis": -1}, ROWS, (normal(6), normal(6))),
    *((name, {}, IMAGES, (integers(1, -1),)) for name in REDUCTIONS),
    ("ReduceMean", {"keepdims": 0}, IMAGES, (integers(2),)),
    ("ReduceSum", {"noop_with_empty_axes": 1}, ROWS, ()),
    ("ArgMax", {"axis": -1, "keepdims": 0}, ROWS, ()),
    ("CumSum", {}, ROWS, (np.asarray(1),)),
    ("Reshape", {}, IMAGES, (integers(0, -1, 8),)),
    ("Flatten", {"axis": 2}, IMAGES, ()),
    ("Transpose", {"perm": [0, 2, 3, 1]}, IMAGES, ()),
    ("Squeeze", {}, IMAGES[:, :1], (integers(1),)),
    ("Unsqueeze", {}, ROWS, (integers(1, -1),)),
    ("Concat", {"axis": 1}, ROWS, ()),
    ("Split", {"axis": 1}, ROWS, (integers(2, 4),)),
    ("Slice", {}, IMAGES, (integers(1, -5), integers(2**62, -1), integers(1, 2), integers(2, 1))),
    ("Slice", {}, IMAGES[:1], (integers(0), integers(1))),
    ("Gather", {"axis": 1}, ROWS, (integers(5, -1, 0),)),
    ("Gather", {"axis": 1}, ROWS, (np.asarray(-2),)),
    ("GatherElements", {"axis": 1}, ROWS[:1], (integers(1, -1, 0).reshape(1, 3),)),
    ("Expand", {}, ROWS[:, :1], (integers(1, 5),)),
    ("Tile", {}, ROWS, (integers(1, 3),)),
    ("Pad", {}, ROWS, (integers(0, 1, 0, 2), np.float32(7))),
    ("Pad", {}, ROWS, (integers(1, 2), None, integers(1))),
    ("Pad", {"mode": "reflect"}, IMAGES, (integers(0, 0, 1, 2, 0, 0, 2, 1),)),
    ("Pad", {"mode": "edge"}, IMAGES, (integers(0, 0, 1, 2, 0, 0, 2, 1),)),
    ("Trilu", {"upper": 0}, IMAGES, (np.asarray(1),)),
    (
        "Resize",
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        IMAGES,
        (None, np.asarray([1, 1, 2, 2], np.float32)),
    ),
    ("Resize", {"mode": "linear"}, IMAGES, (None, np.asarray([1, 1, 2, 2], np.float32))),
    ("QuantizeLinear", {}, ROWS, (np.float32(0.02), np.uint8(100))),
    ("QuantizeLinear", {}, ROWS, (np.float32(0.02),)),
    ("QuantizeLinear", {"axis": 1}, ROWS[:, :5], (np.abs(normal(5)) + 0.01, FIVE_ZEROS)),
    ("DequantizeLinear", {"axis": -1}, BYTES, (np.abs(normal(5)) + 0.01, FIVE_ZEROS)),
    ("DequantizeLinear", {}, BYTES, (np.float32(0.5),)),
    ("Shape", {"start": 1}, IMAGES, ()),
    ("Size", {}, ROWS[:1], ()),
]


def single(
    name: str, attributes: Mapping[str, Any], given: np.ndarray, constants: Constants
) -> onnx.ModelProto:
    """A graph of one node, its first input open, the others constants."""
    stored = [
        numpy_helper.from_array(np.asarray(c), f"c{i}") for i, c in enumerate(constants) if c is not None
    ]
    inputs = ["x", *("" if c is None else f"c{i}" for i, c in enumerate(constants))]
    outputs = ["y", "z"] if name == "Split" else ["y"]
    node = helper.make_node(name, inputs, outputs, name="the_one", **attributes)
    return modelled([node], given, stored, outputs)


def modelled(
    nodes: Sequence[onnx.NodeProto],
    given: np.ndarray,
    stored: Sequence[onnx.TensorProto] = (),
    outputs: Sequence[str] = ("y",),
    opset: int = 22,
) -> onnx.ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(given.dtype)
    x = helper.make_tensor_value_info("x", kind, ["batch", *given.shape[1:]])
    graph = helper.make_graph(nodes, "one", [x], [onnx.ValueInfoProto(name=name) for name in outputs], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def expected(model: onnx.ModelProto, given: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    answers: list[np.ndarray] = session.run(None, {"x": given})
    return answers


def exported_answers(model: onnx.ModelProto, given: np.ndarray) -> list[np.ndarray]:
    """Of the program that was exported at a batch of 2, asked with the batch of `given`."""
    batch = torch.export.Dim.DYNAMIC(min=1, max=64) if len(given) > 1 else None
    example = torch.from_numpy(given[:2].copy())
    program = torch.export.export(
        GraphModule(model, ["x"]), (example,), dynamic_shapes={"inputs": ({0: batch},)}
    )
    answers = program.module()(torch.from_numpy(given.copy()))
    return [answer.numpy() for answer in answers.values()]


@pytest.mark.parametrize(("name", "attributes", "given", "constants"), CASES)
def test_operator_gives_what_it_gives_in_onnxruntime(
    name: str, attributes: Mapping[str, Any], given: np.ndarray, constants: Constants
) -> None:
    model = single(name, attributes, given, constants)
    for ours, theirs in zip(exported_answers(model, given), expected(model, given), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5)


def test_every_operator_has_its_case() -> None:
    shown = {"ConstantOfShape", "Range"}  # in the tests of open sizes, below
    assert OPERATORS.keys() - {name for name, *_ in CASES} == shown


def node(name: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(name, inputs.split(), [output], **attributes)


def test_sizes_of_an_open_batch_are_computed_on(tmp_path: Path) -> None:
    """As exporters write it: x of (b, 6) becomes (b, 2, 3), masked by positions, its rows counted."""
    constants = {"zero": integers(0), "two": integers(2), "three": integers(3), "first": np.asarray(0)}
    constants |= {
        "whole": integers(-1, 2, 3),
        "minus": integers(-1),
        "one": np.asarray(1),
        "end": integers(3),
    }
    minus = numpy_helper.from_array(integers(1), "value")
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape first", "count", axis=0),
        node("Unsqueeze", "count zero", "counts"),
        node("Concat", "counts two three", "wanted", axis=0),
        node("Shape", "wanted", "rank"),
        node("ConstantOfShape", "rank", "ones", value=minus),
        node("Mul", "ones minus", "open"),
        node("Equal", "wanted open", "same"),
        node("Where", "same ones wanted", "final"),
        node("Reshape", "x final", "cut"),
        node("Sub", "count one", "last"),
        node("Add", "last one", "limit"),
        node("Range", "first limit one", "positions"),
        node("Cast", "positions", "floats", to=TensorProto.FLOAT),
        node("Slice", "wanted zero minus", "two_sizes"),
        node("ReduceProd", "two_sizes", "product", keepdims=1),
        node("Div", "product two", "halved"),
        node("Squeeze", "halved zero", "scalar"),
        node("Reshape", "scalar minus", "column"),
        node("ConstantOfShape", "column", "nothing"),
        node("Identity", "floats", "kept"),
        node("Add", "kept nothing", "counted"),
        node("Unsqueeze", "counted two_axes", "deep"),
        node("Mul", "cut deep", "y"),
    ]
    constants["two_axes"] = integers(1, 2)
    stored = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    given = normal(5, 6)
    model = modelled(nodes, given, stored, opset=17)
    (answer,) = exported_answers(model, given)
    np.testing.assert_allclose(answer, expected(model, given)[0], rtol=1e-6)
    np.testing.assert_allclose(answer, given.reshape(5, 2, 3) * np.arange(5).reshape(5, 1, 1), rtol=1e-6)


def test_what_depends_on_constants_alone_is_computed_once() -> None:
    """-2 × 3 + 7 = 1, and one operator is left."""
    two, three, seven = (
        numpy_helper.from_array(np.asarray([v], np.float32), n) for n, v in (("a", -2), ("b", 3), ("c", 7))
    )
    nodes = [node("Mul", "a b", "ab"), node("Add", "ab c", "one"), node("Mul", "x one", "y")]
    module = GraphModule(modelled(nodes, ROWS, [two, three, seven]), ["x"])
    assert [parameter.item() for parameter in module.parameters()] == [1.0]
    np.testing.assert_array_equal(module(torch.from_numpy(ROWS))["y"].numpy(), ROWS)


def test_older_graph_is_raised() -> None:
    """In opset 11 axes are attributes."""
    nodes = [node("Unsqueeze", "x", "deep", axes=[1]), node("Squeeze", "deep", "y", axes=[1])]
    model = modelled(nodes, ROWS, opset=11)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 6]))
    np.testing.assert_array_equal(GraphModule(model, ["x"])(torch.from_numpy(ROWS))["y"].numpy(), ROWS)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            single("Det", {}, IMAGES[:, :, :6, :6], ()),
            r"Det \(node `the_one`\) does not: there is none for it",
        ),
        (single("NonZero", {}, ROWS, ()), r"NonZero \(node `the_one`\) does not"),
        (
            modelled([helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")], ROWS),
            r"com\.microsoft:Gelu \(the node that gives `y`\) does not",
        ),
        (
            single("AveragePool", {"kernel_shape": [2, 2], "pads": [1, 0, 0, 1]}, IMAGES, ()),
            r"AveragePool \(node `the_one`\) does not: NotImplementedError: its padding must be the same",
        ),
        (
            single("Softmax", {"temperature": 2}, ROWS, ()),
            r"Softmax \(node `the_one`\) does not: TypeError: .*temperature",
        ),
        (
            modelled(
                [node("Cast", "x", "sizes", to=TensorProto.INT64), node("Reshape", "x sizes", "y")], ROWS
            ),
            r"Reshape .* does not: ValueError: `sizes` must be known before the network runs",
        ),
    ],
)
def test_operator_that_lacks_is_named_with_its_node(made: onnx.ModelProto, said: str) -> None:
    size = [d.dim_value or 4 for d in made.graph.input[0].type.tensor_type.shape.dim]
    with pytest.raises(ExportError, match=said):
        GraphModule(made, ["x"])(torch.zeros(size))


@pytest.mark.parametrize("name", ["images", "texts"])
def test_graph_becomes_a_program(name: str, forms: Forms, load_tiny: Load, tmp_path: Path) -> None:
    """A convolutional network and a transformer, as torch's own exporter wrote them; any batch."""
    workload = load_tiny(name)
    network.convert(forms(name)["onnx"], "exported", workload, tmp_path)
    assert network.form_of(tmp_path) == "exported"
    program = exported.runner(network.load("exported", tmp_path))
    source = network.graph_runner(forms(name)["onnx"] / "model.onnx")
    for batch_size in (1, 5, 17):
        feeds: Arrays = workload.example(batch_size)
        assert program(feeds).keys() == source(feeds).keys()
        for output, answer in program(feeds).items():
            np.testing.assert_allclose(answer, source(feeds)[output], rtol=1e-4, atol=1e-5)


def test_wrong_program_is_found_out(
    forms: Forms, load_tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pareflow.graph_operators import Operator

    monkeypatch.setitem(OPERATORS, "Relu", Operator(torch.tanh))
    with pytest.raises(ExportError, match=r"exported program must agree with its source.*`output`"):
        network.convert(forms("images")["onnx"], "exported", load_tiny("images"), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_sizes_have_only_operators_that_tensors_have_too() -> None:
    """So that what is no size goes on as a tensor."""
    assert OF_SIZES.keys() < OPERATORS.keys()
