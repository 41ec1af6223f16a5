"""Graphs of more weights than a protobuf holds: what is made of them, and what is told of them."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import EncodeError
from onnx import TensorProto, helper, numpy_helper

from pareflow import graph_file, large_graphs, network
from pareflow.compiler import OnnxRuntime
from pareflow.errors import UnsuitableError
from pareflow.measuring.graph_report import graph_report
from pareflow.model import DynamicInt8, Fp8, Fp16, MixedInt8, StaticInt8, Technique
from pareflow.workload import LoadedWorkload

Load = Callable[[str], LoadedWorkload]
HELD = 2**15
"""Bytes that a protobuf holds here."""
WEIGHTS = {
    "first": np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32) / 8,
    "second": np.random.default_rng(1).normal(size=(256, 4)).astype(np.float32) / 16,
}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> onnx.ModelProto:
    """A network over the tiny images whose weights take more than a protobuf holds; half of them do not."""
    monkeypatch.setattr(large_graphs, "LARGE_BYTES", HELD // 2)
    serialize: Any = onnx.ModelProto.SerializeToString

    def refusing(model: onnx.ModelProto, **options: Any) -> bytes:
        content: bytes = serialize(model, **options)
        if len(content) > HELD:
            raise EncodeError(f"{len(content)} bytes exceed what a protobuf holds")
        return content

    monkeypatch.setattr(onnx.ModelProto, "SerializeToString", refusing)
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "first"], ["hidden"]),
        helper.make_node("Relu", ["hidden"], ["active"]),
        helper.make_node("MatMul", ["active", "second"], ["output"]),
    ]
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 8, 8])]
    outputs = [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 4])]
    weights = [numpy_helper.from_array(array, name) for name, array in WEIGHTS.items()]
    graph = helper.make_graph(nodes, "large", inputs, outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(EncodeError):
        model.SerializeToString()
    return model


def expected(images: np.ndarray) -> np.ndarray:
    hidden = images.reshape(len(images), -1) @ WEIGHTS["first"]
    return np.asarray(np.maximum(hidden, 0) @ WEIGHTS["second"])


@pytest.mark.parametrize(
    "technique",
    [StaticInt8(), StaticInt8(method="entropy"), DynamicInt8(), Fp16(), MixedInt8(max_drop=1)],
    ids=lambda technique: str(technique.step.label),
)
def test_a_large_graph_is_quantized(
    large: onnx.ModelProto, technique: Technique, load_tiny: Load, tmp_path: Path
) -> None:
    """It stays as it was, and what is made of it answers as it does."""
    workload, given = load_tiny("images"), copy.deepcopy(large)
    made = technique.apply(large, workload)
    network.save(made, "onnx", tmp_path)
    images = workload.example(8)["images"]
    found = network.runner(tmp_path)({"images": images})["output"]
    answer = expected(images)
    assert np.abs(found - answer).max() < 0.1 * np.abs(answer).max()
    assert [weight.raw_data for weight in large.graph.initializer] == [
        weight.raw_data for weight in given.graph.initializer
    ]


def test_the_report_of_a_large_graph_counts_its_nodes_and_activations(
    large: onnx.ModelProto, tmp_path: Path
) -> None:
    """Of four images: 4 × 64 numbers twice, 4 × 256 twice, and 4 × 4."""
    network.save(large, "onnx", tmp_path)
    report = graph_report(tmp_path, OnnxRuntime(), {"images": np.zeros((4, 1, 8, 8), np.float32)})
    assert report.before == {"Flatten": 1, "MatMul": 2, "Relu": 1}
    assert report.before.total() >= report.after.total() > 0
    before, after = report.activations
    assert before.separate_bytes == 4 * 4 * (64 + 64 + 256 + 256 + 4)
    assert after.separate_bytes is not None


def test_a_large_graph_that_is_saved_optimized_runs_where_its_source_is_gone(
    large: onnx.ModelProto, load_tiny: Load, tmp_path: Path
) -> None:
    source, artifact, feeds = tmp_path / "source", tmp_path / "artifact", load_tiny("images").example(2)
    for folder in (source, artifact):
        folder.mkdir()
    network.save(large, "onnx", source)
    backend = OnnxRuntime(saved=True)
    backend.compile(source, artifact)
    for file in source.iterdir():
        file.unlink()
    found = backend.load(artifact).run(feeds)["output"]
    np.testing.assert_allclose(found, expected(feeds["images"]), rtol=1e-3, atol=1e-4)


def test_what_reads_one_protobuf_refuses_a_graph_that_is_too_large_for_it(
    large: onnx.ModelProto, load_tiny: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph_file, "LARGEST_BYTES", HELD)
    with pytest.raises(UnsuitableError, match=r"`fp8` takes graphs of 2 GiB at most"):
        Fp8().apply(large, load_tiny("images"))
