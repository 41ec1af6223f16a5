"""Quantization: what a number becomes, what is refused, and that nothing else of the network changes."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn.utils import parametrize

from pareflow import network
from pareflow.catalog import TECHNIQUES, find
from pareflow.compiler import OnnxRuntime
from pareflow.errors import SpecError, UnsuitableError
from pareflow.model import (
    Bf16,
    Binary,
    DynamicInt8,
    Fp8,
    Int4,
    MixedInt8,
    NncfInt4,
    NncfInt8,
    QatInt8,
    StaticInt8,
)
from pareflow.model.quantization.binary_weight import BinaryWeight
from pareflow.model.quantization.gemm import gemm_as_matmul
from pareflow.model.quantization.int32_bias import biases_as_int32
from pareflow.model.training import Batch
from pareflow.network import Form
from pareflow.variant import Step
from pareflow.workload import SPLITS, Arrays, LoadedWorkload, Samples, Split, Splits

Load = Callable[[str], LoadedWorkload]
Forms = Callable[[str], Mapping[Form, Path]]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def f32(values: Any) -> np.ndarray:
    return np.asarray(values, np.float32)


def i8(values: Any) -> np.ndarray:
    return np.asarray(values, np.int8)


def graph_of(forms: Forms, name: str) -> onnx.ModelProto:
    return onnx.load_model(forms(name)["onnx"] / "model.onnx")


def model(nodes: Sequence[onnx.NodeProto], outputs: int, **constants: Any) -> onnx.ModelProto:
    """Rows of floats `x` to rows of `outputs` floats `y`."""
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name, size in (("x", None), ("y", outputs))
    ]
    graph = helper.make_graph(nodes, "test", ports[:1], ports[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(graph: onnx.ModelProto, feeds: Arrays) -> np.ndarray:
    opened = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    taken = {node.name for node in opened.get_inputs()}
    answer: np.ndarray = opened.run(None, {name: array for name, array in feeds.items() if name in taken})[0]
    return answer


def right(graph: onnx.ModelProto, workload: LoadedWorkload) -> float:
    """The share of right answers on the search split."""
    split = workload.split("search")
    answers = run(graph, workload.definition.preprocess(split.samples))
    return float(np.mean(workload.definition.postprocess({"output": answers}) == split.labels()))


def fused(graph: onnx.ModelProto, folder: Path) -> Counter[str]:
    """The operators that ONNX Runtime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "fused.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load_model(folder / "fused.onnx").graph.node)


def kinds(graph: onnx.ModelProto) -> dict[str, int]:
    return {weight.name: weight.data_type for weight in graph.graph.initializer}


def with_calibration(workload: LoadedWorkload, samples: np.ndarray) -> LoadedWorkload:
    targets = workload.splits.calibration.labels()[: len(samples)]
    return replace(workload, splits=replace(workload.splits, calibration=Split(samples, targets)))


# bf16


def test_bf16_keeps_eight_bits_of_a_number() -> None:
    """1 + 2⁻⁸ lies between 1 and 1 + 2⁻⁷, and goes to the even one; 3.1415927 becomes 3.140625."""
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = model([product], 2, w=np.asarray([[1 + 2**-8, 3.1415927]], np.float32))
    narrow = Bf16().apply(graph, None)  # type: ignore[arg-type]  # it looks at no data
    assert run(narrow, {"x": np.ones((1, 1), np.float32)}).tolist() == [[1.0, 3.140625]]
    assert kinds(narrow) == {"w_bf16": TensorProto.BFLOAT16}


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=8))
@settings(max_examples=20)
def test_bf16_is_within_two_to_the_minus_eight(numbers: list[float]) -> None:
    graph = model([helper.make_node("MatMul", ["x", "w"], ["y"])], len(numbers), w=f32([numbers]))
    given_back = run(Bf16().apply(graph, None), {"x": np.ones((1, 1), np.float32)})  # type: ignore[arg-type]
    assert np.all(np.abs(given_back - f32([numbers])) <= 2**-8 * np.abs(f32([numbers])) + 1e-38)


def test_bf16_halves_the_weights_and_leaves_vectors_and_speed(forms: Forms, tmp_path: Path) -> None:
    """Runtimes cast once, at load: what runs is the fp32 graph."""
    graph = graph_of(forms, "images")
    narrow = Bf16().apply(graph, None)  # type: ignore[arg-type]
    assert set(kinds(narrow).values()) == {TensorProto.BFLOAT16, TensorProto.FLOAT}
    assert fused(narrow, tmp_path) == fused(graph, tmp_path)
    weights = sum(4 * np.prod(w.dims) for w in graph.graph.initializer if len(w.dims) > 1)
    assert graph.ByteSize() - narrow.ByteSize() == pytest.approx(weights / 2, rel=0.1)


def test_bf16_refuses_a_graph_without_weights() -> None:
    with pytest.raises(UnsuitableError, match="it holds none"):
        Bf16().apply(model([helper.make_node("Relu", ["x"], ["y"])], 1), None)  # type: ignore[arg-type]


# int4


def test_int4_of_sixteen_even_steps_is_exact() -> None:
    """0 to 15 are sixteen values: scale 1, offset 0. Products with single rows give them back."""
    weight = np.arange(16, dtype=np.float32)[:, None]
    graph = model([helper.make_node("Gemm", ["x", "w"], ["y"])], 1, w=weight)
    packed = Int4(block_size=16).apply(graph, None)  # type: ignore[arg-type]
    assert run(packed, {"x": np.eye(16, dtype=np.float32)}).ravel().tolist() == [*range(16)]


def test_int4_stores_half_a_byte_per_weight_and_a_scale_per_block() -> None:
    graph = model([helper.make_node("MatMul", ["x", "w"], ["y"])], 64, w=np.ones((128, 64), np.float32))
    packed = Int4(block_size=32, symmetric=True).apply(graph, None)  # type: ignore[arg-type]
    stored = {w.name: numpy_helper.to_array(w) for w in packed.graph.initializer}
    assert sum(array.nbytes for array in stored.values()) == 128 * 64 // 2 + 128 // 32 * 64 * 4


@pytest.mark.parametrize("method", ["rtn", "hqq"])
def test_int4_loses_at_most_a_step(method: Any) -> None:
    weight = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
    graph = model([helper.make_node("MatMul", ["x", "w"], ["y"])], 8, w=weight)
    packed = Int4(method=method, block_size=16).apply(graph, None)  # type: ignore[arg-type]
    lost = np.abs(run(packed, {"x": np.eye(64, dtype=np.float32)}) - weight)
    blocks = weight.reshape(4, 16, 8)
    step = (blocks.max(1) - blocks.min(1)) / 15
    assert (lost.reshape(4, 16, 8).max(1) <= 1.01 * step).all()


def test_int4_of_embeddings_too(forms: Forms, load_tiny: Load) -> None:
    packed = Int4(embeddings=True, block_size=16).apply(graph_of(forms, "texts"), load_tiny("texts"))
    assert {"MatMulNBits", "GatherBlockQuantized"} <= {node.op_type for node in packed.graph.node}
    assert right(packed, load_tiny("texts")) > 0.9


def test_int4_refuses_a_graph_without_products() -> None:
    with pytest.raises(UnsuitableError, match="it holds Relu"):
        Int4().apply(model([helper.make_node("Relu", ["x"], ["y"])], 1), None)  # type: ignore[arg-type]


def test_int4_settings_that_exclude_each_other_are_a_spec_error() -> None:
    with pytest.raises(SpecError, match="must be false where `method` is hqq"):
        find(TECHNIQUES, Step("int4", {"method": "hqq", "symmetric": True}), "technique")


@pytest.mark.parametrize("method", ["rtn", "awq", "gptq", "scale_estimation"])
def test_nncf_int4_stores_four_bits(forms: Forms, load_tiny: Load, method: Any) -> None:
    workload = load_tiny("texts")
    source = network.load("openvino", forms("texts")["openvino"])
    packed = NncfInt4(method=method, group_size=16).apply(source, workload)
    assert {"u4"} <= {node.get_element_type().to_string() for node in packed.get_ops()}


def test_gemm_is_a_product_and_a_sum() -> None:
    gemm = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    weight, bias = f32([[1, 2], [3, 4], [5, 6]]), f32([10, 20, 30])
    graph = model([gemm], 3, w=weight, b=bias)
    gemm_as_matmul(graph)
    assert [node.op_type for node in graph.graph.node] == ["MatMul", "Add"]
    assert run(graph, {"x": f32([[1, 1]])}).tolist() == [[13, 27, 41]]


def held_by_a_branch(nodes: Sequence[onnx.NodeProto], **constants: Any) -> onnx.ModelProto:
    """Two outputs `y` of these nodes; also `b`, a constant, and `z`, which only a branch makes of `w`."""
    graph = model(nodes, 2, yes=np.asarray(True), **constants)
    branch = helper.make_graph(
        [helper.make_node("Identity", ["w"], ["w_given"])],
        "branch",
        [],
        [helper.make_tensor_value_info("w_given", TensorProto.FLOAT, [2, 1])],
    )
    graph.graph.node.append(helper.make_node("If", ["yes"], ["z"], then_branch=branch, else_branch=branch))
    for name, sizes in (("z", [2, 1]), ("b", [2])):
        graph.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes))
    return graph


def test_weights_that_a_branch_or_an_output_reads_stay() -> None:
    gemm = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
    graph = held_by_a_branch([gemm], w=f32([[1], [2]]), b=f32([10, 20]), unread=f32([0]))
    gemm_as_matmul(graph)
    assert run(graph, {"x": f32([[1]])}).tolist() == [[11, 22]]
    assert "unread" not in kinds(graph)


# fp8


def test_fp8_keeps_three_bits_after_the_point(forms: Forms, load_tiny: Load) -> None:
    """Between 16 and 32 the numbers of E4M3 are 2 apart: 17.5 becomes 18. Weights take a byte."""
    assert float(f32(17.5).astype(ml_dtypes.float8_e4m3fn)) == 18
    for name in ("images", "texts"):
        workload = load_tiny(name)
        narrow = Fp8().apply(graph_of(forms, name), workload)
        assert TensorProto.FLOAT8E4M3FN in kinds(narrow).values()
        assert right(narrow, workload) > 0.9


def test_fp8_keeps_the_relu_that_onnx_runtime_would_drop(load_tiny: Load) -> None:
    """Of the rows -4 and 4, ReLU and a product with 1 leave 0 and 4, at full graph optimization too."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    graph = model(nodes, 1, w=f32([[1]]))
    rows = f32([[-4], [4]])
    narrow = Fp8().apply(graph, holding(rows, load_tiny))
    assert run(narrow, {"x": rows}).tolist() == [[0], [4]]


def test_fp8_keeps_a_weight_that_another_node_reads(load_tiny: Load) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Add", ["h", "w"], ["y"])]
    rows = f32([[-4], [4]])
    narrow = Fp8().apply(model(nodes, 1, w=f32([[1]])), holding(rows, load_tiny))
    assert run(narrow, {"x": rows}).tolist() == [[-3], [5]]


def holding(rows: np.ndarray, load_tiny: Load) -> LoadedWorkload:
    """The workload `images`, whose samples are these rows."""
    definition = load_tiny("images").definition
    base = type(definition)

    class Rows(base):  # type: ignore[misc,valid-type]
        def preprocess(self, samples: Samples) -> Arrays:
            return {"x": np.resize(rows, (len(samples), 1))}

    return replace(load_tiny("images"), definition=Rows())


def test_fp8_says_why_it_is_pointless_where_no_device_has_it() -> None:
    reason = Fp8().unfit()
    assert (reason is None) == (torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 9))
    assert reason is None or "fp8 units" in reason


# binary


def test_binary_weight_is_the_sign_times_the_mean_magnitude() -> None:
    weight = torch.tensor([[1.0, -3.0], [0.0, 0.5]])
    assert BinaryWeight(weight)(weight).tolist() == [[2.0, -2.0], [0.25, 0.25]]


def test_gradients_pass_the_sign_where_the_weight_is_within_one() -> None:
    """Of 2·(sign w₁ + sign w₂ + sign w₃): 2 each, but nothing beyond ±1; the scale's is the sum of signs."""
    weight = torch.tensor([[0.5, -0.5, 5.0]], requires_grad=True)
    made = BinaryWeight(weight)
    made(weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[2.0, 2.0, 0.0]]
    assert made.scale.grad is not None
    assert made.scale.grad.item() == 1


def test_binary_leaves_two_values_per_channel_between_float_ends(forms: Forms, load_tiny: Load) -> None:
    source = network.load("torch", forms("texts")["torch"])
    made = Binary(epochs=3).apply(source, load_tiny("texts"))
    counts = {
        name: max(len(row.unique()) for row in layer.weight.flatten(1))
        for name, layer in made.named_modules()
        if isinstance(layer, nn.Linear)
    }
    assert counts == {"query": 16, "key": 2, "value": 2, "head": 16}
    assert not any(parametrize.is_parametrized(layer) for layer in made.modules())


def test_binary_refuses_a_network_of_ends_only(forms: Forms, load_tiny: Load) -> None:
    with pytest.raises(UnsuitableError, match="a request meets 2 convolutions and linear layers"):
        Binary().apply(network.load("torch", forms("images")["torch"]), load_tiny("images"))


# int8, static and mixed


@pytest.mark.parametrize("technique", [StaticInt8, MixedInt8, Fp8])
def test_too_few_calibration_samples_are_refused(technique: Any, forms: Forms, load_tiny: Load) -> None:
    with pytest.raises(UnsuitableError, match=r"`calibration` must hold the 41 samples.*it holds 40"):
        technique(samples=41).apply(graph_of(forms, "images"), load_tiny("images"))


def test_too_few_calibration_samples_are_refused_by_nncf(forms: Forms, load_tiny: Load) -> None:
    source = network.load("openvino", forms("images")["openvino"])
    for technique in (NncfInt8(samples=41), NncfInt4(samples=41, method="awq")):
        with pytest.raises(UnsuitableError, match="it holds 40"):
            technique.apply(source, load_tiny("images"))


@pytest.mark.parametrize("technique", [StaticInt8(), StaticInt8(method="entropy"), MixedInt8(), Fp8()])
@pytest.mark.parametrize("value", [0, 0.5])
def test_constant_calibration_samples_are_refused(
    technique: Any, value: float, forms: Forms, load_tiny: Load
) -> None:
    same = with_calibration(load_tiny("images"), np.full((8, 8, 8), value, np.float32))
    with pytest.raises(UnsuitableError, match=rf"Conv` sees only {value:g} in `images`, in all of 8 samples"):
        technique.apply(graph_of(forms, "images"), same)


@pytest.mark.parametrize("technique", [NncfInt8(), NncfInt4(method="awq")])
def test_constant_calibration_samples_are_refused_by_nncf(
    technique: Any, forms: Forms, load_tiny: Load
) -> None:
    same = with_calibration(load_tiny("images"), np.full((8, 8, 8), 0.5, np.float32))
    with pytest.raises(UnsuitableError, match=r"`images` is 0\.5 in all of 8"):
        technique.apply(network.load("openvino", forms("images")["openvino"]), same)


@pytest.mark.parametrize("technique", [StaticInt8(), MixedInt8(), Fp8()])
def test_a_graph_without_layers_is_refused(technique: Any, load_tiny: Load) -> None:
    with pytest.raises(UnsuitableError, match=r"must hold one of Conv.*it holds Relu"):
        technique.apply(model([helper.make_node("Relu", ["x"], ["y"])], 1), load_tiny("images"))


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_texts_of_any_length_calibrate(
    method: Any, forms: Forms, load_tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each batch is as long as its longest text, and lengths vary from sample to sample."""
    workload = load_tiny("texts")
    base = type(workload.definition)

    class ToTheLongest(base):  # type: ignore[misc,valid-type]
        def preprocess(self, samples: Samples) -> Arrays:
            longest = max(map(len, samples))
            return {name: array[:, :longest] for name, array in super().preprocess(samples).items()}

        def dynamic_axes(self) -> dict[str, dict[int, str]]:
            return {name: {0: "batch", 1: "length"} for name in ("ids", "mask")} | {"output": {0: "batch"}}

    varying = replace(workload, definition=ToTheLongest())
    source = network.load("torch", forms("texts")["torch"])
    monkeypatch.chdir(tmp_path)
    network.export_onnx(source, varying, tmp_path / "varying.onnx")
    graph = StaticInt8(method=method).apply(onnx.load_model(tmp_path / "varying.onnx"), varying)
    for text in ("aab", "abcabcaaaaaa"):
        answer = run(graph, varying.definition.preprocess([text]))
        assert varying.definition.postprocess({"output": answer}).tolist() == [1]


def test_only_products_are_quantized_where_that_is_asked(
    forms: Forms, load_tiny: Load, tmp_path: Path
) -> None:
    others = {"QLinearAdd", "QLinearMul", "QLinearSoftmax"}
    for operators, expected in (("all", others), ("products", set())):
        technique = StaticInt8.from_settings({"operators": operators})
        ran = fused(technique.apply(graph_of(forms, "texts"), load_tiny("texts")), tmp_path)
        assert others & set(ran) == expected
        assert ran["QLinearMatMul"] == 5


class Outlier(nn.Module):
    """The tiny network with a channel that is always 0, and that the head multiplies by ten thousand."""

    def __init__(self, trained: Any, spike: float = 0) -> None:
        super().__init__()
        self.features, self.head = trained.features, trained.head
        with torch.no_grad():
            self.features[1].weight[0], self.features[1].bias[0] = 0, -1
            self.head.weight[:, :64] = 10_000
        self.spike = torch.zeros(1, 512)
        self.spike[0, 100], self.away = spike, torch.ones(1, 512)
        self.away[0, 100] = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.features(images).flatten(1)
        if self.spike.any():
            hidden = (hidden + self.spike) * self.away
        logits: torch.Tensor = self.head(hidden)
        return logits


def outlier(forms: Forms, workload: LoadedWorkload, folder: Path, spike: float = 0) -> onnx.ModelProto:
    module = Outlier(network.load("torch", forms("images")["torch"]), spike)
    network.export_onnx(module.eval(), workload, folder / "outlier.onnx")
    return onnx.load_model(folder / "outlier.onnx")


def test_mixed_int8_reverts_the_layer_that_loses_answers_and_no_other(
    forms: Forms, load_tiny: Load, tmp_path: Path
) -> None:
    """With one scale for the head's whole weight, all of it but the outlier becomes 0."""
    workload = load_tiny("images")
    graph = outlier(forms, workload, tmp_path)
    plain = StaticInt8(per_channel=False).apply(graph, workload)
    mixed = MixedInt8(per_channel=False, max_drop=0.02).apply(graph, workload)
    assert right(plain, workload) < 0.8
    assert right(mixed, workload) >= right(graph, workload) - 0.02
    assert fused(mixed, tmp_path)["QLinearConv"] == 1
    assert fused(mixed, tmp_path)["QGemm"] == 0


def test_mixed_int8_reverts_one_layer_where_nodes_have_no_names(
    forms: Forms, load_tiny: Load, tmp_path: Path
) -> None:
    workload = load_tiny("images")
    graph = outlier(forms, workload, tmp_path)
    for node in graph.graph.node:
        node.name = "unnamed_0" if node.op_type == "Relu" else ""
    mixed = MixedInt8(per_channel=False, max_drop=0.02).apply(graph, workload)
    assert fused(mixed, tmp_path)["QLinearConv"] == 1
    assert right(mixed, workload) >= right(graph, workload) - 0.02


def test_mixed_int8_is_static_int8_where_that_is_good_enough(forms: Forms, load_tiny: Load) -> None:
    graph, workload = graph_of(forms, "images"), load_tiny("images")
    assert MixedInt8(max_drop=1).apply(graph, workload) == StaticInt8().apply(graph, workload)


def test_mixed_int8_refuses_where_no_layer_is_to_blame(forms: Forms, load_tiny: Load, tmp_path: Path) -> None:
    """A number of a million in a sum takes its whole range; only sums that stay float help."""
    workload = load_tiny("images")
    graph = outlier(forms, workload, tmp_path, spike=1e6)
    with pytest.raises(UnsuitableError, match="with every layer in float"):
        MixedInt8(max_drop=0.02, per_channel=False).apply(graph, workload)
    saved = MixedInt8(max_drop=0.02, per_channel=False, operators="products").apply(graph, workload)
    assert right(saved, workload) >= right(graph, workload) - 0.02


def test_mixed_int8_needs_answers_that_are_right_or_wrong(forms: Forms, load_tiny: Load) -> None:
    workload = load_tiny("images")
    base = type(workload.definition)

    class Scores(base):  # type: ignore[misc,valid-type]
        def postprocess(self, outputs: Arrays) -> np.ndarray:
            highest: np.ndarray = outputs["output"].max(axis=1)
            return highest

    with pytest.raises(UnsuitableError, match=r"`postprocess` gives float32 of shape \(100,\)"):
        MixedInt8().apply(graph_of(forms, "images"), replace(workload, definition=Scores()))


# int8, dynamic


def test_dynamic_int8_leaves_convolutions_in_floats(forms: Forms, load_tiny: Load) -> None:
    """There is no fast kernel for them; the head beside them is a product."""
    quantized = DynamicInt8().apply(graph_of(forms, "images"), load_tiny("images"))
    found = [node.op_type for node in quantized.graph.node]
    assert (found.count("Conv"), found.count("ConvInteger"), found.count("MatMulInteger")) == (1, 0, 1)


def test_dynamic_int8_refuses_a_graph_of_which_nothing_becomes_smaller(load_tiny: Load) -> None:
    product = helper.make_node("MatMul", ["x", "w"], ["y"])
    narrow = Bf16().apply(model([product], 2, w=f32([[1, 2]])), load_tiny("images"))
    convolution = model([helper.make_node("Conv", ["x", "w"], ["y"])], 4, w=f32([[[[1, 2]]]]))
    for graph in (narrow, convolution, model([helper.make_node("Relu", ["x"], ["y"])], 1)):
        with pytest.raises(UnsuitableError, match="no weight was stored in eight bits"):
            DynamicInt8().apply(graph, load_tiny("images"))


# int8, trained


def product_of_integers() -> tuple[list[onnx.NodeProto], dict[str, np.ndarray]]:
    """`y`, the product of `x` and `wq` in int8 with the float bias `b`, and the scales: 0.1 and 0.25."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "sx", "zx"], ["xd"]),
        helper.make_node("DequantizeLinear", ["wq", "sw", "zw"], ["wd"], axis=0),
        helper.make_node("Gemm", ["xd", "wd", "b"], ["y"], transB=1),
    ]
    scales = {"sx": f32(0.1), "zx": np.zeros((), np.uint8), "sw": f32([0.25, 0.25]), "zw": i8([0, 0])}
    return nodes, scales


def test_bias_is_an_integer_of_the_product_s_scale() -> None:
    """Scales 0.1 and 0.25 make 0.025: a bias of 0.5 is 20 of them, one of -0.03 rounds to -1."""
    nodes, scales = product_of_integers()
    graph = model(nodes, 2, wq=i8([[4], [8]]), b=f32([0.5, -0.03]), **scales)
    biases_as_int32(graph)
    stored = {w.name: numpy_helper.to_array(w).tolist() for w in graph.graph.initializer}
    assert stored["y_bias_int32"] == [20, -1]
    assert "b" not in stored
    assert run(graph, {"x": f32([[1]])}) == pytest.approx(f32([[1.5, 1.975]]), abs=1e-6)


def test_bias_that_is_an_output_too_stays() -> None:
    nodes, scales = product_of_integers()
    weights = {"wq": i8([[4], [8]]), "b": f32([0.5, -0.5]), "w": f32([[1], [2]])}
    graph = held_by_a_branch(nodes, **weights, **scales)
    biases_as_int32(graph)
    assert {"b", "w", "y_bias_int32"} <= set(kinds(graph))
    assert run(graph, {"x": f32([[1]])}) == pytest.approx(f32([[1.5, 1.5]]), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("images", {"QLinearConv": 1, "QGemm": 1, "QuantizeLinear": 1}),
        ("texts", {"MatMulIntegerToFloat": 3, "QGemm": 1, "QuantizeLinear": 1}),
    ],
)
def test_trained_int8_runs_on_integer_kernels(
    name: str, expected: dict[str, int], forms: Forms, load_tiny: Load, tmp_path: Path
) -> None:
    """Every layer, on u8 activations and s8 weights; nothing is quantized that no layer takes."""
    workload = load_tiny(name)
    made = QatInt8(epochs=1).apply(network.load("torch", forms(name)["torch"]), workload)
    ran = fused(made, tmp_path)
    assert {kind: ran[kind] for kind in expected} == expected
    assert not {"Conv", "Gemm", "QLinearMatMul"} & set(ran)
    zero_points = {node.input[2] for node in made.graph.node if node.op_type == "QuantizeLinear"}
    assert {kinds(made)[zero] for zero in zero_points} == {TensorProto.UINT8}
    assert right(made, workload) >= right(graph_of(forms, name), workload) - 0.02
    assert "metadata_props" not in str(made)


def test_trained_int8_needs_labels_layers_and_a_traceable_network(forms: Forms, load_tiny: Load) -> None:
    workload = load_tiny("images")
    trained = network.load("torch", forms("images")["torch"])
    bare = replace(workload.splits, train=Split(workload.splits.train.samples))
    with pytest.raises(UnsuitableError, match="must go with labels"):
        QatInt8().apply(trained, replace(workload, splits=bare))
    with pytest.raises(UnsuitableError, match="`Flatten` holds none"):
        QatInt8().apply(nn.Flatten(), workload)
    with pytest.raises(UnsuitableError, match=r"`torch.export` must be able to trace.*it raised"):
        QatInt8().apply(DependsOnData(), workload)


def regression(workload: LoadedWorkload, outputs: int) -> LoadedWorkload:
    """The workload with its classes as numbers, given in one column (`outputs=2`) or none (1)."""
    shape = (-1, 1)[:outputs]
    parts = [getattr(workload.splits, name) for name in SPLITS]
    return replace(
        workload, splits=Splits(*(Split(p.samples, f32(p.labels()).reshape(shape)) for p in parts))
    )


class Ends(nn.Module):
    """The tiny network with other outputs."""

    def __init__(self, end: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.body, self.end = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), end

    def forward(self, images: torch.Tensor) -> Any:
        return self.end(self.body(images))


@pytest.mark.parametrize("axes", [1, 2])
def test_trained_int8_of_a_regression_learns_numbers(axes: int, load_tiny: Load) -> None:
    """From answers of 2 to targets of 0 and 1: 3/4 · (3 - 2)² and 1/4 · ((3 - 0)² + (3 - 1)²) / 2."""
    workload = regression(load_tiny("images"), axes)
    rows = np.asarray([workload.split("train").labels().ravel().tolist().index(value) for value in (0, 1)])
    part = workload.split("train").take(rows)
    inputs = {"images": torch.from_numpy(workload.definition.preprocess(part.samples)["images"])}
    shape = (2, 1)[:axes]
    loss = QatInt8(alpha=0.25)._loss(Ends(lambda out: torch.full((len(out), 1)[:axes], 2.0)), workload)
    batch = Batch("train", rows, inputs, torch.from_numpy(part.labels()))
    student = Ends(lambda _: torch.full(shape, 3.0))
    assert float(loss(student, batch)) == pytest.approx(0.75 + 0.25 * 13 / 2)


@pytest.mark.parametrize("axes", [1, 2])
def test_trained_int8_of_a_regression_stays_near_the_float_network(axes: int, load_tiny: Load) -> None:
    workload = regression(load_tiny("images"), axes)
    torch.manual_seed(0)
    module = Ends((lambda out: out[:, :1]) if axes == 2 else (lambda out: out[:, 0])).eval()
    made = QatInt8(epochs=1, alpha=0).apply(module, workload)
    inputs = workload.definition.preprocess(workload.split("search").samples)
    theirs = network.run_torch(module, inputs)["output"]
    assert run(made, inputs) == pytest.approx(theirs, abs=0.05)


@pytest.mark.parametrize(
    ("end", "found"),
    [
        (lambda out: out[:, :1], r"an output of shape \(3, 1\)"),
        (lambda out: out[:, 0], r"an output of shape \(3,\)"),
        (lambda out: out.sum(), r"an output of shape \(\)"),
        (lambda out: (out, out), "2 outputs"),
    ],
    ids=["column", "number", "one number for all", "two"],
)
def test_trained_int8_refuses_outputs_that_teach_nothing(end: Any, found: str, load_tiny: Load) -> None:
    with pytest.raises(UnsuitableError, match=found):
        QatInt8(epochs=1).apply(Ends(end).eval(), load_tiny("images"))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("dimensions", [1, 2])
def test_trained_int8_quantizes_convolutions_of_named_padding(
    padding: str, dimensions: int, load_tiny: Load, tmp_path: Path
) -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            kind = nn.Conv2d if dimensions == 2 else nn.Conv1d
            self.conv = kind(1, 4, 3, padding=padding)
            self.head = nn.LazyLinear(4)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            found = images if dimensions == 2 else images.flatten(2)
            logits: torch.Tensor = self.head(self.conv(found).relu().flatten(1))
            return logits

    workload = load_tiny("images")
    module = Padded()
    network.run_torch(module, workload.example(1))
    made = QatInt8(epochs=1).apply(module.eval(), workload)
    assert fused(made, tmp_path)["QLinearConv"] == 1


class DependsOnData(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images if images.sum().item() > 0 else -images


# what ran


@pytest.mark.parametrize(
    ("technique", "ran"),
    [(Bf16(), "float32"), (Fp8(), "float32"), (Int4(), "float32"), (Int4(products="int8"), "int8")],
)
def test_precision_that_computes_is_said_not_the_one_that_is_stored(
    technique: Any, ran: str, forms: Forms, load_tiny: Load, tmp_path: Path
) -> None:
    network.save(technique.apply(graph_of(forms, "texts"), load_tiny("texts")), "onnx", tmp_path)
    (tmp_path / "compiled").mkdir()
    OnnxRuntime().compile(tmp_path, tmp_path / "compiled")
    assert OnnxRuntime().load(tmp_path / "compiled").ran().precision == ran
