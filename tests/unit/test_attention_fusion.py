"""Attention as one operator: BERT's, with padding at either side, and quantized whole."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from pareflow import network
from pareflow.errors import UnsuitableError
from pareflow.model import AttentionFusion, DynamicInt8
from pareflow.network import Form
from pareflow.workload import LoadedWorkload

Load = Callable[[str], LoadedWorkload]
Forms = Callable[[str], Mapping[Form, Path]]


@pytest.fixture(scope="module")
def bert(forms: Forms) -> Path:
    pytest.importorskip("transformers")
    return forms("bert")["onnx"]


@pytest.fixture(scope="module")
def fused(bert: Path, load_tiny: Load) -> Any:
    return AttentionFusion().apply(network.load("onnx", bert), load_tiny("bert"))


def operators(graph: Any) -> Counter[str]:
    return Counter(node.op_type for node in graph.graph.node)


def test_each_attention_becomes_one_operator(bert: Path, fused: Any) -> None:
    """Of two blocks: two softmaxes; of six products each, three stay."""
    before, after = operators(network.load("onnx", bert)), operators(fused)
    assert (before["Softmax"], before["MatMul"], before["Attention"]) == (2, 16, 0)
    assert (after["Softmax"], after["MatMul"], after["Attention"]) == (0, 6, 2)
    assert after["LayerNormalization"] == before["LayerNormalization"]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_may_be_at_either_side(side: str, bert: Path, fused: Any, tmp_path: Path) -> None:
    network.save(fused, "onnx", tmp_path)
    ids = np.tile([1, 2, 3, 4, 5, 6], (2, 2))
    padded = slice(0, 7) if side == "left" else slice(5, 12)
    ids[1, padded] = 0
    feeds = {"ids": ids, "mask": (ids > 0).astype(np.int64)}
    expected = network.runner(bert)(feeds)["output"]
    assert network.runner(tmp_path)(feeds)["output"] == pytest.approx(expected, abs=1e-5)


def test_it_is_quantized_whole(bert: Path, fused: Any, load_tiny: Load, tmp_path: Path) -> None:
    """Beside it six products, the pooler's and the head's."""
    workload = load_tiny("bert")
    quantized = DynamicInt8().apply(fused, workload)
    assert operators(quantized)["QAttention"] == 2
    assert operators(quantized)["MatMulInteger"] == 6 + 2
    network.save(quantized, "onnx", tmp_path)
    feeds = workload.example(16)
    expected, got = (network.runner(folder)(feeds)["output"] for folder in (bert, tmp_path))
    assert np.abs(got - expected).max() < 0.1 * np.abs(expected).max()


def test_a_graph_without_attention_is_refused(forms: Forms, load_tiny: Load) -> None:
    with pytest.raises(UnsuitableError, match=r"^`attention_fusion` needs a self-attention .*none was found"):
        AttentionFusion().apply(network.load("onnx", forms("images")["onnx"]), load_tiny("images"))


def test_a_quantized_graph_is_refused(bert: Path, load_tiny: Load) -> None:
    workload = load_tiny("bert")
    quantized = DynamicInt8().apply(network.load("onnx", bert), workload)
    with pytest.raises(UnsuitableError, match=r"^`attention_fusion` needs .* computes with floats"):
        AttentionFusion().apply(quantized, workload)


def test_the_result_is_held_to_its_source(
    bert: Path, load_tiny: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxruntime.transformers import optimizer

    optimize = optimizer.optimize_model

    def wrong(*given: Any, **settings: Any) -> Any:
        made = optimize(*given, **settings)
        for weight in made.model.graph.initializer:
            if weight.name.endswith("qkv_weight"):
                weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
        return made

    monkeypatch.setattr(optimizer, "optimize_model", wrong)
    with pytest.raises(
        UnsuitableError, match=r"^`attention_fusion` must give a graph that agrees .*`output` differs by"
    ):
        AttentionFusion().apply(network.load("onnx", bert), load_tiny("bert"))
