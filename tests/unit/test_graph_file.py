"""Files that are no usable ONNX: each told by its name, what is wrong in it, and the way out."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from pareflow import graph_file
from pareflow.errors import WorkloadError

MATRIX = np.arange(16, dtype=np.float32).reshape(4, 4)


def graph(operator: str = "MatMul", domain: str = "", opset: int = 17, ir: int = 8) -> onnx.ModelProto:
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 4]) for n in ("x", "y")]
    node = helper.make_node(operator, ["x", "matrix"], ["y"], name="product", domain=domain)
    weight = numpy_helper.from_array(MATRIX, "matrix")
    imports = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    made = helper.make_graph([node], "graph", ports[:1], ports[1:], [weight])
    return helper.make_model(made, opset_imports=imports, ir_version=ir)


def written(path: Path, content: bytes | onnx.ModelProto) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())


WHOLE = graph().SerializeToString()
FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (lambda path: None, "there is no such file"),
    "empty": (lambda path: written(path, b""), "it is empty. Export it again, or copy it again"),
    "text": (
        lambda path: written(path, b"a: b\n"),
        r"its 5 bytes, which begin with b'a: b\\n', are no whole",
    ),
    "truncated": (lambda path: written(path, WHOLE[:100]), "its 100 bytes, .* are no whole protobuf"),
    "another protobuf": (
        lambda path: written(path, numpy_helper.from_array(MATRIX).SerializeToString()),
        "(no whole protobuf|hold no graph)",
    ),
    "no graph": (lambda path: written(path, onnx.ModelProto(ir_version=8)), "hold no graph with outputs"),
    "torch": (lambda path: written(path, b"PK\x03\x04" + bytes(60)), "zip archive, .*torch.onnx.export"),
    "lite": (lambda path: written(path, b"\x1c\0\0\0TFL3" + bytes(60)), "TensorFlow Lite.*tf2onnx"),
    "keras": (lambda path: written(path, b"\x89HDF\r\n\x1a\n"), "HDF5 file, such as Keras"),
    "git lfs": (lambda path: written(path, b"version https://git-lfs"), "pointer of Git LFS. Fetch it"),
    "folder": (lambda path: path.mkdir(), "it is a folder. Name the .onnx file itself"),
    "custom operator": (
        lambda path: written(path, graph("MatMull", "my.own")),
        r"no operator my\.own:MatMull \(node `product`\). Nearest are MatMul",
    ),
    "unknown operator": (
        lambda path: written(path, graph("Foo")),
        r"no operator Foo \(node `product`\)",
    ),
    "later operator": (
        lambda path: written(path, graph("Gelu")),
        r"Gelu \(node `product`\) came with opset 20, and the file says 17. Export it with opset 20 or later",
    ),
    "later opset": (
        lambda path: written(path, graph(opset=99)),
        rf"it is of opset 99, and the newest that ONNX Runtime {onnxruntime.__version__} knows is \d+\. Exp",
    ),
    "later format": (
        lambda path: written(path, graph(ir=99)),
        rf"its IR version is 99, and the newest that ONNX Runtime {onnxruntime.__version__} knows is \d+",
    ),
    "loose end": (
        lambda path: written(path, WHOLE.replace(b"matrix", b"matrox", 1)),
        r"Node \(product\).*input 'matrox' is not a graph input|input 'matrox' is not a graph input",
    ),
}


@pytest.mark.parametrize(("make", "said"), FILES.values(), ids=list(FILES))
def test_file_that_cannot_be_used_is_told(make: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    make(path)
    with pytest.raises(WorkloadError, match=said) as caught:
        graph_file.check_runnable(path)
    assert str(caught.value).startswith(f"{path} must be an ONNX file that ONNX Runtime can run, but ")
    assert "\n" not in str(caught.value)


def test_folder_says_what_lies_in_it(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").touch()
    with pytest.raises(WorkloadError, match=r"Name a file in it: a\.onnx"):
        graph_file.read(tmp_path)
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(WorkloadError, match=r"tf2onnx\.convert --saved-model"):
        graph_file.read(tmp_path)


def test_file_larger_than_a_protobuf_is_told_unread(tmp_path: Path) -> None:
    """It is sparse: nothing is written, nor read."""
    with (tmp_path / "model.onnx").open("wb") as file:
        file.truncate(2**31 + 2**30)
    with pytest.raises(WorkloadError, match=r"it has 3\.0 GiB, .* at most 2\..*external_data"):
        graph_file.read(tmp_path / "model.onnx")


@settings(max_examples=60)
@given(end=st.integers(0, len(WHOLE) - 1))
def test_no_truncation_passes(end: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "truncated.onnx"
    path.write_bytes(WHOLE[:end])
    with pytest.raises(WorkloadError):
        graph_file.check_runnable(path)


@settings(max_examples=60)
@given(position=st.integers(0, len(WHOLE) - 1), value=st.integers(0, 255))
def test_damaged_byte_is_told_or_harmless(
    position: int, value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(WHOLE[:position] + bytes([value]) + WHOLE[position + 1 :])
    try:
        graph_file.check_runnable(path)
    except WorkloadError as error:
        assert str(path) in str(error)  # noqa: PT017 (it may pass, where a weight or a name changed)


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """A model whose weights lie in a file beside it."""
    path = tmp_path / "model.onnx"
    onnx.save_model(graph(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_weights_beside_the_file_are_read(beside: Path) -> None:
    (weight,) = graph_file.read(beside).graph.initializer
    assert np.array_equal(numpy_helper.to_array(weight), MATRIX)
    assert graph_file.external_files(beside) == [beside.with_name("weights.bin")]
    graph_file.check_runnable(beside)


def test_sparse_weights_are_read(tmp_path: Path) -> None:
    """Of a matrix of zeros and two numbers, which is an input too."""
    model = graph()
    values = numpy_helper.from_array(np.asarray([2, 3], np.float32), "matrix")
    places = numpy_helper.from_array(np.asarray([0, 5], np.int64), "places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [4, 4]))
    del model.graph.initializer[:]
    model.graph.input.append(helper.make_tensor_value_info("matrix", TensorProto.FLOAT, [4, 4]))
    written(tmp_path / "model.onnx", model)
    read = graph_file.read(tmp_path / "model.onnx")
    assert [port.name for port in graph_file.ports(read).ports] == ["x"]
    assert [weight.values.name for weight in read.graph.sparse_initializer] == ["matrix"]


@pytest.mark.parametrize("verb", [graph_file.read, graph_file.check_runnable, graph_file.external_files])
def test_weights_that_are_not_beside_the_file_are_told(beside: Path, verb: Callable[[Path], object]) -> None:
    weights = beside.with_name("weights.bin")
    weights.write_bytes(weights.read_bytes()[:40])
    said = r"weight `matrix` of MatMul \(node `product`\) should end at byte 64 of weights\.bin, which has 40"
    with pytest.raises(WorkloadError, match=said):
        verb(beside)
    weights.unlink()
    with pytest.raises(WorkloadError, match=r"should lie in 'weights\.bin' beside it, and is not there"):
        verb(beside)


def test_weights_elsewhere_on_this_machine_are_not_read(tmp_path: Path, beside: Path) -> None:
    """A file from a stranger may name any path."""
    model = onnx.load_model(beside, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../secret"
    (tmp_path / "inner").mkdir()
    (tmp_path / "secret").write_bytes(bytes(64))
    onnx.save_model(model, tmp_path / "inner" / "model.onnx")
    with pytest.raises(WorkloadError, match=r"should lie in '\.\./secret' beside it, and is not"):
        graph_file.read(tmp_path / "inner" / "model.onnx")


def test_weights_of_a_branch_that_are_not_beside_the_file_are_told(tmp_path: Path) -> None:
    told, answer, inner = (
        helper.make_tensor_value_info(name, kind, [])
        for name, kind in (("c", TensorProto.BOOL), ("y", TensorProto.FLOAT), ("z", TensorProto.FLOAT))
    )
    weight = numpy_helper.from_array(np.asarray(2, np.float32), "deep")
    onnx.external_data_helper.set_external_data(weight, "weights.bin")
    reads = helper.make_node("Identity", ["deep"], ["z"], name="reads")
    branch = helper.make_graph([reads], "branch", [], [inner], [weight])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    made = helper.make_model(helper.make_graph([node], "graph", [told], [answer]), ir_version=8)
    written(tmp_path / "model.onnx", made)
    with pytest.raises(WorkloadError, match=r"weight `deep` of Identity \(node `reads`\) should lie in"):
        graph_file.check_runnable(tmp_path / "model.onnx")


def test_functions_of_the_file_itself_are_operators() -> None:
    """Exporters of torch write such: a custom operator that the file defines is none that is missing."""
    model = graph("Twice", "my.own")
    body = [
        helper.make_node("MatMul", ["a", "b"], ["once"]),
        helper.make_node("Add", ["once", "once"], ["c"]),
    ]
    opset = [helper.make_opsetid("", 17)]
    model.functions.append(helper.make_function("my.own", "Twice", ["a", "b"], ["c"], body, opset))
    graph_file.check_operators(Path("model.onnx"), model)


def test_quantized_is_told_in_subgraphs_too() -> None:
    inner = helper.make_graph([helper.make_node("QLinearConv", [], ["q"], name="deep")], "inner", [], [])
    model = graph()
    model.graph.node.append(helper.make_node("If", ["y"], ["z"], then_branch=inner, else_branch=inner))
    found = graph_file.quantized(model.graph)
    assert found is not None
    assert graph_file.called(found) == "QLinearConv (node `deep`)"


def test_weights_that_are_unpacked_first_compute_in_float() -> None:
    """TensorFlow Lite's converters store weights so; activations in steps are another matter."""
    model = graph()
    model.graph.node.insert(
        0, helper.make_node("DequantizeLinear", ["w", "scale"], ["floats"], name="weights")
    )
    model.graph.initializer.append(helper.make_tensor("w", onnx.TensorProto.INT8, [1], [3]))
    assert graph_file.quantized(model.graph) is None
    model.graph.node.append(
        helper.make_node("DequantizeLinear", ["steps", "scale"], ["x"], name="activations")
    )
    found = graph_file.quantized(model.graph)
    assert found is not None
    assert found.name == "activations"
