"""TVM's tuning on two small networks of random weights: beside untuned code, and beside ONNX Runtime.

Requests to TVM cross a pipe. What this costs, a network that does nothing shows; it is not taken off.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from claims import Claim, main
from onnx import helper, numpy_helper

from pareflow.compiler import Backend, OnnxRuntime, Tvm
from pareflow.session import Session

ROUNDS = 500
BUDGET_S, QUICK_S = 60.0, 5.0
Layer = tuple[str, dict[str, Any], list[tuple[int, ...]]]
"""An operator, its attributes, and the shapes of its weights."""


def measure(quick: bool) -> Sequence[Claim]:
    """By medians of interleaved requests of one sample; `quick` searches for 5 s instead of 60."""
    budget_s = QUICK_S if quick else BUDGET_S
    nothing = _graph("nothing", [("Identity", {}, [])], [1])
    _, pipe = _medians_ms([OnnxRuntime(threads=1), Tvm()], nothing)[0]
    return [
        *_claims("CNN", _cnn(), budget_s, 10),
        *_claims("MLP", _mlp(), budget_s, 2),
        Claim("a network that does nothing", 1, pipe, "ms", ROUNDS, "at most"),
    ]


def _claims(name: str, graph: onnx.ModelProto, budget_s: float, gain: float) -> Iterator[Claim]:
    """`gain`: how many times faster than untuned code."""
    backends = [OnnxRuntime(threads=1), Tvm(), Tvm(tuning_s=budget_s)]
    (ort, plain, tuned), notes = _medians_ms(backends, graph)
    note = f"{plain:.3f} to {tuned:.3f} ms; {notes}"
    yield Claim(f"{name}: tuned over untuned", gain, plain / tuned, "×", ROUNDS, "at least", note=note)
    note = f"{ort:.3f} to {tuned:.3f} ms"
    yield Claim(f"{name}: tuned over ONNX Runtime", 1, ort / tuned, "×", ROUNDS, "at least", note=note)


def _medians_ms(backends: Sequence[Backend], graph: onnx.ModelProto) -> tuple[list[float], str]:
    """Of each backend, all asked in every round, and what the last says of itself; they must agree."""
    with TemporaryDirectory() as folder:
        onnx.save_model(graph, Path(folder) / "model.onnx")
        sessions = [_session(backend, Path(folder)) for backend in backends]
    shape = [d.dim_value or 1 for d in graph.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"x": np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    answers = [next(iter(session.run(feeds).values())) for session in sessions]
    assert all(np.allclose(a, b, atol=1e-4 * np.abs(a).max()) for a, b in pairwise(answers))
    rounds = [[_ms_of(session.run, feeds) for session in sessions] for _ in range(ROUNDS)]
    return [float(median) for median in np.median(rounds, axis=0)], sessions[-1].ran().notes


def _session(backend: Backend, source: Path) -> Session:
    into = source / backend.label
    into.mkdir()
    backend.compile(source, into)
    return backend.load(into)


def _ms_of(run: Callable[..., object], feeds: Mapping[str, np.ndarray]) -> float:
    began = time.perf_counter()
    run(feeds)
    return 1e3 * (time.perf_counter() - began)


def _cnn() -> onnx.ModelProto:
    """3×3 convolutions of 16, 32 and 64 channels on 28×28 pixels, and a head: 5.6 million multiplications."""
    layers = [
        ("Conv", {"pads": [1] * 4}, [(16, 1, 3, 3), (16,)]),
        ("Relu", {}, []),
        ("Conv", {"pads": [1] * 4, "strides": [2, 2]}, [(32, 16, 3, 3), (32,)]),
        ("Relu", {}, []),
        ("Conv", {"pads": [1] * 4}, [(64, 32, 3, 3), (64,)]),
        ("Relu", {}, []),
        ("GlobalAveragePool", {}, []),
        ("Flatten", {}, []),
        ("Gemm", {}, [(64, 10), (10,)]),
    ]
    return _graph("cnn", layers, [1, 28, 28])


def _mlp() -> onnx.ModelProto:
    """784, 512, 512 and 10 units: 0.7 million multiplications."""
    layers = list[Layer]()
    for a, b in pairwise((784, 512, 512, 10)):
        layers += [("Gemm", {}, [(a, b), (b,)]), ("Relu", {}, [])]
    return _graph("mlp", layers[:-1], [784])


def _graph(name: str, layers: Sequence[Layer], shape: list[int]) -> onnx.ModelProto:
    """A chain of layers with random weights."""
    chance = np.random.default_rng(0)
    nodes, weights = [], []
    for i, (kind, attributes, shapes) in enumerate(layers):
        names = [f"w{i}_{j}" for j in range(len(shapes))]
        for weight, size in zip(names, shapes, strict=True):
            values = chance.normal(size=size) / np.sqrt(np.prod(size[1:]) if kind == "Conv" else size[0])
            weights.append(numpy_helper.from_array(values.astype(np.float32), weight))
        given = "x" if i == 0 else f"t{i}"
        made = "y" if i == len(layers) - 1 else f"t{i + 1}"
        nodes.append(helper.make_node(kind, [given, *names], [made], **attributes))
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", *shape])]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, name, inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


if __name__ == "__main__":
    main("tuning", measure)
